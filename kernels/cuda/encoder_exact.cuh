// A block's queries of encoder_attention in plain fp32: which keys there are, and where results go.
#pragma once

#include "attention_exact.cuh"
#include "encoder_tiles.cuh"

namespace headrace {

struct Fragments : TileSoftmax {
    // A tile whose first ``num_keys`` keys exist; at least one does.
    __device__ __forceinline__ void add(const unsigned char* query, const unsigned char* keys, float* parts,
                                        int num_keys, float scale) {
        add_tile(query, keys, parts, [&](int i, float (&score)[EACH_KEYS]) {
            float greatest = -INFINITY;
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                score[j] = lane + j * LANES < num_keys ? score[j] * scale : -INFINITY;
                greatest = fmaxf(greatest, score[j]);
            }
            const float now = fmaxf(most[i], greatest_of_lanes(greatest)), factor = exp2f(most[i] - now);
            most[i] = now;
            float total = 0;
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                const float part = exp2f(score[j] - now);
                total += part;
                parts[(first_row + i * ROW_STEP) * PART_PITCH + lane + j * LANES] = part;
            }
            rescale(i, factor, total);
        });
    }

    // ``out``: of the block's first query.
    __device__ __forceinline__ void write(float* out, const float* bias, const Item& item, unsigned char*) const {
        const int num_queries = item.num_queries();
#pragma unroll
        for (int i = 0; i < EACH_ROWS; i++) {
            const int row = first_row + i * ROW_STEP;
            const float total = whole_weight(i);
            if (row >= num_queries) continue;
            const float factor = 1 / total;
            float2* to = reinterpret_cast<float2*>(out + static_cast<long long>(row) * item.width);
#pragma unroll
            for (int p = 0; p < PAIRS; p++) {
                if ((p * LANES + lane) * 2 >= HEAD_SIZE) break;
                const float2 added =
                    bias ? reinterpret_cast<const float2*>(bias)[p * LANES + lane] : make_float2(0, 0);
                to[p * LANES + lane] =
                    make_float2(fmaf(sums[i][p].x, factor, added.x), fmaf(sums[i][p].y, factor, added.y));
            }
        }
    }
};

}  // namespace headrace
