// y = x W^T for more rows x than the middle product takes: so few that cuBLAS's tiles do not come out even, or so many
// that gates and ups are better never written. The tensor cores are the limit, or the way from the second-level cache to
// them, or the power that they take.
//
//   x [m, k], weight [n, k], both by tensor maps; y [m, n], rows contiguous, n a multiple of 8; sums fp32.
//
// A block has TILE rows of the weight, so many that the tiles fill whole rounds of the multiprocessors, and as many rows
// of x as its neighbours, 64 for each of GROUPS groups of four warps at most: the copy engine takes its time for rows
// beyond the last. The weight's rows are the columns of a product, as in
// middle_product.cu. Blocks of a cluster share what they read (wide_ring.cuh), and the columns where SPLITS is more
// than one: then the ring's memory takes each other's sums (meeting.cuh). A result has the same bits whatever tokens
// are beside it, and whatever the other constants are.
//
// OVERLAPS (default 0): a tile is written while the next one is begun (wide_overlap.cuh); of two groups, and SPLITS 1.
// GATED: the weight's rows alternate, gate and up, and y [m, n / 2] is silu(gate) * up of the rounded sums.
// Macros: DTYPE, TILE, GROUPS, TOKEN_BLOCKS, SPLITS, OVERLAPS, GATED.
#define HEAD_DIM 64  // of panels.cuh: panels of 64 columns
#define WARPGROUPS 1
#define WIDEST_PANEL (GROUPS < 3 ? 256 : 128)
#define SPACING TOKEN_BLOCKS
#ifndef OVERLAPS
#define OVERLAPS 0
#endif
#include "meeting.cuh"
#include "middle_result.cuh"
#include "registers.cuh"
#include "wide_steps.cuh"
#if OVERLAPS
#include "wide_overlap.cuh"
#endif

namespace headrace {

constexpr int BARRIER_BYTES = 1024, MOST_STAGES = 60;
// A launch may ask for too few registers for tall tiles of three groups, or for two tiles at once. Then four warps come
// to fill the ring, one of them does, and all of them leave theirs to the groups: no more than a launch gives to all of
// its threads.
constexpr bool TRADES = GROUPS == 3 || OVERLAPS;
constexpr int FILLING_WARPS = TRADES ? 4 : 1;
constexpr int TAKEN = GROUPS == 3 ? 152 : 240, LEFT = GROUPS == 3 ? 56 : 24, GIVEN = GROUPS == 3 ? 128 : 168;
static_assert(!TRADES || GROUPS * TAKEN + LEFT <= (GROUPS + 1) * GIVEN && 4 * (GROUPS + 1) * WARP * GIVEN <= 1 << 16);
static_assert(TILE % 8 == 0 && TILE <= 256 && GROUPS <= 3);
static_assert(!OVERLAPS || GROUPS == 2 && SPLITS == 1 && TILE % 32 == 0);

__device__ __forceinline__ void consume(Steps steps, Way way, const Meeting& meeting, Result to) {
    const int lane = threadIdx.x % WARP, num_tokens = to.m;
    for (; !way.ended(); way.next_tile()) {
        float sums[TILE / 2];
        steps.multiply<false>(sums);
        steps.next();
#pragma unroll 1
        for (int step = way.first_step + 1; step < way.last_step; step++) {
            steps.multiply<true>(sums);
            wait_for_products<1>();
            steps.release();
            steps.next();
        }
        wait_for_products(sums);
        steps.release();
        const int first_row = way.tile * TILE, end = min(first_row + TILE, to.n);
        const int own_token = way.tokens * steps.ring.x_rows + steps.first_token + steps.warp % 4 * 16;
        to.m = min(num_tokens, (way.tokens + 1) * steps.ring.x_rows);
#if SPLITS > 1
        meet_cluster();  // nobody reads the ring any more
        if (own_token < to.m) meeting.send(sums);
#endif
        if (own_token >= to.m) continue;
#if SPLITS > 1
        barrier_wait(meeting.arrived, 0);
#endif
#pragma unroll
        for (int four = 0; four < FOURS; four++) {
            if (SPLITS > 1 && four % SPLITS != meeting.rank) continue;
            float some[4][4] = {};
#pragma unroll
            for (int i = 0; i < 4 && 4 * four + i < EIGHTS; i++) {
                const float* own = sums + (4 * four + i) * 4;
#if SPLITS > 1
                meeting.add(some[i], own, 4 * four + i);
#else
                for (int e = 0; e < 4; e++) some[i][e] = own[e];
#endif
            }
            finish(to, some, first_row + 32 * four, end, own_token + lane / 4);
        }
    }
}

}  // namespace headrace

