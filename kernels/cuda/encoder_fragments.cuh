// A block's queries of encoder_attention on the tensor cores: which keys there are, and where results go.
#pragma once

#include "attention_fragments.cuh"
#include "encoder_tiles.cuh"

namespace headrace {

struct Fragments : TileSoftmax {
    // A tile whose first ``num_keys`` keys exist; at least one does.
    __device__ __forceinline__ void add(uint32_t query, uint32_t keys, int num_keys, float scale) {
        Scores score;
        multiply_keys(score, query, keys);
        if (num_keys < BLOCK_KEYS) mask(score, num_keys);
        // Every query has seen a key.
        weigh<false>(score, scale);
        add_values(score, keys + TILE_BYTES);
    }

    static __device__ __forceinline__ void mask(Scores& score, int num_keys) {
        const int left = num_keys - thread_index() % 4 * 2;
#pragma unroll
        for (int n = 0; n < 2 * KEY_TILES; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (n * 8 + i % 2 >= left)
#pragma unroll
                    for (int m = 0; m < ROW_TILES; m++) score[m][n][i] = -INFINITY;
    }

    // ``out``: of the block's first query. Results go through the shared memory of the warp's own queries, so that whole
    // lines are written.
    __device__ __forceinline__ void write(DTYPE* out, const DTYPE* bias, const Item& item, unsigned char* query) {
        const int lane = thread_index() % WARP, g = lane / 4, t = lane % 4;
        finish_queries();
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
            float factor[2];
#pragma unroll
            for (int h = 0; h < 2; h++) factor[h] = 1 / whole_weight(m, h);
#pragma unroll
            for (int n = 0; n < 2 * STEPS; n++) {
                Vec<DTYPE, 2> added{};
                if (bias && n * 8 < HEAD_SIZE) added = load<DTYPE, 2>(bias + n * 8 + t * 2);
#pragma unroll
                for (int h = 0; h < 2; h++)
                    *reinterpret_cast<uint32_t*>(
                        query + place_in_tile<BLOCK_ROWS>(first_row() + m * 16 + h * 8 + g, n * 16) + t * 4) =
                        pack<DTYPE>(fmaf(sums[m][n][h * 2], factor[h], added.get(0)),
                                    fmaf(sums[m][n][h * 2 + 1], factor[h], added.get(1)));
            }
        }
        __syncwarp();
        static_assert(WARP_ROWS * CHUNKS % WARP == 0);
        const int num_queries = item.num_queries();
#pragma unroll 4
        for (int i = 0; i < WARP_ROWS * CHUNKS / WARP; i++) {
            const int chunk = i * WARP + lane, at = chunk / CHUNKS, column = (chunk - at * CHUNKS) * 16;
            const int row = first_row() + at;
            if (row >= num_queries) break;
            if (column >= REAL_CHUNKS * 16) continue;
            char* to = reinterpret_cast<char*>(out + static_cast<long long>(row) * item.width);
            *reinterpret_cast<uint4*>(to + column) =
                *reinterpret_cast<const uint4*>(query + place_in_tile<BLOCK_ROWS>(row, column));
        }
    }
};

}  // namespace headrace
