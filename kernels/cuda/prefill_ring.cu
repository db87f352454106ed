// Prefill attention by Hopper's copy engine: what prefill_attention.cu computes, with the same bits, for steps that
// fill the GPU.
//
// A block has a multiprocessor for itself and stays. GROUPS groups of four warps, each with 64 rows of an item of the
// plan for one head of keys, share a ring of keys and values that two other warps fill through the copy engine, so that
// these are read once for all of them; two more warps bring the next item's queries. No group waits for another until
// it is as many tiles ahead as the ring has: while one weighs scores, others multiply. So does the group itself: a
// tile's scores are begun before the sums of the tile before, and weighed while these are computed, as in [1]. Blocks
// take items as they come, in the plan's order, and the plan counts how many are taken (prefill_feed.cuh).
//
//   out, query, cosines, sines, page_table as in prefill_attention.cu; plan from prefill_plan.cu, with BLOCK_ROWS;
//   keys, values: rows of HEAD_DIM numbers, a page's of one head neighbours, page_rows and head_rows from one to the
//   next, by tensor maps with boxes of 16 rows; values by its address, too.
//
// Macros: DTYPE, HEAD_DIM (128), GROUPS, STAGES, ROTATES, HELD_STEPS (of 16 numbers of the queries, which products read
// from registers, where there is room, and not from shared memory).
//
// [1] J. Shah, G. Bikshandi, Y. Zhang, V. Thakkar, P. Ramani, T. Dao. FlashAttention-3: fast and accurate attention with
//     asynchrony and low-precision. NeurIPS 2024 (arXiv:2407.08608).
#define WARPGROUPS 1
#define BLOCK_ROWS (GROUPS * 64)
#define BLOCK_KEYS 64
#define WARPS (GROUPS * 4)
#define ROW_TILES 1
#include "prefill_feed.cuh"
#include "prefill_team.cuh"
#include "registers.cuh"

// What four warps that only bring things leave of their registers, the groups take: no more than a launch gives to all.
constexpr int TAKEN = GROUPS == 2 ? 232 : HELD_STEPS ? 160 : 152, LEFT = GROUPS == 2 || !HELD_STEPS ? 40 : 32;
constexpr int GIVEN = GROUPS == 3 ? 128 : 168;
static_assert(GROUPS * TAKEN + LEFT <= (GROUPS + 1) * GIVEN && 4 * (GROUPS + 1) * 32 * GIVEN <= 1 << 16);

extern "C" __global__ void __launch_bounds__((GROUPS + 1) * 128, 1)
    prefill_ring(DTYPE* out, const DTYPE* query, const int* page_table, int4* plan, const float* cosines,
                 const float* sines, const __grid_constant__ headrace::TensorMap keys,
                 const __grid_constant__ headrace::TensorMap value_map, const DTYPE* values, int num_kv_heads,
                 int group, int group_inverse, int max_pages, int page_units, int window, int num_items, int page_rows,
                 int head_rows, long long query_stride, float score_scale) {
    using namespace headrace;
    extern __shared__ __align__(1024) unsigned char memory[];
    const Args args{out,   query,         values,    page_table, plan,   cosines,   sines,     num_kv_heads,
                    group, group_inverse, max_pages, page_units, window, num_items, page_rows, head_rows,
                    query_stride, score_scale};
    const Shared shared{shared_address(memory)};
    Item* const items = reinterpret_cast<Item*>(memory + Shared::FIRST_ITEM);
    // The compiler cannot know it of a thread's number.
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0);
    shared.init_barriers();
    if (threadIdx.x == 0) prefetch_map(keys), prefetch_map(value_map);
    barrier_init_fence();
    __syncthreads();
    let_next_kernel_start();
    if (warp >= TEAM_WARPS * GROUPS) {
        leave_registers<LEFT>();
        wait_for_earlier_kernels();
        const int task = warp - TEAM_WARPS * GROUPS;
        if (task == 0) feed_keys(args, shared, items, keys);
        else if (task == 1) feed_values(args, shared, items, value_map);
        else bring_queries(args, shared, items, task - 2);
    } else {
        take_registers<TAKEN>();
        wait_for_earlier_kernels();
        Team team{args, shared, warp / TEAM_WARPS};
        team.attend(items);
    }
}
