// What the kernels that share out a step's work have in common: one block that counts and looks up.
#pragma once

#include "common.cuh"

namespace headrace {

constexpr int PLAN_THREADS = 512, PLAN_WARPS = PLAN_THREADS / WARP;

// Sum over the threads before this one; ``total`` becomes the sum over all.
__device__ __forceinline__ int sum_before(int value, int& total) {
    __shared__ int warp_sums[PLAN_WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int sum = value;
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane >= distance) sum += other;
    }
    if (lane == WARP - 1) warp_sums[warp] = sum;
    __syncthreads();
    const int of_warp = lane < PLAN_WARPS ? warp_sums[lane] : 0;
    total = __reduce_add_sync(ALL_LANES, of_warp);
    return __reduce_add_sync(ALL_LANES, lane < warp ? of_warp : 0) + sum - value;
}

// The last row that starts at or before ``at``: rows without work start where their successor does.
__device__ __forceinline__ int row_of(const int* starts, int num_rows, long long at) {
    int low = 0, high = num_rows;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (starts[middle] <= at) low = middle;
        else high = middle;
    }
    return low;
}

}  // namespace headrace
