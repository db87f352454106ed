// y = x W^T for few rows x: reads the weight once, at the memory's speed.
//
//   x [m, k], weight [n, k], y [m, n]; rows contiguous, elements T, sums fp32.
//
// The blocks walk over the weight's rows, a tile of TILE rows each at a time (thin_ring.cuh). A producer warp keeps a ring
// of STAGES pieces [TILE rows x PIECE columns] filled by the bulk copy engine, across the tiles' borders, so that memory
// never waits for arithmetic. Each consumer warp takes every WARPS-th group of 32 columns of a piece to the tensor
// cores, the weight's rows as the product's 16 rows and x's rows as its 8 columns; at the end of a tile the warps' sums
// are added up through shared memory, in the warps' order, so that a result does not depend on timing.
//
// A lane reads 8 consecutive columns by one 16-byte load, of the weight and of x alike, and gives them to two products
// as if they were columns 2t, 2t + 1, 2t + 8, 2t + 9: a sum over columns does not mind their order. The rows' pitch is
// 64 bytes more than a multiple of 128, so that the 8 lanes that are served together use different banks.
//
// A warp's columns and their order depend on WARPS alone: a token's result has the same bits whatever tokens are beside
// it, and whatever the other constants.
//
// X_IN_SHARED: the block keeps all of x, and begins when the first piece of it is there; otherwise lanes fetch their
// parts of x from the second-level cache piece by piece, before they wait for the weight's piece.
// NORMED: x is normed on its way into shared memory (thin_norm.cuh).
// DEALT: the last tiles go to whichever block comes first.
// GATED: the weight's rows alternate, gate and up, and y [m, n / 2] is silu(gate) * up of the rounded sums.
#include "logistic.cuh"
#include "named_barrier.cuh"
#include "tensor_core.cuh"
#include "thin_ring.cuh"
#if NORMED
#include "thin_norm.cuh"
#endif

namespace headrace {

constexpr int CONSUMERS = WARPS * WARP;
constexpr int BARRIER_BYTES = 512, X_PIECES = WARP;
constexpr int GROUP_COLUMNS = 32;
constexpr int GROUPS = PIECE / GROUP_COLUMNS / WARPS;  // a warp's, of a whole piece
constexpr int ROW_TILES = (TILE + 15) / 16;
constexpr int SUMS = ROW_TILES * TOKEN_TILES * 4 * WARP;  // a warp's, floats
static_assert(PIECE % (GROUP_COLUMNS * WARPS) == 0 && (TILE == 8 || TILE % 16 == 0) && TILE <= WARP);
static_assert(((2 + DEALT) * STAGES + X_PIECES) * 8 <= BARRIER_BYTES);

// Two sums of each, so that a product need not wait for the one before it.
using Sums = float[2][ROW_TILES][TOKEN_TILES][4];

// The lane's parts of 32 columns of the weight's tile, at ``address`` in a stage.
__device__ __forceinline__ void read_weight(uint4 (&weight)[ROW_TILES][2], uint32_t address) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        weight[r][0] = read_shared(address + r * 16 * PITCH);
        weight[r][1] = TILE == 8 ? make_uint4(0, 0, 0, 0) : read_shared(address + (r * 16 + 8) * PITCH);
    }
}

__device__ __forceinline__ void multiply(Sums& sums, const uint4 (&weight)[ROW_TILES][2],
                                         const uint4 (&x)[TOKEN_TILES]) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        const uint4 &top = weight[r][0], &bottom = weight[r][1];
        const uint32_t first[4] = {top.x, bottom.x, top.y, bottom.y}, second[4] = {top.z, bottom.z, top.w, bottom.w};
#pragma unroll
        for (int c = 0; c < TOKEN_TILES; c++) {
            multiply_add<DTYPE>(sums[0][r][c], first, x[c].x, x[c].y);
            multiply_add<DTYPE>(sums[1][r][c], second, x[c].z, x[c].w);
        }
    }
}

__device__ __forceinline__ uint4 zero_unless(bool wanted, uint4 value) {
    return wanted ? value : make_uint4(0, 0, 0, 0);
}

