// A block's rows of prefill_attention on the tensor cores: which keys they see, and where their results go.
#pragma once

#include "attention_fragments.cuh"
#include "prefill_tiles.cuh"

namespace headrace {

struct Fragments : TileSoftmax {
    int greatest_limit, least_limit;  // the team's

    __device__ __forceinline__ Fragments(const Args& args, const Rows& rows) {
        const int team_row = first_row() / TEAM_ROWS * TEAM_ROWS;
        least_limit = rows.limit(args, team_row), greatest_limit = rows.limit(args, team_row + TEAM_ROWS - 1);
    }

    // A tile that a row does not see leaves that row's sums as they are, to the bit.
    __device__ __forceinline__ void add(uint32_t query, uint32_t keys, int first_key, const Args& args,
                                        const Rows& rows) {
        const int last_key = first_key + BLOCK_KEYS;
        if (!rows.exists(args, first_row() / TEAM_ROWS * TEAM_ROWS)) return;
        if (greatest_limit <= first_key || (args.window > 0 && least_limit - args.window >= last_key)) return;
        Scores score;
        multiply_keys(score, query, keys);
        if (least_limit < last_key || (args.window > 0 && greatest_limit - args.window > first_key))
            mask(score, first_key, args, rows);
        weigh<true>(score, args.score_scale);
        add_values(score, keys + TILE_BYTES);
    }

    __device__ __forceinline__ void mask(Scores& score, int first_key, const Args& args, const Rows& rows) const {
        const int lane = thread_index() % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int end = rows.limit(args, first_row() + m * 16 + h * 8 + g) - first_key;
                const int begin = args.window > 0 ? end - args.window : 0;
#pragma unroll
                for (int n = 0; n < 2 * KEY_TILES; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        const int key = n * 8 + t * 2 + c;
                        if (key < begin || key >= end) score[m][n][h * 2 + c] = -INFINITY;
                    }
            }
    }

    // Results go through the shared memory of the warp's own queries, so that whole lines are written.
    __device__ __forceinline__ void write(const Args& args, const Rows& rows, unsigned char* query) {
        const int lane = thread_index() % WARP, g = lane / 4, t = lane % 4;
        finish_queries();
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float total = whole_weight(m, h);
                const float factor = total > 0 ? 1 / total : 0;
                const int row = first_row() + m * 16 + h * 8 + g;
#pragma unroll
                for (int n = 0; n < 2 * STEPS; n++)
                    *reinterpret_cast<uint32_t*>(query + place_in_tile<BLOCK_ROWS>(row, n * 16) + t * 4) =
                        pack<DTYPE>(sums[m][n][h * 2] * factor, sums[m][n][h * 2 + 1] * factor);
            }
        __syncwarp();
        static_assert(WARP_ROWS * CHUNKS % WARP == 0);
#pragma unroll 4
        for (int i = 0; i < WARP_ROWS * CHUNKS / WARP; i++) {
            const int chunk = i * WARP + lane, at = chunk / CHUNKS, column = (chunk - at * CHUNKS) * 16;
            const int row = first_row() + at;
            if (!rows.exists(args, row)) break;
            const long long stride = static_cast<long long>(args.num_kv_heads) * args.group * HEAD_DIM;
            char* to = reinterpret_cast<char*>(args.out + rows.place(args, row, stride));
            *reinterpret_cast<uint4*>(to + column) =
                *reinterpret_cast<const uint4*>(query + place_in_tile<BLOCK_ROWS>(row, column));
        }
    }
};

}  // namespace headrace
