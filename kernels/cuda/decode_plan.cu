// Cuts the keys that a step's decoding rows see into equal shares, one a block of decode_attention, on the device: a
// captured graph serves any lengths. Once a step, for all its layers.
//
// Items are (row, head of keys) in this order; an item's keys are counted in units: tiles of 16 keys, or segments of
// ``segment_tiles`` of them. A share is a run of units, and may begin and end within an item. Writes
//   plan[0]: {units a share, tiles a unit, 1 if units stay apart, units in all},
//   plan[1 + 2b]: block b's {first item's row, its head, first unit in the item, number of units},
//   plan[2 + 2b]: {that row's length, 0, 0, 0},
// and uses starts [num_rows + 1] in between.
//
// That equal runs of a flattened index space beat splitting each row on its own is Stream-K's point for products [1]
// and FlashInfer's for ragged attention [2].
//
// [1] M. Osama et al. Stream-K: work-centric parallel decomposition for dense matrix-matrix multiplication on the GPU.
//     PPoPP 2023 (arXiv:2301.03598).
// [2] Z. Ye et al. FlashInfer: efficient and customizable attention engine for LLM inference serving. MLSys 2025
//     (arXiv:2501.01005), section 3.3.
#include "decode_tiles.cuh"
#include "plan.cuh"

extern "C" __global__ void __launch_bounds__(512, 1)
    decode_plan(int4* plan, int* starts, const int* lengths, int num_rows, int num_kv_heads, int window, int num_shares,
                int least_units, int segment_tiles) {
    using namespace headrace;
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int unit_tiles = segment_tiles > 0 ? segment_tiles : 1;
    const int rows_a_thread = (num_rows + PLAN_THREADS - 1) / PLAN_THREADS, first = threadIdx.x * rows_a_thread;
    int mine = 0;
    for (int row = first; row < min(first + rows_a_thread, num_rows); row++)
        mine += tiles_seen(lengths[row], window).units(unit_tiles) * num_kv_heads;
    int total;
    int start = sum_before(mine, total);
    for (int row = first; row < min(first + rows_a_thread, num_rows); row++) {
        starts[row] = start;
        start += tiles_seen(lengths[row], window).units(unit_tiles) * num_kv_heads;
    }
    if (threadIdx.x == 0) starts[num_rows] = total;
    __syncthreads();
    const int share = max((total + num_shares - 1) / num_shares, max(least_units, 1));
    if (threadIdx.x == 0) plan[0] = make_int4(share, unit_tiles, segment_tiles > 0, total);
    for (int block = threadIdx.x; block < num_shares; block += PLAN_THREADS) {
        const long long at = static_cast<long long>(block) * share;
        int4 entry = make_int4(0, 0, 0, 0);
        int length = 0;
        if (at < total) {
            const int low = row_of(starts, num_rows, at);
            const int inner = static_cast<int>(at) - starts[low];
            const int units = (starts[low + 1] - starts[low]) / num_kv_heads;
            length = lengths[low];
            entry = make_int4(low, inner / units, inner % units, min(share, total - static_cast<int>(at)));
        }
        plan[1 + 2 * block] = entry;
        plan[2 + 2 * block] = make_int4(length, 0, 0, 0);
    }
}
