// Some of a block's threads meet while the others go on.
#pragma once

namespace headrace {

// Whole warps, the same THREADS of them each time.
template <int THREADS>
__device__ __forceinline__ void some_meet() {
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}

// The same at one of several places, ``place`` 1 to 15, which is the same in all of a warp's lanes.
template <int THREADS>
__device__ __forceinline__ void some_meet(int place) {
    asm volatile("bar.sync %0, %1;" ::"r"(place), "n"(THREADS) : "memory");
}

}  // namespace headrace
