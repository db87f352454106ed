// Cuts the keys that a step's decoding rows see into equal shares, one a block of decode_attention, on the device: a
// captured graph serves any lengths. Once a step, for all its layers.
//
// Items are (row, head of keys) in this order; an item's keys are counted in units: tiles of 16 keys, or segments of
// ``segment_tiles`` of them. A share is a run of units, and may begin and end within an item. Writes
//   plan[0]: {units a share, tiles a unit, 1 if units stay apart, 1 if no share goes beyond an item},
//   plan[1 + 2b]: block b's {first item's row, its head, first unit in the item, number of units},
//   plan[2 + 2b]: {that row's length, 0, 0, 0},
// and uses starts [num_rows + 1] in between, where they are too many for shared memory.
//
// Where rows are few, several blocks count alike, and each writes a part of the plan; many take one block.
//
// To cut an item costs the meeting of its parts, which short ones do not earn: items of up to ``whole_units`` stay whole
// if there is a block for each. Longer ones are cut where they would be if each began a share, if that takes no more
// than the shares there are and does not make them much larger (``MOST_LONGER``: about what takes as long to read as a
// meeting does, measured with heads of 128 in bf16); the longest into equal parts, if may be.
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

constexpr int FEW_ROWS = 4096;
constexpr int MOST_LONGER = 8;  // tiles

extern "C" __global__ void __launch_bounds__(512, 1)
    decode_plan(int4* plan, int* starts, const int* lengths, int num_rows, int num_kv_heads, int window, int num_shares,
                int num_blocks, int least_units, int whole_units, int segment_tiles) {
    using namespace headrace;
    let_next_kernel_start();
    wait_for_earlier_kernels();
    __shared__ int few_starts[FEW_ROWS + 1];
    __shared__ int sums[2][PLAN_WARPS], maxima[PLAN_WARPS];
    if (num_rows <= FEW_ROWS) starts = few_starts;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int unit_tiles = segment_tiles > 0 ? segment_tiles : 1;
    const int rows_a_thread = (num_rows + PLAN_THREADS - 1) / PLAN_THREADS, first = threadIdx.x * rows_a_thread;
    const int behind = min(first + rows_a_thread, num_rows);
    // Most often a thread has one row at most, whose length it reads once.
    const int first_units = first < behind ? tiles_seen(lengths[first], window).units(unit_tiles) : 0;
    const auto units_of = [&](int row) {
        return row == first ? first_units : tiles_seen(lengths[row], window).units(unit_tiles);
    };
    // Shares of so many units; of one, the units themselves.
    const auto shares_of = [&](int row, int size) { return (units_of(row) + size - 1) / size * num_kv_heads; };
    const auto own_shares = [&](int size) {
        int mine = 0;
        for (int row = first; row < behind; row++) mine += shares_of(row, size);
        return mine;
    };
    int turn = 0;
    const auto all_shares = [&](int size) {
        int* own = sums[turn++ % 2];  // in turn: a barrier lies between one's use and its next
        const int mine = __reduce_add_sync(ALL_LANES, own_shares(size));
        if (lane == 0) own[warp] = mine;
        __syncthreads();
        return __reduce_add_sync(ALL_LANES, lane < PLAN_WARPS ? own[lane] : 0);
    };
    int longest = first_units;
    for (int row = first + 1; row < behind; row++) longest = max(longest, units_of(row));
    longest = __reduce_max_sync(ALL_LANES, longest);
    if (lane == 0) maxima[warp] = longest;
    int total = all_shares(1);
    longest = __reduce_max_sync(ALL_LANES, lane < PLAN_WARPS ? maxima[lane] : 0);
    int share = max((total + num_shares - 1) / num_shares, max(least_units, 1));
    bool aligned = false;
    if (segment_tiles == 0 && total > 0 && whole_units >= 0) {
        const int most = share + min(share / 4, MOST_LONGER);
        if (longest <= whole_units) {
            aligned = all_shares(max(longest, share)) <= num_blocks;
            if (aligned) share = max(longest, share);
        }
        // The longest row's equal parts: where all are as long, no smaller shares would do.
        const int parts = max(longest / share, 1), even = (longest + parts - 1) / parts;
        for (int trial = 0, size = share; trial < 5 && !aligned && size <= most; trial++) {
            const int count = all_shares(size);
            aligned = count <= num_shares;
            if (aligned) share = size;
            else if (size < even) size = even;
            else size = max(size + 1, static_cast<int>(static_cast<long long>(size) * count / num_shares));
        }
    }
    // Each row's first share, or its first unit.
    const int size = aligned ? share : 1;
    int start = sum_before(own_shares(size), total);
    for (int row = first; row < behind; row++) starts[row] = start, start += shares_of(row, size);
    if (threadIdx.x == 0) starts[num_rows] = total;
    __syncthreads();
    if (blockIdx.x == 0 && threadIdx.x == 0) plan[0] = make_int4(share, unit_tiles, segment_tiles > 0, aligned);
    for (int block = blockIdx.x * PLAN_THREADS + threadIdx.x; block < num_blocks; block += gridDim.x * PLAN_THREADS) {
        const long long at = aligned ? block : static_cast<long long>(block) * share;
        int4 entry = make_int4(0, 0, 0, 0);
        int length = 0;
        if (at < total) {
            const int row = row_of(starts, num_rows, at);
            const int inner = static_cast<int>(at) - starts[row], each = (starts[row + 1] - starts[row]) / num_kv_heads;
            length = lengths[row];
            const int unit = inner % each * (aligned ? share : 1);
            const int count = aligned ? min(share, units_of(row) - unit) : min(share, total - static_cast<int>(at));
            entry = make_int4(row, inner / each, unit, count);
        }
        plan[1 + 2 * block] = entry;
        plan[2 + 2 * block] = make_int4(length, 0, 0, 0);
    }
}
