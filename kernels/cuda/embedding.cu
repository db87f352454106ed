// Embedding gather: a row of the table a token. A token outside the table gives zeros, so that the shards of a table
// that is split by tokens can be summed, and padding needs no valid token.
//
// Macros: DTYPE, VEC, THREADS, TOKENS (of a thread, whose rows are on their way together), TOKEN (type of token ids).
#include "common.cuh"

using namespace headrace;

// A vector of the table, which nobody looks into.
using W = Word<sizeof(DTYPE) * VEC>::type;

extern "C" __global__ void __launch_bounds__(THREADS)
    embedding(W* out, const TOKEN* token_ids, const W* table, int64_t num_tokens, int64_t num_rows, int num_vecs,
              int64_t first_id) {
    const int vec = blockIdx.x * THREADS + threadIdx.x;
    const int64_t first = (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * TOKENS;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    if (vec >= num_vecs) return;
    int64_t id[TOKENS];
    W held[TOKENS];
#pragma unroll
    for (int i = 0; i < TOKENS; i++) id[i] = first + i < num_tokens ? int64_t(token_ids[first + i]) - first_id : -1;
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        held[i] = W{};
        if (id[i] >= 0 && id[i] < num_rows) held[i] = table[id[i] * num_vecs + vec];
    }
#pragma unroll
    for (int i = 0; i < TOKENS; i++)
        if (first + i < num_tokens) out[(first + i) * num_vecs + vec] = held[i];
}
