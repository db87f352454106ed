// A warp's running softmax over tiles of 16 keys and values in shared memory, for the GROUP query heads of one head of
// keys: on the tensor cores for 16-bit numbers, in plain fp32 for fp32.
//
// Scores are in units of log2: exp2 is what the hardware has.
#pragma once

#include "copy_async.cuh"
#include "decode_tiles.cuh"
#include "head_rows.cuh"
#include "tensor_core.cuh"

namespace headrace {

constexpr int TILE_BYTES = TILE_KEYS * PITCH;
constexpr int SUM_PITCH = HEAD_DIM + 4;  // floats; keeps 16-byte alignment, and heads apart in banks

static_assert(HEAD_DIM % 16 == 0 && GROUP >= 1 && GROUP <= 16);

#if IS_FP32

// A lane scores key lane % 16 over one half of its numbers, and sums up values 4 * lane to 4 * lane + 3 (and 128 on).
struct alignas(16) Private {
    float query[GROUP][HEAD_DIM];
    float weights[GROUP][TILE_KEYS];
};

struct Fragments {
    static constexpr int PARTS = (HEAD_DIM + 127) / 128;
    static constexpr bool STARTS_EARLY = false;
    static constexpr int UNROLLED = GROUP > 8 ? 1 : 4;
    float4 sums[GROUP][PARTS];
    float most[GROUP], weight[GROUP];

    // Heads are ``pitch`` elements apart.
    __device__ __forceinline__ void start(const float* query, int pitch, Private& own) {
        __syncwarp();
        for (int i = threadIdx.x % WARP; i < GROUP * HEAD_DIM; i += WARP)
            own.query[i / HEAD_DIM][i % HEAD_DIM] = query[i / HEAD_DIM * pitch + i % HEAD_DIM];
        __syncwarp();
#pragma unroll
        for (int head = 0; head < GROUP; head++) {
            most[head] = -INFINITY, weight[head] = 0;
#pragma unroll
            for (int p = 0; p < PARTS; p++) sums[head][p] = make_float4(0, 0, 0, 0);
        }
    }

    template <typename Between>
    __device__ __forceinline__ void add(uint32_t keys, uint32_t values, int first, int last, float scale, Private& own,
                                        const Between& between) {
        const int lane = threadIdx.x % WARP, key = lane % TILE_KEYS, half = lane / TILE_KEYS * (HEAD_DIM / 2);
        float score[GROUP] = {};
#pragma unroll(UNROLLED)
        for (int dim = 0; dim < HEAD_DIM / 2; dim += 4) {
            const float4 k = read(keys + key * PITCH + swizzled(key, (half + dim) * 4));
#pragma unroll
            for (int head = 0; head < GROUP; head++) {
                const float4 q = *reinterpret_cast<const float4*>(&own.query[head][half + dim]);
                score[head] += k.x * q.x + k.y * q.y + k.z * q.z + k.w * q.w;
            }
        }
        between();
        const bool seen = key >= first && key < last;
#pragma unroll
        for (int head = 0; head < GROUP; head++) {
            score[head] += __shfl_xor_sync(ALL_LANES, score[head], TILE_KEYS);
            score[head] = seen ? score[head] * scale : -INFINITY;
            float greatest = score[head];
#pragma unroll
            for (int distance = TILE_KEYS / 2; distance > 0; distance /= 2)
                greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, distance));
            const float now = fmaxf(most[head], greatest), factor = exp2f(most[head] - now);
            most[head] = now;
            const float part = exp2f(score[head] - now);
            weight[head] = weight[head] * factor + part;
            if (lane < TILE_KEYS) own.weights[head][key] = part;
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                sums[head][p].x *= factor, sums[head][p].y *= factor;
                sums[head][p].z *= factor, sums[head][p].w *= factor;
            }
        }
        __syncwarp();
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int dim = p * 128 + lane * 4;
            if (dim >= HEAD_DIM) break;
#pragma unroll(UNROLLED)
            for (int i = 0; i < TILE_KEYS; i++) {
                const float4 v = read(values + i * PITCH + swizzled(i, dim * 4));
#pragma unroll
                for (int head = 0; head < GROUP; head++) {
                    const float w = own.weights[head][i];
                    sums[head][p].x += w * v.x, sums[head][p].y += w * v.y;
                    sums[head][p].z += w * v.z, sums[head][p].w += w * v.w;
                }
            }
        }
    }

    // Heads 8 c to 8 c + 7, as far as there are.
    __device__ __forceinline__ void give(int c, float (*to)[SUM_PITCH], float* mosts, float* weights) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int place = 0; place < 8; place++) {
            const int head = c * 8 + place;
            if (head >= GROUP) break;
            float total = weight[head];
#pragma unroll
            for (int distance = TILE_KEYS / 2; distance > 0; distance /= 2)
                total += __shfl_xor_sync(ALL_LANES, total, distance);
            if (lane == 0) mosts[place] = most[head], weights[place] = total;
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                if (p * 128 + lane * 4 < HEAD_DIM)
                    *reinterpret_cast<float4*>(&to[place][p * 128 + lane * 4]) = sums[head][p];
        }
    }

    static __device__ __forceinline__ float4 read(uint32_t address) {
        float4 value;
        asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                     : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                     : "r"(address)
                     : "memory");
        return value;
    }
};

#else

constexpr int COLUMNS = (GROUP + 7) / 8, STEPS = HEAD_DIM / 16;
// Where sums take half of the registers, queries are read again for each tile.
constexpr bool QUERY_IN_SHARED = COLUMNS * STEPS > 16;

