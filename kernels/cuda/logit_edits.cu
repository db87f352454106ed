// What requests change in their own logits before all else: biases are added, forbidden tokens become -inf.
//
// A block adds the biases of the tokens of words_a_block words of forbidden ones, then forbids: no two blocks touch one token.
// Those of rows that change nothing end at once.
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
    edit_logits(DTYPE* logits, int64_t stride, int vocab, const int64_t* places, Edits edits, int words_a_block) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t place = places[blockIdx.y];
    if (place < 0) return;
    DTYPE* row = logits + blockIdx.y * stride;
    const int64_t base = place * edits.most_biases;
    const int first = blockIdx.x * words_a_block, end = min(first + words_a_block, edits.num_words);
    const int num_biases = edits.num_biases[place], num_forbidden = edits.num_forbidden[place];
    // Read before anybody knows how many there are: latency is all that this kernel costs.
    const bool there = threadIdx.x < edits.most_biases;
    int next_id = there ? edits.bias_ids[base + threadIdx.x] : 0;
    float next_bias = there ? edits.biases[base + threadIdx.x] : 0.f;
    const unsigned* forbidden = edits.forbidden + place * edits.num_words;
    int word = first + threadIdx.x;
    unsigned bits = num_forbidden && word < end ? forbidden[word] : 0;
    for (int i = threadIdx.x; i < num_biases; i += THREADS) {
        const int id = next_id;
        const float bias = next_bias;
        if (i + THREADS < num_biases) {
            next_id = edits.bias_ids[base + i + THREADS];
            next_bias = edits.biases[base + i + THREADS];
        }
        if (id < first * 32 || id >= min(end * 32, vocab)) continue;
        const float logit = to_float(row[id]);
        edits.unbiased[base + i] = logit;
        row[id] = from_float<DTYPE>(logit + bias);
    }
    if (num_forbidden == 0) return;
    __syncthreads();
    for (;;) {
        for (; bits; bits &= bits - 1) {
            const int id = word * 32 + __ffs(bits) - 1;
            if (id < vocab) row[id] = from_float<DTYPE>(-INFINITY);
        }
        if ((word += THREADS) >= end) return;
        bits = forbidden[word];
    }
}
