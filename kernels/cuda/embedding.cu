// Embedding gather: a row of the table a token. A token outside the table gives zeros, so that the shards of a table
// that is split by tokens can be summed, and padding needs no valid token.
//
// Macros: DTYPE, VEC, THREADS, TOKENS (of a thread, whose rows are on their way together), TOKEN (type of token ids).
#include "common.cuh"

using namespace headrace;

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding(DTYPE* out, const TOKEN* token_ids, const DTYPE* table, int64_t num_tokens, int64_t num_rows, int width,
              int64_t first_id) {
    using T = DTYPE;
    const int column = (blockIdx.x * THREADS + threadIdx.x) * VEC;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    if (column >= width) return;
    for (int64_t base = int64_t(blockIdx.y) * TOKENS; base < num_tokens; base += int64_t(gridDim.y) * TOKENS) {
        int64_t id[TOKENS];
        Vec<T, VEC> held[TOKENS];
#pragma unroll
        for (int i = 0; i < TOKENS; i++) id[i] = base + i < num_tokens ? int64_t(token_ids[base + i]) - first_id : -1;
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            held[i] = Vec<T, VEC>{};
            if (id[i] >= 0 && id[i] < num_rows) held[i] = load<T, VEC>(table + id[i] * width + column);
        }
#pragma unroll
        for (int i = 0; i < TOKENS; i++)
            if (base + i < num_tokens) store<T, VEC>(out + (base + i) * width + column, held[i]);
    }
}
