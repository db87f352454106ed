// Masked softmax over the last dimension: softmax(scores * scale + mask), any length.
//
// A row belongs to a warp or to a block and stays in registers; ROWS rows share one batch reduction. A longer row
// (VECS = 0) is read twice, its maximum and sum found together in one pass [1]. A row that sees nothing becomes zeros.
//
// Macros: DTYPE, VEC, VECS, ROWS, WARP_A_ROW, THREADS as in norm.cuh; MASK (0: none, 1: bytes, nonzero sees, 2: DTYPE,
// added), MASK_ALIGNED (0 or 1: its rows let VEC elements move together). The mask's rows are found by strides, so that
// it may be broadcast.
//
// [1] M. Milakov, N. Gimelshein. Online normalizer calculation for softmax. arXiv:1805.02867.
#include "rows.cuh"

using namespace headrace;

#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif
#ifndef MAGIC
#define MAGIC 1
#endif


#if MASK == 1
using MaskType = uint8_t;
#else
using MaskType = DTYPE;
#endif

// n / d for n below 2^31 by one multiplication: factor = ceil(2^(31 + bits) / d), bits = ceil(log2 d).
struct Divisor {
    uint32_t factor;
    int shift;  // 31 + bits

    __device__ __forceinline__ int of(int n) const {
        return static_cast<int>(uint64_t(static_cast<uint32_t>(n)) * factor >> shift);
    }
};

struct Mask {
    const MaskType* base;
    int heads, queries;                               // scores are [batch, heads, queries, length]
    int64_t batch_stride, head_stride, query_stride;  // of the mask, in elements; 0 where it is broadcast
    Divisor by_queries, by_heads;

    __device__ __forceinline__ const MaskType* row(int64_t row) const {
#if MAGIC
        const int above = by_queries.of(static_cast<int>(row)), batch = by_heads.of(above);
        const int query = static_cast<int>(row) - above * queries, head = above - batch * heads;
#else
        const int64_t query = row % queries, head = row / queries % heads, batch = row / queries / heads;
#endif
        return base + batch * batch_stride + head * head_stride + query * query_stride;
    }
};

// 16-bit results are computed by powers of two, which the hardware has; fp32 ones by the exponential function.
constexpr bool ROUGH = sizeof(DTYPE) == 2;
constexpr float UNIT = ROUGH ? 1.4426950408889634f : 1.f;
__device__ __forceinline__ float power(float x) { return ROUGH ? exp2_roughly(x) : expf(x); }

// What is subtracted before the power is taken: of a row that sees nothing, 0, so that its powers are 0.
__device__ __forceinline__ float shift(float max) { return max == -INFINITY ? 0.f : max; }

// A mask's vector: loaded before the scores are waited for.
struct MaskPart {
#if MASK
    Vec<MaskType, VEC> at;

    __device__ __forceinline__ void read(const MaskType* row, int vec) {
        const MaskType* from = row + int64_t(vec) * VEC;
#if MASK_ALIGNED
        at = load<MaskType, VEC>(from);
        if (sizeof(at) == 8) {  // as it came: else each byte takes a register until it is used
            uint2& word = reinterpret_cast<uint2&>(at);
            asm volatile("" : "+r"(word.x), "+r"(word.y));
        }
#else
#pragma unroll
        for (int e = 0; e < VEC; e++) at.at[e] = from[e];
#endif
    }
#else
    __device__ __forceinline__ void read(const MaskType*, int) {}
#endif
};

template <typename T>
__device__ __forceinline__ void masked(float (&value)[VEC], const Vec<T, VEC>& scores, const MaskPart& mask, float scale) {
#pragma unroll
    for (int e = 0; e < VEC; e++) {
        value[e] = scores.get(e) * scale;
#if MASK == 1
        value[e] = mask.at.at[e] ? value[e] : -INFINITY;
#elif MASK == 2
        value[e] += to_float(mask.at.at[e]) * UNIT;
#endif
    }
}

// From warps' greatest values and sums of powers to the factor that a warp's powers are still to be multiplied by:
// all sums are shifted to the row's greatest value [1], with a single barrier.
__device__ __forceinline__ void merge_warps(float (&factor)[ROWS], const float (&max)[ROWS], const float (&sum)[ROWS],
                                            float (*scratch)[WARP]) {
    constexpr int num_warps = WARP_A_ROW ? 1 : THREADS / WARP, span = power_of_two(num_warps);
    float row_max[ROWS], row_sum[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        row_max[r] = max[r];
        row_sum[r] = sum[r];
    }
    if (num_warps > 1) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, from = lane % span;
        if (lane == 0) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                scratch[r][warp] = max[r];
                scratch[ROWS + r][warp] = sum[r];
            }
        }
        __syncthreads();
        float of_warp[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) row_max[r] = of_warp[r] = from < num_warps ? scratch[r][from] : -INFINITY;
        warp_reduce<Max, ROWS, span>(row_max);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            row_sum[r] = from < num_warps ? scratch[ROWS + r][from] * power(of_warp[r] - shift(row_max[r])) : 0.f;
        warp_reduce<Sum, ROWS, span>(row_sum);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        // Not sum == 0: what is not a number shall stay visible.
        const float share = row_max[r] == -INFINITY ? 0.f : 1.f / row_sum[r];
        factor[r] = num_warps > 1 ? share * power(max[r] - shift(row_max[r])) : share;
    }
}

