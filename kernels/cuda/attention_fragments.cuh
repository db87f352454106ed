// The running softmax of a block's rows over tiles of BLOCK_KEYS keys and values in shared memory: on the tensor cores.
//
// A warp has ROW_TILES * 16 rows for itself, all keys and all numbers of a head: no sum is shared between warps. Every
// fragment of keys and values is used for all of its rows, which decides how much shared memory must be read. Where
// WARPGROUPS is set (sm_90a), four warps multiply together, and fragments never leave shared memory.
//
// Which keys a row sees, and where its result goes, is the affair of the kernel.
#pragma once

#include "head_tiles.cuh"
#include "tensor_core.cuh"

namespace headrace {

// Lane l, with g = l / 4 and t = l % 4, has scores and sums of rows 16 m + g and 16 m + 8 + g.
struct TileSoftmax {
    static constexpr int STEPS = HEAD_DIM / 16, KEY_TILES = BLOCK_KEYS / 16, WARP_ROWS = ROW_TILES * 16;
    static constexpr int TEAM_ROWS = WARPGROUPS ? 4 * WARP_ROWS : WARP_ROWS;  // of warps that multiply together
    // A row's reference for exponents follows its greatest score at this distance (in powers of two): weights stay far
    // from overflow, and sums are rarely scaled. Each row decides for itself, so that it does not depend on others.
    static constexpr float SLACK = 8;
    static_assert(BLOCK_ROWS == WARPS * WARP_ROWS && (!WARPGROUPS || (ROW_TILES == 1 && BLOCK_KEYS == 64)));

    using Scores = float[ROW_TILES][2 * KEY_TILES][4];
    using Factors = float[ROW_TILES][2];

    float sums[ROW_TILES][2 * STEPS][4];
    float most[ROW_TILES][2], weight[ROW_TILES][2];  // scaled reference; weight: of this lane's keys

    // The warp's.
    static __device__ __forceinline__ int first_row() { return thread_index() / WARP * WARP_ROWS; }

    __device__ __forceinline__ TileSoftmax() {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
#pragma unroll
            for (int h = 0; h < 2; h++) most[m][h] = -INFINITY, weight[m][h] = 0;
#pragma unroll
            for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[m][n][i] = 0;
        }
    }

#if WARPGROUPS
    __device__ __forceinline__ void multiply_keys(Scores& score, uint32_t query, uint32_t keys) const {
        const int team_row = __shfl_sync(ALL_LANES, first_row() / TEAM_ROWS * TEAM_ROWS, 0);
        const Matrix a = rows_matrix(query + team_row * PANEL_BYTES), b = rows_matrix(keys);
        auto& results = reinterpret_cast<float(&)[8 * KEY_TILES]>(score);
        begin_products();
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const int panel = s * 32 / PANEL_BYTES * PANEL_BYTES, column = s * 32 % PANEL_BYTES;
            multiply_rows<DTYPE>(results, moved(a, panel * BLOCK_ROWS + column),
                                 moved(b, panel * BLOCK_KEYS + column), s > 0);
        }
        finish_products(results);
    }

    __device__ __forceinline__ void add_values(const Scores& score, uint32_t values) {
        const Matrix b = columns_matrix(values, BLOCK_KEYS * PANEL_BYTES);
        uint32_t weights[KEY_TILES][4];
#pragma unroll
        for (int k = 0; k < KEY_TILES; k++) pack_weights(weights[k], score[0], k);
        auto& results = reinterpret_cast<float(&)[8 * STEPS]>(sums);
        begin_products();
#pragma unroll
        for (int k = 0; k < KEY_TILES; k++)
            multiply_columns<DTYPE>(results, weights[k], moved(b, k * 16 * PANEL_BYTES));
        finish_products(results);
        keep(weights);
    }
