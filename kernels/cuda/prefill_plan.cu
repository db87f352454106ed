// Cuts the queries of a step's rows into blocks of prefill_attention, on the device: a captured graph serves any cut of
// its tokens into rows. Once a step, for all its layers.
//
// A row of n queries has n * group pairs of a query and a head of its group, in this order; an item is up to block_rows
// of them. Writes, for each of num_items items,
//   plan[2i]:     {row, first pair, first token of the row, its number of queries},
//   plan[2i + 1]: {its length, 0, 0, 0}, where prefill_ring.cu counts in the first one's zeros;
// items that no row needs have row -1. Tokens behind the last row's are a row of length 0. A row's last queries come
// first, for they see the most keys; starts [num_rows + 2] is used in between. Where ``only_last``, a row's last query
// is its only one, and what lies behind the last row has none.
#include "plan.cuh"

extern "C" __global__ void __launch_bounds__(512, 1)
    prefill_plan(int4* plan, int* starts, const int* query_starts, const int* lengths, int num_rows, int num_tokens,
                 int group, int block_rows, int num_items, int only_last) {
    using namespace headrace;
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const auto end = [&](int row) { return row < num_rows ? query_starts[row + 1] : num_tokens; };
    const auto num_queries = [&](int row) {
        const int all = max(end(row) - query_starts[row], 0);
        return !only_last ? all : row < num_rows ? min(all, 1) : 0;
    };
    const auto num_blocks = [&](int row) { return (num_queries(row) * group + block_rows - 1) / block_rows; };
    const int all = num_rows + 1, rows_a_thread = (all + PLAN_THREADS - 1) / PLAN_THREADS;
    const int first = threadIdx.x * rows_a_thread, last = min(first + rows_a_thread, all);
    int mine = 0;
    for (int row = first; row < last; row++) mine += num_blocks(row);
    int total;
    int start = sum_before(mine, total);
    for (int row = first; row < last; row++) {
        starts[row] = start;
        start += num_blocks(row);
    }
    if (threadIdx.x == 0) starts[all] = total;
    __syncthreads();
    for (int item = threadIdx.x; item < num_items; item += PLAN_THREADS) {
        int4 entry = make_int4(-1, 0, 0, 0);
        int length = 0;
        if (item < total) {
            const int row = row_of(starts, all, item);
            const int queries = num_queries(row), first_query = only_last ? end(row) - 1 : query_starts[row];
            entry = make_int4(row, (starts[row + 1] - 1 - item) * block_rows, first_query, queries);
            if (row < num_rows) length = lengths[row];
        }
        plan[2 * item] = entry;
        plan[2 * item + 1] = make_int4(length, 0, 0, 0);
    }
}
