// What requests change in their own logits before all else: biases are added, forbidden tokens become -inf.
//
// One block a row; those of rows that change nothing end at once.
#include "common.cuh"

using namespace headrace;

struct Edits {
    const int* bias_ids;        // [num_places, most_biases], no token twice
    const float* biases;        // likewise
    const int* num_biases;      // by place
    const unsigned* forbidden;  // [num_places, num_words], a bit a token
    const int* num_forbidden;   // words of that with any bit set, by place
    float* unbiased;            // [num_places, most_biases]: the logits that biases are added to, for who wants to know
    int most_biases, num_words;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    edit_logits(DTYPE* logits, int64_t stride, int vocab, const int64_t* places, Edits edits) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t place = places[blockIdx.x];
    if (place < 0) return;
    DTYPE* row = logits + blockIdx.x * stride;
    const int64_t base = place * edits.most_biases;
    const int num_biases = edits.num_biases[place];
    for (int i = threadIdx.x; i < num_biases; i += THREADS) {
        const int id = edits.bias_ids[base + i];
        if (id < 0 || id >= vocab) continue;
        const float logit = to_float(row[id]);
        edits.unbiased[base + i] = logit;
        row[id] = from_float<DTYPE>(logit + edits.biases[base + i]);
    }
    if (edits.num_forbidden[place] == 0) return;
    __syncthreads();
    for (int i = threadIdx.x; i < edits.num_words; i += THREADS) {
        for (unsigned bits = edits.forbidden[place * edits.num_words + i]; bits; bits &= bits - 1) {
            const int id = i * 32 + __ffs(bits) - 1;
            if (id < vocab) row[id] = from_float<DTYPE>(-INFINITY);
        }
    }
}
