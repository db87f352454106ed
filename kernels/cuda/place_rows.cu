// Rows that go each to a row of a matrix, which may be wider: what a gather has picked, back where it came from.
//
// Macros: DTYPE, VEC, THREADS, INDEX (type of indices).
#include "common.cuh"

using namespace headrace;

// A vector that nobody looks into.
using W = Word<sizeof(DTYPE) * VEC>::type;

extern "C" __global__ void __launch_bounds__(THREADS)
    place_rows(W* out, const W* rows, const INDEX* indices, int64_t out_vecs, int num_vecs) {
    const int vec = blockIdx.y * THREADS + threadIdx.x;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    if (vec >= num_vecs) return;
    out[int64_t(indices[blockIdx.x]) * out_vecs + vec] = rows[int64_t(blockIdx.x) * num_vecs + vec];
}
