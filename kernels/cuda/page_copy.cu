// Moving pages of keys and values: whole pages, all layers in one launch. No page may be both a source and a target, for
// the copies have no order.
//
// Macros: THREADS, VECS (16-byte vectors of a thread).
#include "common.cuh"

using namespace headrace;

using Wide = Vec<float, 4>;

extern "C" __global__ void __launch_bounds__(THREADS)
    page_copy(char* pages, const int2* moves, int64_t layer_stride, int64_t page_stride, int num_vecs) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int2 move = moves[blockIdx.y];  // from, to
    if (move.x < 0) return;               // a place in the list that is not used
    char* layer = pages + blockIdx.z * layer_stride;
    const float* from = reinterpret_cast<const float*>(layer + move.x * page_stride);
    float* to = reinterpret_cast<float*>(layer + move.y * page_stride);
    const int first = blockIdx.x * VECS * THREADS + threadIdx.x;
    Wide held[VECS];
    // Without hints: what is marked as soon to be evicted takes a twelfth longer.
#pragma unroll
    for (int i = 0; i < VECS; i++)
        if (first + i * THREADS < num_vecs) held[i] = load<float, 4>(from + int64_t(first + i * THREADS) * 4);
#pragma unroll
    for (int i = 0; i < VECS; i++)
        if (first + i * THREADS < num_vecs) store<float, 4>(to + int64_t(first + i * THREADS) * 4, held[i]);
}
