// y = x W^T (+ bias), summed in one order whatever the number of rows of x: a row's result has the same bits alone, beside
// any others, and in a block of any size.
//
//   x [m, k], weight [n, k], bias [n] or null, y [m, n]; rows contiguous, 16-bit elements T, sums fp32; k a multiple of 8.
//
// A block computes BLOCK_TOKENS x BLOCK_OUTPUTS of y, a warp a part of that. Every element's sum is one chain: columns
// come in order, 16 at a time, by the same instruction, and nothing is summed up in parts and added later. What a block
// does not have (rows behind the last, columns behind the last) is zeros. So the macros decide about speed alone.
//
// A tile's rows are BLOCK_COLUMNS columns, 128 bytes in shared memory, whose pieces of 16 bytes are permuted by the row,
// so that 8 rows of a matrix instruction lie in different banks. STAGES tiles are in shared memory, all but one of them on their way.
//
// Macros: DTYPE, BLOCK_TOKENS, BLOCK_OUTPUTS, TOKEN_WARPS and OUTPUT_WARPS (of a block, along each), STAGES, BLOCKS.
#include "common.cuh"
#include "copy_async.cuh"
#include "tensor_core.cuh"

namespace headrace {

constexpr int BLOCK_COLUMNS = 64, ROW_BYTES = BLOCK_COLUMNS * 2, PIECES = ROW_BYTES / 16;
constexpr int THREADS = TOKEN_WARPS * OUTPUT_WARPS * WARP;
constexpr int X_BYTES = BLOCK_TOKENS * ROW_BYTES, WEIGHT_BYTES = BLOCK_OUTPUTS * ROW_BYTES;
constexpr int STAGE_BYTES = X_BYTES + WEIGHT_BYTES;
constexpr int TOKEN_TILES = BLOCK_TOKENS / TOKEN_WARPS / 16, OUTPUT_PAIRS = BLOCK_OUTPUTS / OUTPUT_WARPS / 16;
constexpr int GROUP = 8;  // blocks that follow each other go down so many tiles of tokens, and share tiles of the weight
static_assert(TOKEN_TILES * 16 * TOKEN_WARPS == BLOCK_TOKENS && OUTPUT_PAIRS * 16 * OUTPUT_WARPS == BLOCK_OUTPUTS);
static_assert(BLOCK_TOKENS * PIECES % THREADS == 0 && BLOCK_OUTPUTS * PIECES % THREADS == 0);

__device__ __forceinline__ uint32_t piece_at(uint32_t tile, int row, int piece) {
    return tile + row * ROW_BYTES + ((piece ^ (row & 7)) << 4);
}

// Columns ``column`` to ``column + 63`` of rows ``first`` on, zeros where there are none.
template <int ROWS>
__device__ __forceinline__ void fetch(uint32_t tile, const DTYPE* from, int first, int num_rows, int column, int k,
                                      long long stride) {
#pragma unroll
    for (int i = 0; i < ROWS * PIECES / THREADS; i++) {
        const int at = threadIdx.x + i * THREADS, row = at / PIECES, piece = at % PIECES;
        const int begin = column + piece * 8;
        const bool is_there = first + row < num_rows && begin < k;
        const DTYPE* source = is_there ? from + static_cast<long long>(first + row) * stride + begin : from;
        copy_16_bytes(piece_at(tile, row, piece), source, is_there ? 16 : 0);
    }
}

struct Sums {
    float at[TOKEN_TILES][2 * OUTPUT_PAIRS][4];

