// The running softmax of a block's queries over tiles of BLOCK_KEYS keys and values in shared memory: in plain fp32.
#pragma once

#include "encoder_tiles.cuh"

namespace headrace {

// Eight neighbouring lanes share queries i * ROW_STEP + number of their eight; each has every eighth key, and every
// eighth pair of a head's numbers.
struct Fragments {
    static constexpr int LANES = 8, ROW_STEP = THREADS / LANES, EACH_ROWS = BLOCK_ROWS / ROW_STEP;
    static constexpr int EACH_KEYS = BLOCK_KEYS / LANES, PAIRS = HEAD_DIM / (2 * LANES), PART_PITCH = BLOCK_KEYS + 4;

    float2 sums[EACH_ROWS][PAIRS];
    float most[EACH_ROWS], weight[EACH_ROWS];  // weight: of this lane's keys
    int first_row, lane;

    __device__ __forceinline__ Fragments() : first_row(threadIdx.x / LANES), lane(threadIdx.x % LANES) {
#pragma unroll
        for (int i = 0; i < EACH_ROWS; i++) {
            most[i] = -INFINITY, weight[i] = 0;
#pragma unroll
            for (int p = 0; p < PAIRS; p++) sums[i][p] = make_float2(0, 0);
        }
    }

    // A tile whose first ``num_keys`` keys exist; at least one does. ``parts`` [BLOCK_ROWS][PART_PITCH]: where lanes
    // exchange weights.
    __device__ __forceinline__ void add(const unsigned char* query, const unsigned char* keys, float* parts,
                                        int num_keys, float scale) {
        float score[EACH_ROWS][EACH_KEYS] = {};
#pragma unroll 4
        for (int dim = 0; dim < HEAD_DIM; dim += 4) {
            float4 q[EACH_ROWS];
#pragma unroll
            for (int i = 0; i < EACH_ROWS; i++) q[i] = *at<float4>(query, first_row + i * ROW_STEP, dim * 4);
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                const float4 k = *at<float4>(keys, lane + j * LANES, dim * 4);
#pragma unroll
                for (int i = 0; i < EACH_ROWS; i++)
                    score[i][j] += k.x * q[i].x + k.y * q[i].y + k.z * q[i].z + k.w * q[i].w;
            }
        }
        // The tile before this one is done with ``parts``.
        __syncwarp();
#pragma unroll
        for (int i = 0; i < EACH_ROWS; i++) {
            float greatest = -INFINITY;
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                score[i][j] = lane + j * LANES < num_keys ? score[i][j] * scale : -INFINITY;
                greatest = fmaxf(greatest, score[i][j]);
            }
#pragma unroll
            for (int distance = 1; distance < LANES; distance *= 2)
                greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, distance));
            const float now = fmaxf(most[i], greatest), factor = exp2f(most[i] - now);
            most[i] = now;
            float total = 0;
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                const float part = exp2f(score[i][j] - now);
                total += part;
                parts[(first_row + i * ROW_STEP) * PART_PITCH + lane + j * LANES] = part;
            }
            weight[i] = weight[i] * factor + total;
#pragma unroll
            for (int p = 0; p < PAIRS; p++) sums[i][p].x *= factor, sums[i][p].y *= factor;
        }
        __syncwarp();
#pragma unroll 1
        for (int key = 0; key < BLOCK_KEYS; key += 4) {
            float part[EACH_ROWS][4];
#pragma unroll
            for (int i = 0; i < EACH_ROWS; i++)
                *reinterpret_cast<float4*>(part[i]) =
                    *reinterpret_cast<const float4*>(parts + (first_row + i * ROW_STEP) * PART_PITCH + key);
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int p = 0; p < PAIRS; p++) {
                    const float2 v = *at<float2>(keys + TILE_BYTES, key + k, (p * LANES + lane) * 8);
#pragma unroll
                    for (int i = 0; i < EACH_ROWS; i++)
                        sums[i][p].x += part[i][k] * v.x, sums[i][p].y += part[i][k] * v.y;
                }
        }
    }

    // ``out``: of the block's first query.
    __device__ __forceinline__ void write(float* out, const float* bias, const Item& item, unsigned char*) const {
        const int num_queries = item.num_queries();
#pragma unroll
        for (int i = 0; i < EACH_ROWS; i++) {
            const int row = first_row + i * ROW_STEP;
            float total = weight[i];
#pragma unroll
            for (int distance = 1; distance < LANES; distance *= 2)
                total += __shfl_xor_sync(ALL_LANES, total, distance);
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

    template <typename V>
    static __device__ __forceinline__ const V* at(const unsigned char* rows, int row, int column) {
        return reinterpret_cast<const V*>(rows + row * PITCH + swizzled(row, column));
    }
};

}  // namespace headrace
