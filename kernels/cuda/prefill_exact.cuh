// A block's rows of prefill_attention in plain fp32: which keys they see, and where their results go.
#pragma once

#include "attention_exact.cuh"
#include "prefill_tiles.cuh"

namespace headrace {

struct Fragments : TileSoftmax {
    __device__ __forceinline__ Fragments(const Args&, const Rows&) {}

    __device__ __forceinline__ void add(const unsigned char* query, const unsigned char* keys, float* parts,
                                        int first_key, const Args& args, const Rows& rows) {
        add_tile(query, keys, parts, [&](int i, float (&score)[EACH_KEYS]) {
            const int row = first_row + i * ROW_STEP, end = rows.limit(args, row) - first_key;
            const int begin = args.window > 0 ? end - args.window : 0;
            float greatest = -INFINITY;
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                const int key = lane + j * LANES;
                score[j] = key >= begin && key < end ? score[j] * args.score_scale : -INFINITY;
                greatest = fmaxf(greatest, score[j]);
            }
            const float now = fmaxf(most[i], greatest_of_lanes(greatest));
            // A row that has seen nothing yet: -inf - -inf is no number.
            const float factor = now == -INFINITY ? 1 : exp2f(most[i] - now);
            most[i] = now;
            float total = 0;
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                const float part = now == -INFINITY ? 0 : exp2f(score[j] - now);
                total += part;
                parts[row * PART_PITCH + lane + j * LANES] = part;
            }
            rescale(i, factor, total);
        });
    }

    __device__ __forceinline__ void write(const Args& args, const Rows& rows, unsigned char*) const {
#pragma unroll
        for (int i = 0; i < EACH_ROWS; i++) {
            const int row = first_row + i * ROW_STEP;
            const float total = whole_weight(i);
            if (!rows.exists(args, row)) continue;
            const float factor = total > 0 ? 1 / total : 0;
            const long long stride = static_cast<long long>(args.num_kv_heads) * args.group * HEAD_DIM;
            float2* to = reinterpret_cast<float2*>(args.out + rows.place(args, row, stride));
#pragma unroll
            for (int p = 0; p < PAIRS; p++)
                to[p * LANES + lane] = make_float2(sums[i][p].x * factor, sums[i][p].y * factor);
        }
    }
};

}  // namespace headrace
