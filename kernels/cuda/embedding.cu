// Embedding gather: a row of the table a token. A token outside the table gives zeros, so that the shards of a table
// that is split by tokens can be summed, and padding needs no valid token.
//
// Macros: DTYPE, VEC, VECS (vectors of a thread), THREADS, TOKEN (type of token ids).
#include "common.cuh"

using namespace headrace;

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding(DTYPE* out, const TOKEN* token_ids, const DTYPE* table, int64_t num_tokens, int64_t num_rows, int width,
              int64_t first_id) {
    using T = DTYPE;
    const int first = (blockIdx.x * VECS * THREADS + threadIdx.x) * VEC;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    for (int64_t token = blockIdx.y; token < num_tokens; token += gridDim.y) {
        const int64_t id = int64_t(token_ids[token]) - first_id;
        const bool known = id >= 0 && id < num_rows;
        Vec<T, VEC> held[VECS];
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            const int column = first + i * THREADS * VEC;
            held[i] = Vec<T, VEC>{};
            if (known && column < width) held[i] = load<T, VEC>(table + id * width + column);
        }
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            const int column = first + i * THREADS * VEC;
            if (column < width) store<T, VEC>(out + token * width + column, held[i]);
        }
    }
}
