// y = x W^T for more rows x than the thin product takes and fewer than make a product of matrices: reads the weight
// once, at the memory's speed, and does in the same kernel what follows on the product.
//
//   x [m, k], weight [n, k], both by tensor maps; y [m, n], rows contiguous, n a multiple of 8; sums fp32.
//
// A block has TILE rows of the weight and all rows of x. One thread keeps a ring of stages filled by the bulk copy
// engine, each a panel of 64 columns of both (128 bytes a row, swizzled), and the first pieces of the weight, which no
// kernel writes, are asked for before earlier kernels have ended. Each of GROUPS groups of four warps takes 64 rows of x
// to the tensor cores, with the weight's rows as the columns of the product: what a lane holds of a token lies
// side by side in memory, and a gate beside its up. Rows of x beyond the last are whatever lies behind them in
// shared memory; their sums are never looked at.
//
// Every block reads all of x, so tall tiles are better than low ones, and the columns are shared by SPLITS blocks of a
// cluster where there would be too few of them: these add their sums up through each other's shared memory, in the
// blocks' order, so that a result does not depend on timing. It has the same bits whatever tokens are beside it, and
// whatever the other constants are.
//
// GATED: the weight's rows alternate, gate and up, and y [m, n / 2] is silu(gate) * up of the rounded sums.
// Macros: DTYPE, TILE, SPLITS, GROUPS, GATED.
#define HEAD_DIM 64  // of panels.cuh: panels of 64 columns
#define WARPGROUPS 1
#include "meeting.cuh"
#include "middle_result.cuh"
#include "middle_ring.cuh"
#include "panel_step.cuh"

namespace headrace {

constexpr int GROUP_TOKENS = 64, CONSUMERS = GROUPS * 4 * WARP;
constexpr int BARRIER_BYTES = 1024, MOST_STAGES = 60;
static_assert(TILE % 8 == 0 && TILE <= 256 && (GROUPS == 1 || GROUPS == 2) && PANEL_BYTES == 128);

template <bool ADD>
__device__ __forceinline__ void multiply_stage(float (&sums)[TILE / 2], const Ring& ring, int stage, int first_token) {
    const Matrix x = rows_matrix(ring.x(stage) + first_token * PANEL_BYTES);
    multiply_step<DTYPE, ADD, TILE>(sums, x, rows_matrix(ring.weight(stage)));
}

__device__ __forceinline__ void consume(const Ring& ring, const Way& way, const Meeting& meeting, const Result& to) {
    // The same in all lanes, which the compiler cannot know of a thread's number.
    const int warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0), lane = threadIdx.x % WARP;
    const int first_token = warp / 4 * GROUP_TOKENS;
    const bool has_tokens = first_token + warp % 4 * 16 < to.m;
    int stage = 0, phase = 0, before = 0;
    const auto next = [&] {
        before = stage;
        if (++stage == ring.num_stages) stage = 0, phase ^= 1;
    };
    for (int tile = way.tile; tile < way.num_tiles; tile += way.stride) {
        float sums[TILE / 2];
        barrier_wait(ring.full + stage * 8, phase);
        multiply_stage<false>(sums, ring, stage, first_token);
        next();
#pragma unroll 1
        for (int step = way.first_step + 1; step < way.last_step; step++) {
            barrier_wait(ring.full + stage * 8, phase);
            multiply_stage<true>(sums, ring, stage, first_token);
            wait_for_products<1>();
            if (lane == 0) barrier_arrive(ring.empty + before * 8);
            next();
        }
        wait_for_products(sums);
        if (lane == 0) barrier_arrive(ring.empty + before * 8);
        const int first_row = tile * TILE, end = min(first_row + TILE, to.n);
#if SPLITS > 1
        wait_for_cluster();
#endif
        if (!has_tokens) continue;
#if SPLITS > 1
        meeting.send(sums);
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
            finish(to, some, first_row + 32 * four, end, first_token + warp % 4 * 16 + thread_index() % WARP / 4);
        }
    }
}

}  // namespace headrace

extern "C" __global__ void __launch_bounds__(GROUPS * 128 + 32, 1)
#if SPLITS > 1
    __cluster_dims__(SPLITS, 1, 1)
#endif
        middle_product(DTYPE* y, const DTYPE* bias, const DTYPE* residual, long long y_stride, long long residual_stride,
                       int m, int n, const __grid_constant__ headrace::TensorMap weight,
                       const __grid_constant__ headrace::TensorMap x, int num_steps, int num_tiles, int num_stages,
                       int x_rows) {
    using namespace headrace;
    // full [num_stages], empty [num_stages], arrived; the ring; the other blocks' sums
    extern __shared__ __align__(1024) unsigned char memory[];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, x_bytes = x_rows * PANEL_BYTES;
    const uint32_t full = shared_address(memory), empty = full + MOST_STAGES * 8, stages = full + BARRIER_BYTES;
    const Ring ring{full, empty, stages, num_stages, x_bytes, x_bytes + TILE * PANEL_BYTES};
    const Meeting meeting{empty + MOST_STAGES * 8, stages + num_stages * ring.stage_bytes, (m + 15) / 16 * WARP,
                          SPLITS == 1 ? 0 : static_cast<int>(cluster_rank()), 0};
    const Way way(num_steps, num_tiles, meeting.rank);
    // By all warps: an initialisation takes long, and the first copy waits for them all.
    for (int stage = warp; lane == 0 && stage < num_stages; stage += CONSUMERS / WARP + 1) {
        barrier_init(full + stage * 8, 1);
        barrier_init(empty + stage * 8, CONSUMERS / WARP);
    }
    if (threadIdx.x == CONSUMERS) prefetch_map(weight), prefetch_map(x);
    if (SPLITS > 1 && threadIdx.x == 0) barrier_init(meeting.arrived, 1);
    barrier_init_fence();
    __syncthreads();
#if SPLITS > 1
    if (threadIdx.x == 0) meeting.expect();
    __syncwarp();
    tell_cluster();
#endif
    let_next_kernel_start();
    if (warp == CONSUMERS / WARP) {
        if (lane == 0) produce(ring, weight, x, way);
#if SPLITS > 1
        __syncwarp();
        wait_for_cluster();
#endif
        return;
    }
    wait_for_earlier_kernels();
    consume(ring, way, meeting, Result{y, bias, residual, m, n, y_stride, residual_stride});
}
