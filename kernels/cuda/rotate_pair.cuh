// Rotary position embedding of one pair of dimensions: the same bits wherever it is done.
#pragma once

#include "common.cuh"

namespace headrace {

__device__ __forceinline__ void rotate_pair(float& first, float& second, float cosine, float sine) {
    const float x = first, y = second;
    // Which product is rounded by itself is said here: compilers choose otherwise in other places.
    first = fmaf(x, cosine, -(y * sine));
    second = fmaf(y, cosine, x * sine);
}

}  // namespace headrace
