// What four neighbouring lanes hold of a row of the tensor cores' sums, so that each writes 16 bytes of it.
#pragma once

#include "common.cuh"

namespace headrace {

// Four neighbours' four words each: word i of lane j for word j of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&word)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(ALL_LANES, odd ? word[i] : word[i + 1], 1);
        word[i] = odd ? got : word[i], word[i + 1] = odd ? word[i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(ALL_LANES, upper ? word[i] : word[i + 2], 2);
        word[i] = upper ? got : word[i], word[i + 2] = upper ? word[i + 2] : got;
    }
}

}  // namespace headrace
