// The running softmax of a block's rows over tiles of BLOCK_KEYS keys and values in shared memory: in plain fp32.
//
// Which keys a row sees, hence how its scores become weights, and where its result goes, is the affair of the kernel.
#pragma once

#include "head_tiles.cuh"

namespace headrace {

// Eight neighbouring lanes share rows i * ROW_STEP + number of their eight; each has every eighth key, and every eighth
// pair of a head's numbers.
struct TileSoftmax {
    static constexpr int LANES = 8, ROW_STEP = THREADS / LANES, EACH_ROWS = BLOCK_ROWS / ROW_STEP;
    static constexpr int EACH_KEYS = BLOCK_KEYS / LANES, PAIRS = HEAD_DIM / (2 * LANES), PART_PITCH = BLOCK_KEYS + 4;

    float2 sums[EACH_ROWS][PAIRS];
    float most[EACH_ROWS], weight[EACH_ROWS];  // weight: of this lane's keys
    int first_row, lane;

    __device__ __forceinline__ TileSoftmax() : first_row(threadIdx.x / LANES), lane(threadIdx.x % LANES) {
#pragma unroll
        for (int i = 0; i < EACH_ROWS; i++) {
            most[i] = -INFINITY, weight[i] = 0;
#pragma unroll
            for (int p = 0; p < PAIRS; p++) sums[i][p] = make_float2(0, 0);
        }
    }

    // Add a tile. ``weigh`` turns a row's scores into weights in ``parts`` [BLOCK_ROWS][PART_PITCH], where lanes exchange
    // them.
    template <typename Weigh>
    __device__ __forceinline__ void add_tile(const unsigned char* query, const unsigned char* keys, const float* parts,
                                             const Weigh& weigh) {
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
        for (int i = 0; i < EACH_ROWS; i++) weigh(i, score[i]);
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

    // To a row's new reference, with new weights whose sum is ``total``.
    __device__ __forceinline__ void rescale(int i, float factor, float total) {
        weight[i] = weight[i] * factor + total;
#pragma unroll
        for (int p = 0; p < PAIRS; p++) sums[i][p].x *= factor, sums[i][p].y *= factor;
    }

    static __device__ __forceinline__ float greatest_of_lanes(float greatest) {
#pragma unroll
        for (int distance = 1; distance < LANES; distance *= 2)
            greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, distance));
        return greatest;
    }

    // Of all keys that a row has seen.
    __device__ __forceinline__ float whole_weight(int i) const {
        float total = weight[i];
#pragma unroll
        for (int distance = 1; distance < LANES; distance *= 2)
            total += __shfl_xor_sync(ALL_LANES, total, distance);
        return total;
    }

    template <typename V>
    static __device__ __forceinline__ const V* at(const unsigned char* rows, int row, int column) {
        return reinterpret_cast<const V*>(rows + row * PITCH + swizzled(row, column));
    }
};

}  // namespace headrace
