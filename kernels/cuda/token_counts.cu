// Begin a row's counts: tokens of its prompt are marked, those that it has generated already are added up. One block,
// because a row comes once, and its line must be clear before the first token is counted.
#include "common.cuh"

using namespace headrace;

constexpr int IN_PROMPT = 0x8000;

extern "C" __global__ void __launch_bounds__(THREADS)
    count_tokens(unsigned* counts, int vocab, const int64_t* token_ids, int num_tokens, int num_prompt_tokens) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    for (int i = threadIdx.x; i < (vocab + 1) / 2; i += THREADS) counts[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < num_tokens; i += THREADS) {
        const int64_t token = token_ids[i];
        if (token < 0 || token >= vocab) continue;
        // There are no atomics on 16 bits: a token's count is one half of a word.
        const int shift = token & 1 ? 16 : 0;
        if (i < num_prompt_tokens)
            atomicOr(&counts[token / 2], unsigned(IN_PROMPT) << shift);
        else
            atomicAdd(&counts[token / 2], 1u << shift);
    }
}
