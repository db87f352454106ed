// Bringing what a device knows of rows up to date: single words that the host has changed, and what rows that decode
// compute next, which nobody but the device needs to know.
#include "common.cuh"

using namespace headrace;

struct Change {
    int word, value;
};

// No word is changed twice by one launch.
extern "C" __global__ void __launch_bounds__(THREADS) change_words(int* words, const Change* changes, int num_changes) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < num_changes) words[changes[i].word] = changes[i].value;
}

// Every place that decodes computes the token that was drawn last, and has one more computed from here on; the others
// are given a token that stands nowhere. A row that has moved since then finds its token where it was: its own place is
// not read by anybody, and is written when the next token is drawn. ``places`` may be null.
extern "C" __global__ void __launch_bounds__(THREADS)
    next_tokens(int64_t* token_ids, int* positions, int* lengths, int64_t* places, int64_t* position,
                const int64_t* last_token, const int* source, const int* decodes, int num_places) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int place = blockIdx.x * THREADS + threadIdx.x;
    if (place >= num_places) return;
    const bool on = decodes[place];
    const int at = on ? position[place] : -1;
    token_ids[place] = on ? last_token[source[place]] : 0;
    positions[place] = at;
    lengths[place] = at + 1;
    if (places) places[place] = on ? place : -1;
    if (on) position[place] = at + 1;
}
