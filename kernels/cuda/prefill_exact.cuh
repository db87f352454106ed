// The running softmax of a block's rows over tiles of BLOCK_KEYS keys and values in shared memory: in plain fp32.
#pragma once

#include "prefill_tiles.cuh"

namespace headrace {

// Eight neighbouring lanes share rows i * ROW_STEP + number of their eight; each has every eighth key, and every eighth
// pair of a head's numbers.
struct Fragments {
    static constexpr int LANES = 8, ROW_STEP = THREADS / LANES, EACH_ROWS = BLOCK_ROWS / ROW_STEP;
    static constexpr int EACH_KEYS = BLOCK_KEYS / LANES, PAIRS = HEAD_DIM / (2 * LANES), PART_PITCH = BLOCK_KEYS + 4;
    static constexpr int PART_BYTES = BLOCK_ROWS * PART_PITCH * sizeof(float);

    float2 sums[EACH_ROWS][PAIRS];
    float most[EACH_ROWS], weight[EACH_ROWS];  // weight: of this lane's keys
    int first_row, lane;

    __device__ __forceinline__ Fragments(const Args&, const Rows&)
        : first_row(threadIdx.x / LANES), lane(threadIdx.x % LANES) {
#pragma unroll
        for (int i = 0; i < EACH_ROWS; i++) {
            most[i] = -INFINITY, weight[i] = 0;
#pragma unroll
            for (int p = 0; p < PAIRS; p++) sums[i][p] = make_float2(0, 0);
        }
    }

    // ``parts`` [BLOCK_ROWS][PART_PITCH]: where lanes exchange weights.
    __device__ __forceinline__ void add(const unsigned char* query, const unsigned char* keys, float* parts,
                                        int first_key, const Args& args, const Rows& rows) {
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
            const int row = first_row + i * ROW_STEP, end = rows.limit(args, row) - first_key;
            const int begin = args.window > 0 ? end - args.window : 0;
            float greatest = -INFINITY;
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                const int key = lane + j * LANES;
                score[i][j] = key >= begin && key < end ? score[i][j] * args.score_scale : -INFINITY;
                greatest = fmaxf(greatest, score[i][j]);
            }
#pragma unroll
            for (int distance = 1; distance < LANES; distance *= 2)
                greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, distance));
            const float now = fmaxf(most[i], greatest);
            // A row that has seen nothing yet: -inf - -inf is no number.
            const float factor = now == -INFINITY ? 1 : exp2f(most[i] - now);
            most[i] = now;
            float total = 0;
#pragma unroll
            for (int j = 0; j < EACH_KEYS; j++) {
                const float part = now == -INFINITY ? 0 : exp2f(score[i][j] - now);
                total += part;
                parts[row * PART_PITCH + lane + j * LANES] = part;
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

    __device__ __forceinline__ void write(const Args& args, const Rows& rows, unsigned char*) const {
#pragma unroll
        for (int i = 0; i < EACH_ROWS; i++) {
            const int row = first_row + i * ROW_STEP;
            float total = weight[i];
#pragma unroll
            for (int distance = 1; distance < LANES; distance *= 2)
                total += __shfl_xor_sync(ALL_LANES, total, distance);
            if (!rows.exists(args, row)) continue;
            const float factor = total > 0 ? 1 / total : 0;
            const long long stride = static_cast<long long>(args.num_kv_heads) * args.group * HEAD_DIM;
            float2* to = reinterpret_cast<float2*>(args.out + rows.place(args, row, stride));
#pragma unroll
            for (int p = 0; p < PAIRS; p++)
                to[p * LANES + lane] = make_float2(sums[i][p].x * factor, sums[i][p].y * factor);
        }
    }

    template <typename V>
    static __device__ __forceinline__ const V* at(const unsigned char* rows, int row, int column) {
        return reinterpret_cast<const V*>(rows + row * PITCH + swizzled(row, column));
    }
};

}  // namespace headrace