// Asks for all of x, a piece after the other; ``x_full`` tells of each when it is there.
__device__ __forceinline__ void fetch_x(const DTYPE* x, int m, int k, long long x_stride, uint32_t x_at, int x_pitch,
                                        uint32_t x_full) {
    const uint64_t policy = evict_last_policy();
    for (int begin = 0, i = 0; begin < k; begin += PIECE, i++) {
        for (int at = threadIdx.x * 8; at < PIECE * m; at += CONSUMERS * 8) {
            const int token = at / PIECE, column = begin + at % PIECE;
            if (column < k) copy_16_bytes(x_at + token * x_pitch + column * 2, x + token * x_stride + column, 16, policy);
        }
        barrier_arrive_when_copied(x_full + i * 8);
    }
}

struct Lane {
    int warp, row, part;  // row of the tile and token of x (g), which 8 of 32 columns (t)
};

// One piece of one tile. ``x`` is where this lane's token's row stands: in shared memory, or (x_row) in global.
template <bool WHOLE>
__device__ __forceinline__ void consume(Sums& sums, const Lane& at, uint32_t stage,
                                        const uint32_t (&x_shared)[TOKEN_TILES],
                                        const DTYPE* const (&x_global)[TOKEN_TILES], int column, int k, uint32_t full,
                                        uint32_t phase) {
    const uint32_t tile = stage + at.row * PITCH;
#if X_IN_SHARED
    barrier_wait(full, phase);
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        const int inner = (i * WARPS + at.warp) * GROUP_COLUMNS + at.part * 8;
        const bool wanted = WHOLE || column + inner < k;
        if (!WHOLE && column + inner - at.part * 8 >= k) break;
        uint4 x[TOKEN_TILES], weight[ROW_TILES][2];
#pragma unroll
        for (int c = 0; c < TOKEN_TILES; c++)
            x[c] = zero_unless(wanted, read_shared(x_shared[c] + (column + inner) * 2));
        read_weight(weight, tile + inner * 2);
        if (!WHOLE) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
                for (int h = 0; h < 2; h++) weight[r][h] = zero_unless(wanted, weight[r][h]);
        }
        multiply(sums, weight, x);
    }
#else
    uint4 x[GROUPS][TOKEN_TILES];
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        const int from = column + (i * WARPS + at.warp) * GROUP_COLUMNS + at.part * 8;
#pragma unroll
        for (int c = 0; c < TOKEN_TILES; c++)
            x[i][c] = WHOLE || from < k ? *reinterpret_cast<const uint4*>(x_global[c] + from)
                                        : make_uint4(0, 0, 0, 0);
    }
    barrier_wait(full, phase);
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        const int inner = (i * WARPS + at.warp) * GROUP_COLUMNS + at.part * 8;
        const bool wanted = WHOLE || column + inner < k;
        uint4 weight[ROW_TILES][2];
        read_weight(weight, tile + inner * 2);
        if (!WHOLE) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
                for (int h = 0; h < 2; h++) weight[r][h] = zero_unless(wanted, weight[r][h]);
        }
        multiply(sums, weight, x[i]);
    }
#endif
}

// The sum over all columns for a row of the tile and a token, of the warps' own sums in their order.
__device__ __forceinline__ float warps_sum(const float* scratch, int inner, int token) {
    // Where the product's layout keeps it (tensor_core.cuh).
    const int at = (((inner / 16) * TOKEN_TILES + token / 8) * WARP + (inner % 8) * 4 + (token % 8) / 2) * 4 +
                   (inner / 8 % 2) * 2 + token % 2;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += scratch[w * SUMS + at];
    return sum;
}

// Adds up the warps' sums and writes the tile of y.
__device__ __forceinline__ void finish(DTYPE* y, float* scratch, const Sums& sums,
                                       const DTYPE* bias, const DTYPE* residual, int m, int row, int num_rows,
                                       long long y_stride, long long residual_stride) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int c = 0; c < TOKEN_TILES; c++)
            *reinterpret_cast<float4*>(scratch + warp * SUMS + ((r * TOKEN_TILES + c) * WARP + lane) * 4) =
                make_float4(sums[0][r][c][0] + sums[1][r][c][0], sums[0][r][c][1] + sums[1][r][c][1],
                            sums[0][r][c][2] + sums[1][r][c][2], sums[0][r][c][3] + sums[1][r][c][3]);
    some_meet<CONSUMERS>();
#if GATED
    for (int i = threadIdx.x; i < TILE / 2 * m; i += CONSUMERS) {
        const int inner = i % (TILE / 2) * 2, token = i / (TILE / 2);
        if (inner >= num_rows) continue;
        float gate = warps_sum(scratch, inner, token), up = warps_sum(scratch, inner + 1, token);
        if (bias) gate += to_float(bias[row + inner]), up += to_float(bias[row + inner + 1]);
        gate = rounded<DTYPE>(gate);
        y[token * y_stride + (row + inner) / 2] = from_float<DTYPE>(gate * logistic<DTYPE>(gate) * rounded<DTYPE>(up));
    }
