// kernels/cuda/named_barrier.cuh for fibers.
#pragma once

#include "emulated.h"

namespace headrace {

template <int THREADS>
void some_meet() {
    static emulated::Barrier barriers[8];
    emulated::meet(barriers[emulated::rank()], THREADS);
}

template <int THREADS>
void some_meet(int place) {
    static emulated::Barrier barriers[8][16];
    emulated::meet(barriers[emulated::rank()][place], THREADS);
}

}  // namespace headrace
