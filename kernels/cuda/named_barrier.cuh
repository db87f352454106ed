// Some of a block's threads meet while the others go on.
#pragma once

namespace headrace {

// Whole warps, the same THREADS of them each time.
template <int THREADS>
__device__ __forceinline__ void some_meet() {
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}

}  // namespace headrace
