// Bringing what a device knows of rows up to date: single words that the host has changed, and positions that move on.
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

// Rows that decode have one token more; a row whose place is -1 is passed over.
extern "C" __global__ void __launch_bounds__(THREADS) advance(int64_t* position, const int64_t* places, int num_rows) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < num_rows && places[i] >= 0) position[places[i]]++;
}
