// A short list of tokens in shared memory: sorted, summed up, searched. One block, THREADS threads.
#pragma once

#include "sampling.cuh"

namespace headrace {

constexpr int CAPACITY = 2048;  // tokens of a list
constexpr int OWN = CAPACITY / THREADS;
constexpr int NUM_WARPS = THREADS / WARP;

struct Ranking {
    uint64_t keys[CAPACITY];        // falling
    uint64_t cumulative[CAPACITY];  // units of mass, each with those before it
    double partial[NUM_WARPS];
    int scratch[CAPACITY];
    int count;  // may exceed CAPACITY: then the list is not whole
};

template <typename T>
__device__ __forceinline__ T block_sum(T value, T* partial) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    __syncthreads();
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = value;
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int warp = 0; warp < NUM_WARPS; warp++) sum += partial[warp];
    return sum;
}

__device__ __forceinline__ void add(Ranking& list, uint64_t key) {
    const int at = atomicAdd(&list.count, 1);
    if (at < CAPACITY) list.keys[at] = key;
}

// Bitonic [1]: the order in which atomics have filled the list leaves no trace, since no two keys are equal.
// [1] K. E. Batcher. Sorting networks and their applications. AFIPS 1968.
__device__ __forceinline__ void sort(Ranking& list) {
    __syncthreads();
    int size = 2;
    while (size < list.count) size *= 2;
    for (int i = list.count + threadIdx.x; i < size; i += THREADS) list.keys[i] = 0;
    for (int width = 2; width <= size; width *= 2) {
        for (int stride = width / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                const uint64_t a = list.keys[low], b = list.keys[high];
                const bool falling = (low & width) == 0;
                if (falling ? a < b : a > b) {
                    list.keys[low] = b;
                    list.keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

// Turn each thread's value into the sum of those of the threads before it; returns the sum of all.
template <typename T>
__device__ __forceinline__ T exclusive_sum(T& value) {
    alignas(16) __shared__ T partial[NUM_WARPS];  // else vectors are read that begin before it
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    T scan = value;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const T lower = __shfl_up_sync(ALL_LANES, scan, distance);
        if (lane >= distance) scan += lower;
    }
    __syncthreads();
    if (lane == WARP - 1) partial[warp] = scan;
    __syncthreads();
    value = scan - value;
    T total = 0;
#pragma unroll
    for (int w = 0; w < NUM_WARPS; w++) {
        if (w < warp) value += partial[w];
        total += partial[w];
    }
    return total;
}

// Fill ``cumulative`` for the first ``count`` tokens, beginning with ``before``; ``units_of`` tells a key's.
template <typename Units>
__device__ __forceinline__ void accumulate(Ranking& list, int count, uint64_t before, Units units_of) {
    uint64_t sums[OWN], sum = 0;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int at = threadIdx.x * OWN + i;
        if (at < count) sum += units_of(list.keys[at]);
        sums[i] = sum;
    }
    exclusive_sum(sum);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int at = threadIdx.x * OWN + i;
        if (at < count) list.cumulative[at] = before + sum + sums[i];
    }
    __syncthreads();
}

// How many of the first ``count`` indices a predicate holds for, which holds for a prefix of them: by bisection.
template <typename Predicate>
__device__ __forceinline__ int prefix_length(int count, Predicate holds) {
    int low = 0, high = count;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (holds(middle))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

}  // namespace headrace
