// The logistic function, and with it SiLU: what gates share.
#pragma once

#include "common.cuh"

namespace headrace {

// The 16-bit types take the hardware's approximations, whose errors are a hundredth of theirs.
template <typename T>
__device__ __forceinline__ float logistic(float x) {
    if (sizeof(T) == 4) return 1.f / (1.f + expf(-x));
    return reciprocal_roughly(1.f + exp2_roughly(-1.4426950408889634f * x));
}

}  // namespace headrace