#if VECS
template <typename T>
__device__ __forceinline__ void in_registers(T* out, const T* scores, const Mask& mask, int64_t num_rows, int length,
                                             float scale) {
    // Two by turns: with one barrier a turn, no warp overwrites what another one still reads.
    __shared__ float scratch[STAGES ? 2 : 1][2 * ROWS][WARP];
    Place place(length);
#if STAGES
    extern __shared__ __align__(16) char stages[];
    Ahead<T> ahead(stages, place, scores, num_rows, length);
#endif
    int turn = 0;
    do {
        float value[ROWS][VECS][VEC], max[ROWS], sum[ROWS] = {}, factor[ROWS];
#if STAGES
        Vec<T, VEC> raw[ROWS][VECS];
        MaskPart part[ROWS][VECS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int64_t row = place.row + r;
            const MaskType* mask_row = MASK && row < num_rows ? mask.row(row) : nullptr;
#pragma unroll
            for (int i = 0; i < VECS; i++)
                if (row < num_rows && place.holds(i)) part[r][i].read(mask_row, place.vec(i));
        }
        ahead.next(raw, place);
#endif
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int64_t row = place.row + r;
#if !STAGES
            const MaskType* mask_row = MASK && row < num_rows ? mask.row(row) : nullptr;
#endif
#pragma unroll
            for (int i = 0; i < VECS; i++) {
#pragma unroll
                for (int e = 0; e < VEC; e++) value[r][i][e] = -INFINITY;
                if (row < num_rows && place.holds(i)) {
#if STAGES
                    masked<T>(value[r][i], raw[r][i], part[r][i], scale);
#else
                    MaskPart part;
                    part.read(mask_row, place.vec(i));
                    masked<T>(value[r][i], load_once<T, VEC>(scores + row * length + int64_t(place.vec(i)) * VEC), part, scale);
#endif
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            max[r] = -INFINITY;
#pragma unroll
            for (int i = 0; i < VECS; i++)
#pragma unroll
                for (int e = 0; e < VEC; e++) max[r] = fmaxf(max[r], value[r][i][e]);
        }
        warp_reduce<Max, ROWS>(max);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float base = shift(max[r]);
#pragma unroll
            for (int i = 0; i < VECS; i++)
#pragma unroll
                for (int e = 0; e < VEC; e++) sum[r] += value[r][i][e] = power(value[r][i][e] - base);
        }
        warp_reduce<Sum, ROWS>(sum);
        merge_warps(factor, max, sum, scratch[STAGES ? turn : 0]);
        turn ^= 1;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (place.row + r >= num_rows) break;
#pragma unroll
            for (int i = 0; i < VECS; i++) {
                if (!place.holds(i)) break;
#pragma unroll
                for (int e = 0; e < VEC; e++) value[r][i][e] *= factor[r];
                store_once<T, VEC>(out + (place.row + r) * length + int64_t(place.vec(i)) * VEC, pack<T, VEC>(value[r][i]));
            }
        }
    } while (STAGES && (place.row += place.step) < num_rows);
}
#else
template <typename T>
__device__ __forceinline__ void in_passes(T* out, const T* scores, const Mask& mask, int64_t row, int length,
                                          float scale) {
    __shared__ float scratch[2][WARP];
    const int num_vecs = length / VEC;
    const T* from = scores + row * length;
    const MaskType* mask_row = MASK ? mask.row(row) : nullptr;
    const auto read = [&](float(&value)[VEC], int vec) {
        MaskPart part;
        part.read(mask_row, vec);
        masked<T>(value, load_once<T, VEC>(from + int64_t(vec) * VEC), part, scale);
    };
    float own_max = -INFINITY, own_sum = 0.f;
    for (int vec = threadIdx.x; vec < num_vecs; vec += THREADS) {
        float value[VEC], max = own_max;
        read(value, vec);
#pragma unroll
        for (int e = 0; e < VEC; e++) max = fmaxf(max, value[e]);
        own_sum *= power(own_max - shift(max));
#pragma unroll
        for (int e = 0; e < VEC; e++) own_sum += power(value[e] - shift(max));
        own_max = max;
    }
    float max[1] = {own_max};
    block_reduce<Max, 1, THREADS>(max, scratch);
    float sum[1] = {own_sum * power(own_max - shift(max[0]))};
    block_reduce<Sum, 1, THREADS>(sum, scratch + 1);
    const float share = max[0] == -INFINITY ? 0.f : 1.f / sum[0];
    for (int vec = threadIdx.x; vec < num_vecs; vec += THREADS) {
        float value[VEC];
        read(value, vec);
#pragma unroll
        for (int e = 0; e < VEC; e++) value[e] = power(value[e] - shift(max[0])) * share;
        store_once<T, VEC>(out + row * length + int64_t(vec) * VEC, pack<T, VEC>(value));
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    softmax(DTYPE* out, const DTYPE* scores, const MaskType* mask_base, int64_t num_rows, int length, float scale,
            int heads, int queries, int64_t batch_stride, int64_t head_stride, int64_t query_stride,
            uint32_t queries_factor, int queries_shift, uint32_t heads_factor, int heads_shift) {
    const Mask mask{mask_base,    heads,         queries,
                    batch_stride, head_stride,   query_stride,
                    Divisor{queries_factor, queries_shift}, Divisor{heads_factor, heads_shift}};
    wait_for_earlier_kernels();
    let_next_kernel_start();
#if VECS
    in_registers<DTYPE>(out, scores, mask, num_rows, length, scale * UNIT);
#else
    in_passes<DTYPE>(out, scores, mask, blockIdx.x, length, scale * UNIT);
#endif
}