extern "C" __global__ void __launch_bounds__(headrace::CONSUMERS + headrace::FILLING_WARPS * headrace::WARP, 1)
    __cluster_dims__(TOKEN_BLOCKS * SPLITS, 1, 1)
        wide_product(DTYPE* y, const DTYPE* bias, const DTYPE* residual, long long y_stride, long long residual_stride,
                     int m, int n, const __grid_constant__ headrace::TensorMap weight,
                     const __grid_constant__ headrace::TensorMap x, int num_steps, int num_tiles, int num_token_tiles,
                     int band, int num_stages, int x_rows) {
    using namespace headrace;
    // full [MOST_STAGES], empty [MOST_STAGES], arrived; the ring, or the other blocks' sums
    extern __shared__ __align__(1024) unsigned char memory[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t full = shared_address(memory), empty = full + MOST_STAGES * 8, stages = full + BARRIER_BYTES;
    const Ring ring{full, empty, stages, num_stages, x_rows};
    const Place at(CLUSTER == 1 ? 0 : static_cast<int>(cluster_rank()));
    const Way way({num_steps, num_tiles, num_token_tiles, band}, at);
    const int own_tokens = max(min(m - at.tokens * x_rows, x_rows), 0);  // where columns are shared: of one tile
    const Meeting meeting{empty + MOST_STAGES * 8, stages, (own_tokens + 15) / 16 * WARP, at.split,
                          at.tokens};
    // By all warps: an initialisation takes long, and the first copy waits for them all.
    for (int stage = warp; lane == 0 && stage < num_stages; stage += CONSUMERS / WARP + 1) {
        barrier_init(full + stage * 8, 1);
        barrier_init(empty + stage * 8, TOKEN_BLOCKS * CONSUMERS / WARP);
    }
    if (threadIdx.x == CONSUMERS) prefetch_map(weight), prefetch_map(x);
    if (SPLITS > 1 && threadIdx.x == 0) barrier_init(meeting.arrived, 1);
    barrier_init_fence();
    __syncthreads();
#if SPLITS > 1
    if (threadIdx.x == 0) meeting.expect();
    __syncwarp();
#endif
    if constexpr (CLUSTER > 1) tell_cluster();
    let_next_kernel_start();
    // Others' copies arrive at barriers that are there.
    if constexpr (CLUSTER > 1) wait_for_cluster();
    if (warp >= CONSUMERS / WARP) {
        if constexpr (TRADES) leave_registers<LEFT>();
        if (threadIdx.x == CONSUMERS) produce(ring, weight, x, way);
        __syncwarp();
        if constexpr (SPLITS > 1) meet_cluster();
    } else {
        if constexpr (TRADES) take_registers<TAKEN>();
        wait_for_earlier_kernels();
        const Steps steps(ring, at);
        const Result to{y, bias, residual, m, n, y_stride, residual_stride};
#if OVERLAPS
        consume_overlapping(steps, way, to);
#else
        consume(steps, way, meeting, to);
#endif
        __syncwarp();
    }
    // A block stays until nobody tells its barriers anything any more.
    if constexpr (CLUSTER > 1 && SPLITS == 1) tell_cluster(), wait_for_cluster();
}