struct alignas(16) Private {
    uint2 query[QUERY_IN_SHARED ? STEPS * COLUMNS * WARP : 2];
};

// Scores and sums are transposed, keys and numbers of the head as the products' 16 rows, query heads as their 8 columns:
// a group of up to 8 heads wastes least so. Lane l, with g = l / 4 and t = l % 4, has the scores of keys g and g + 8 and
// the sums of numbers 16 i + g and 16 i + g + 8, for heads 8 c + 2t and 8 c + 2t + 1.
struct Fragments {
    static constexpr bool STARTS_EARLY = COLUMNS * STEPS <= 8;
    uint2 query[QUERY_IN_SHARED ? 1 : STEPS][COLUMNS];
    float sums[STEPS][COLUMNS][4];
    float most[COLUMNS][2], weight[COLUMNS][2];  // of heads 8 c + 2t and 8 c + 2t + 1; weight: of this lane's keys

    __device__ __forceinline__ void start(const DTYPE* from, int pitch, Private& own) {
        const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            // Columns beyond the group get its last head: what they hold is never written.
            const DTYPE* row = from + min(c * 8 + g, GROUP - 1) * pitch + 2 * t;
            most[c][0] = most[c][1] = -INFINITY, weight[c][0] = weight[c][1] = 0;
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                const uint2 both = make_uint2(*reinterpret_cast<const uint32_t*>(row + s * 16),
                                              *reinterpret_cast<const uint32_t*>(row + s * 16 + 8));
                if (QUERY_IN_SHARED) own.query[(s * COLUMNS + c) * WARP + lane] = both;
                else query[s][c] = both;
#pragma unroll
                for (int i = 0; i < 4; i++) sums[s][c][i] = 0;
            }
        }
    }

    // Keys ``first`` to ``last`` - 1 of the tile are seen; at least one is. ``between``: done with the keys, before the
    // values.
    template <typename Between>
    __device__ __forceinline__ void add(uint32_t keys, uint32_t values, int first, int last, float scale, Private& own,
                                        const Between& between) {
        const int lane = threadIdx.x % WARP, g = lane / 4;
        // Two sums, so that products need not wait for each other.
        float score[COLUMNS][4] = {}, other[COLUMNS][4] = {};
        const int key = lane % 16, key_column = lane / 16 * 16;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            uint32_t a[4];
            load_matrices(a, keys + key * PITCH + swizzled(key, key_column + s * 32));
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const uint2 b = QUERY_IN_SHARED ? own.query[(s * COLUMNS + c) * WARP + lane] : query[s][c];
                multiply_add<DTYPE>(s % 2 ? other[c] : score[c], a, b.x, b.y);
            }
        }
        between();
        uint32_t weights[COLUMNS][2];
        bool rescaled = false;
        float factor[COLUMNS][2];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int i = 0; i < 4; i++) score[c][i] = (score[c][i] + other[c][i]) * scale;
            if (first > 0 || last < TILE_KEYS) {
                if (g < first || g >= last) score[c][0] = score[c][1] = -INFINITY;
                if (g + 8 < first || g + 8 >= last) score[c][2] = score[c][3] = -INFINITY;
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float greatest = fmaxf(score[c][h], score[c][h + 2]);
#pragma unroll
                for (int distance = 4; distance < WARP; distance *= 2)
                    greatest = fmaxf(greatest, __shfl_xor_sync(ALL_LANES, greatest, distance));
                const float now = fmaxf(most[c][h], greatest);
                rescaled |= now != most[c][h];
                factor[c][h] = exp2f(most[c][h] - now);
                most[c][h] = now;
                score[c][h] = exp2f(score[c][h] - now), score[c][h + 2] = exp2f(score[c][h + 2] - now);
                weight[c][h] = weight[c][h] * factor[c][h] + score[c][h] + score[c][h + 2];
            }
            weights[c][0] = transpose_matrix(pack<DTYPE>(score[c][0], score[c][1]));
            weights[c][1] = transpose_matrix(pack<DTYPE>(score[c][2], score[c][3]));
        }
        if (__any_sync(ALL_LANES, rescaled)) {
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
#pragma unroll
                for (int s = 0; s < STEPS; s++)
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[s][c][i] *= factor[c][i % 2];
        }
        const int value = lane % 8 + lane / 16 * 8, value_column = lane / 8 % 2 * 16;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            uint32_t a[4];
            load_matrices_transposed(a, values + value * PITCH + swizzled(value, value_column + s * 32));
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) multiply_add<DTYPE>(sums[s][c], a, weights[c][0], weights[c][1]);
        }
    }

    // Heads 8 c to 8 c + 7, as far as there are.
    __device__ __forceinline__ void give(int c, float (*to)[SUM_PITCH], float* mosts, float* weights) {
        const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int place = t * 2 + h;
            float total = weight[c][h];
#pragma unroll
            for (int distance = 4; distance < WARP; distance *= 2)
                total += __shfl_xor_sync(ALL_LANES, total, distance);
            if (c * 8 + place >= GROUP) continue;
            if (g == 0) mosts[place] = most[c][h], weights[place] = total;
#pragma unroll
            for (int s = 0; s < STEPS; s++)
                to[place][s * 16 + g] = sums[s][c][h], to[place][s * 16 + g + 8] = sums[s][c][h + 2];
        }
    }
};

#endif

}  // namespace headrace