#else
    __device__ __forceinline__ void multiply_keys(Scores& score, uint32_t query, uint32_t keys) const {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < 2 * KEY_TILES; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) score[m][n][i] = 0;
        const int lane = thread_index() % WARP;
        const int row = lane % 16, row_column = lane / 16 * 16;
        const int key = lane % 8 + lane / 16 * 8, key_column = lane / 8 % 2 * 16;
        query += (first_row() + row) * PITCH, keys += key * PITCH;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            uint32_t a[ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
                load_matrices(a[m], query + m * 16 * PITCH + swizzled(row, row_column + s * 32));
#pragma unroll
            for (int k = 0; k < KEY_TILES; k++) {
                uint32_t b[4];
                load_matrices(b, keys + k * 16 * PITCH + swizzled(key, key_column + s * 32));
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++) {
                    multiply_add<DTYPE>(score[m][2 * k], a[m], b[0], b[1]);
                    multiply_add<DTYPE>(score[m][2 * k + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void add_values(const Scores& score, uint32_t values) {
        const int lane = thread_index() % WARP, value = lane % 16, column = lane / 16 * 16;
        values += value * PITCH;
#pragma unroll
        for (int k = 0; k < KEY_TILES; k++) {
            uint32_t weights[ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) pack_weights(weights[m], score[m], k);
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                uint32_t b[4];
                load_matrices_transposed(b, values + k * 16 * PITCH + swizzled(value, column + s * 32));
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++) {
                    multiply_add<DTYPE>(sums[m][2 * s], weights[m], b[0], b[1]);
                    multiply_add<DTYPE>(sums[m][2 * s + 1], weights[m], b[2], b[3]);
                }
            }
        }
    }
#endif

    // Of 16 keys, as the left side of a product.
    static __device__ __forceinline__ void pack_weights(uint32_t (&weights)[4], const float (&score)[2 * KEY_TILES][4],
                                                        int k) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&pair)[4] = score[2 * k + i / 2];
            weights[i] = pack<DTYPE>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
        }
    }

    // Scores become weights. MAY_SEE_NONE: rows may not have seen a key yet.
    template <bool MAY_SEE_NONE>
    __device__ __forceinline__ void weigh(Scores& score, float scale) {
        Factors factor;
        if (weigh<MAY_SEE_NONE>(score, scale, factor)) rescale(factor);
    }

    // The same, but that sums are left as they are; says whether any of the warp's is to be scaled by its factor.
    template <bool MAY_SEE_NONE>
    __device__ __forceinline__ bool weigh(Scores& score, float scale, Factors& factor) {
        bool rescaled = false;
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float greatest = -INFINITY;
#pragma unroll
                for (int n = 0; n < 2 * KEY_TILES; n++)
                    greatest = fmaxf(greatest, fmaxf(score[m][n][h * 2], score[m][n][h * 2 + 1]));
                greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, 1));
                greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, 2)) * scale;
                factor[m][h] = 1;
                if (greatest > most[m][h] + SLACK) {
                    factor[m][h] = exp2_roughly(most[m][h] - greatest);
                    most[m][h] = greatest, rescaled = true;
                }
                // The reference of a row that has not is -inf, and -inf - -inf is no number.
                const float reference = MAY_SEE_NONE && most[m][h] == -INFINITY ? 0 : most[m][h];
                float total = 0;
#pragma unroll
                for (int n = 0; n < 2 * KEY_TILES; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        float& x = score[m][n][h * 2 + c];
                        x = exp2_roughly(fmaf(x, scale, -reference));
                        total += x;
                    }
                weight[m][h] = fmaf(weight[m][h], factor[m][h], total);
            }
        return __any_sync(ALL_LANES, rescaled);
    }

    __device__ __forceinline__ void rescale(const Factors& factor) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < 2 * STEPS; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[m][n][i] *= factor[m][i / 2];
    }

    // Of all keys that a row has seen.
    __device__ __forceinline__ float whole_weight(int m, int h) const {
        float total = weight[m][h];
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        return total;
    }

    // Results go through the shared memory of the warp's own queries; those who multiply together are done with them.
    static __device__ __forceinline__ void finish_queries() {
        if (WARPGROUPS) __syncthreads();
        else __syncwarp();
    }
};

}  // namespace headrace