    __device__ __forceinline__ void add(uint32_t x, uint32_t weight, int token, int output) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int step = 0; step < BLOCK_COLUMNS / 16; step++) {
            uint32_t a[TOKEN_TILES][4], b[OUTPUT_PAIRS][4];
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++)
                load_matrices(a[i], piece_at(x, token + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < OUTPUT_PAIRS; j++)
                load_matrices(b[j], piece_at(weight, output + j * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
                for (int j = 0; j < OUTPUT_PAIRS; j++) {
                    multiply_add<DTYPE>(at[i][2 * j], a[i], b[j][0], b[j][1]);
                    multiply_add<DTYPE>(at[i][2 * j + 1], a[i], b[j][2], b[j][3]);
                }
        }
    }

    // ``token`` and ``output``: the lane's first ones.
    __device__ __forceinline__ void write(DTYPE* y, const DTYPE* bias, int token, int output, int m, int n,
                                          long long stride) const {
        const bool in_pairs = n % 2 == 0 && stride % 2 == 0;
#pragma unroll
        for (int i = 0; i < TOKEN_TILES; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = token + i * 16 + half * 8;
                if (row >= m) continue;
                DTYPE* to = y + static_cast<long long>(row) * stride;
#pragma unroll
                for (int j = 0; j < 2 * OUTPUT_PAIRS; j++) {
                    const int column = output + j * 8;
                    if (column >= n) continue;
                    float low = at[i][j][2 * half], high = at[i][j][2 * half + 1];
                    if (bias) {
                        low += to_float(bias[column]);
                        if (column + 1 < n) high += to_float(bias[column + 1]);
                    }
                    if (in_pairs) {
                        *reinterpret_cast<uint32_t*>(to + column) = pack<DTYPE>(low, high);
                    } else {
                        to[column] = from_float<DTYPE>(low);
                        if (column + 1 < n) to[column + 1] = from_float<DTYPE>(high);
                    }
                }
            }
    }
};

}  // namespace headrace

extern "C" __global__ void __launch_bounds__(TOKEN_WARPS* OUTPUT_WARPS * 32, BLOCKS)
    fixed_product(DTYPE* y, const DTYPE* x, const DTYPE* weight, const DTYPE* bias, int m, int n, int k,
                  long long y_stride, long long x_stride, long long weight_stride) {
    using namespace headrace;
    extern __shared__ __align__(128) unsigned char memory[];
    const uint32_t ring = shared_address(memory);
    const int token_blocks = (m + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    const int output_blocks = (n + BLOCK_OUTPUTS - 1) / BLOCK_OUTPUTS;
    const int group = blockIdx.x / (GROUP * output_blocks), in_group = blockIdx.x % (GROUP * output_blocks);
    const int height = min(GROUP, token_blocks - group * GROUP);
    const int first_token = (group * GROUP + in_group % height) * BLOCK_TOKENS;
    const int first_output = in_group / height * BLOCK_OUTPUTS;
    const int num_tiles = (k + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;

    const auto fetch_x = [&](int tile) {
        if (tile < num_tiles)
            fetch<BLOCK_TOKENS>(ring + tile % STAGES * STAGE_BYTES, x, first_token, m, tile * BLOCK_COLUMNS, k, x_stride);
    };
    const auto fetch_weight = [&](int tile) {
        if (tile < num_tiles)
            fetch<BLOCK_OUTPUTS>(ring + tile % STAGES * STAGE_BYTES + X_BYTES, weight, first_output, n,
                                 tile * BLOCK_COLUMNS, k, weight_stride);
    };

    let_next_kernel_start();
    // No kernel of a step writes a weight: it may come before the kernel that writes x has ended.
#pragma unroll
    for (int tile = 0; tile < STAGES - 1; tile++) fetch_weight(tile);
    wait_for_earlier_kernels();
#pragma unroll
    for (int tile = 0; tile < STAGES - 1; tile++) {
        fetch_x(tile);
        commit_copies();
    }
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int token = warp / OUTPUT_WARPS * TOKEN_TILES * 16, output = warp % OUTPUT_WARPS * OUTPUT_PAIRS * 16;
    Sums sums{};
    for (int tile = 0; tile < num_tiles; tile++) {
        wait_for_copies<STAGES - 2>();
        // The tile has come for all threads, and none reads the one before it any more.
        __syncthreads();
        fetch_x(tile + STAGES - 1);
        fetch_weight(tile + STAGES - 1);
        commit_copies();
        const uint32_t stage = ring + tile % STAGES * STAGE_BYTES;
        sums.add(stage, stage + X_BYTES, token, output);
    }
    sums.write(y, bias, first_token + token + lane / 4, first_output + output + lane % 4 * 2, m, n, y_stride);
}