#else
    for (int i = threadIdx.x; i < TILE * m; i += CONSUMERS) {
        const int inner = i % TILE, token = i / TILE;
        if (inner >= num_rows) continue;
        float sum = warps_sum(scratch, inner, token);
        if (bias) sum += to_float(bias[row + inner]);
        if (residual) sum = rounded<DTYPE>(sum) + to_float(residual[token * residual_stride + row + inner]);
        y[token * y_stride + row + inner] = from_float<DTYPE>(sum);
    }
#endif
}

}  // namespace headrace

extern "C" __global__ void __launch_bounds__((WARPS + 1) * 32, 1)
    thin_product(DTYPE* y, const DTYPE* x, const DTYPE* weight, const DTYPE* bias, const DTYPE* residual, int m, int n,
                 int k, long long y_stride, long long x_stride, long long weight_stride, long long residual_stride,
                 int x_pitch, int num_tiles, int last_rows, unsigned* counter, unsigned last_ticket, const DTYPE* norm,
                 float eps) {
    using namespace headrace;
    extern __shared__ __align__(128) unsigned char memory[];
    // full [STAGES], empty [STAGES], tiles [STAGES], x_full [X_PIECES]; two scratches, the ring, x
    float* scratch = reinterpret_cast<float*>(memory + BARRIER_BYTES);
    const Ring ring(memory, shared_address(scratch) + 2 * WARPS * SUMS * 4);
    const uint32_t x_full = ring.full + BARRIER_BYTES - X_PIECES * 8, x_at = ring.stages + STAGES * STAGE_BYTES;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const Rows rows{n, num_tiles, last_rows, counter, last_ticket};
    if (warp == WARPS) {
        if (lane < STAGES) barrier_init(ring.full + lane * 8, 1), barrier_init(ring.empty + lane * 8, CONSUMERS);
        if (X_IN_SHARED && !NORMED && lane * PIECE < k) barrier_init(x_full + lane * 8, CONSUMERS);
        barrier_init_fence();
    }
    __syncthreads();
    let_next_kernel_start();
    if (warp == WARPS) {
        // The weight is never written by a kernel: its copies need not wait for earlier ones.
        produce(ring, weight, rows, k, weight_stride);
        return;
    }
#if NORMED
    const NormedX normed(m, k, norm);
#endif
    wait_for_earlier_kernels();
    const Lane at{warp, lane / 4, lane % 4};
    uint32_t x_shared[TOKEN_TILES];
    const DTYPE* x_global[TOKEN_TILES];
#pragma unroll
    for (int c = 0; c < TOKEN_TILES; c++) {
        // Columns beyond x's rows get its last row: what they hold is never written.
        const int token = min(c * 8 + at.row, m - 1);
        x_shared[c] = x_at + token * x_pitch;
        x_global[c] = x + token * x_stride;
    }
#if NORMED
    normed.make(x, x_stride, eps, x_at, x_pitch, scratch);
#else
    if (X_IN_SHARED) fetch_x(x, m, k, x_stride, x_at, x_pitch, x_full);
#endif
    int stage = 0, phase = 0, half = 0;
    for (int number = 0;; number++) {
        const Tile tile = ring.tile(rows, number, stage, phase);
        if (tile.num_rows == 0) return;
        Sums sums = {};
        for (int column = 0; column < k; column += PIECE) {
            const uint32_t piece = ring.stages + stage * STAGE_BYTES, full = ring.full + stage * 8;
            if (X_IN_SHARED && !NORMED && number == 0) barrier_wait(x_full + column / PIECE * 8, 0);
            if (k - column >= PIECE) consume<true>(sums, at, piece, x_shared, x_global, column, k, full, phase);
            else consume<false>(sums, at, piece, x_shared, x_global, column, k, full, phase);
            // Every lane for itself: one lane for its warp would do, but racecheck cannot follow that.
            barrier_arrive(ring.empty + stage * 8);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
        finish(y, scratch + half * WARPS * SUMS, sums, bias, residual, m, tile.row, tile.num_rows, y_stride,
               residual_stride);
        half ^= 1;
    }
}
