// A step's tokens, written where the host reads them: in its own page-locked memory. One small kernel of a graph is
// cheaper than a copy behind it, which waits for the graph, is done by another engine, and is waited for in turn.
#include "common.cuh"

using namespace headrace;

// One block. Writes turn ``*turn`` of ``told`` [num_turns, most_rows] and goes on to the next: -1 where nothing is valid.
extern "C" __global__ void __launch_bounds__(THREADS)
    tell_host(int* told, int* turn, const int64_t* token_ids, const bool* valid, int num_rows, int most_rows, int num_turns) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int at = *turn;
    __syncthreads();
    if (threadIdx.x == 0) *turn = at + 1 == num_turns ? 0 : at + 1;
    for (int row = threadIdx.x; row < num_rows; row += THREADS)
        told[at * most_rows + row] = valid[row] ? int(token_ids[row]) : -1;
}
