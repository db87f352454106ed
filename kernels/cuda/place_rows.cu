// Rows that go each to a row of a matrix, which may be wider: what a gather has picked, back where it came from.
//
// Macros: DTYPE, VEC, THREADS, ROWS (of a thread, on their way together), INDEX (type of indices).
#include "common.cuh"

using namespace headrace;

// A vector that nobody looks into.
using W = Word<sizeof(DTYPE) * VEC>::type;

extern "C" __global__ void __launch_bounds__(THREADS)
    place_rows(W* out, const W* rows, const INDEX* indices, int64_t num_rows, int64_t out_vecs, int num_vecs) {
    const int vec = blockIdx.y * THREADS + threadIdx.x;
    const int64_t first = int64_t(blockIdx.x) * ROWS;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    if (vec >= num_vecs) return;
    int64_t index[ROWS];
    W held[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (first + i < num_rows) {
            index[i] = indices[first + i];
            held[i] = rows[(first + i) * num_vecs + vec];
        }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (first + i < num_rows) out[index[i] * out_vecs + vec] = held[i];
}
