// Masked softmax over the last dimension: softmax(scores * scale + mask), any length.
//
// A row belongs to a warp, to a few of its lanes or to a block and stays in registers; ROWS rows share one batch reduction.
// A longer row (VECS = 0) is read twice, its maximum and sum found together in one pass [1]. A row that sees nothing becomes
// zeros.
//
// Macros: DTYPE, VEC, VECS, ROWS, WARP_A_ROW, ROW_LANES, THREADS, EVEN as in rows.cuh; MASK (0: none, 1: bytes, 1 sees, 2: DTYPE,
// added), MASK_ALIGNED (0 or 1: its rows let VEC elements move together), NEGATIVE (0 or 1: scores change signs before they
// are scaled; not with a mask that is added). The mask's rows are found by strides, so that it may be broadcast.
//
// [1] M. Milakov, N. Gimelshein. Online normalizer calculation for softmax. arXiv:1805.02867.
#include "rows.cuh"

using namespace headrace;

#if MASK == 1
using MaskType = uint8_t;
#else
using MaskType = DTYPE;
#endif

struct Mask {
    const MaskType* base;
    int heads, queries;                               // scores are [batch, heads, queries, length]
    int64_t batch_stride, head_stride, query_stride;  // of the mask, in elements; 0 where it is broadcast
    Divisor by_queries, by_heads;

    __device__ __forceinline__ const MaskType* row(int64_t row) const {
        const int above = by_queries.of(static_cast<int>(row)), batch = by_heads.of(above);
        const int query = static_cast<int>(row) - above * queries, head = above - batch * heads;
        return base + batch * batch_stride + head * head_stride + query * query_stride;
    }
};

// 16-bit results are computed by powers of two, which the hardware has; fp32 ones by the exponential function.
constexpr bool ROUGH = sizeof(DTYPE) == 2;
constexpr float UNIT = ROUGH ? 1.4426950408889634f : 1.f;
__device__ __forceinline__ float power(float x) { return ROUGH ? exp2_roughly(x) : expf(x); }
// Of a sum that is 1 at least: its greatest power is of 0.
__device__ __forceinline__ float inverse(float sum) { return ROUGH ? reciprocal_roughly(sum) : 1.f / sum; }

// What is subtracted before the power is taken: of a row that sees nothing, 0, so that its powers are 0.
__device__ __forceinline__ float shift(float max) { return max == -INFINITY ? 0.f : max; }

// What the scores, or with an added mask the sums, are multiplied by before the power is taken.
__device__ __forceinline__ float factor_of(float scale) { return MASK == 2 ? 1.f : scale * UNIT; }

// Two 16-bit elements, -inf.
template <typename T>
constexpr uint32_t HIDDEN = std::is_same_v<T, __half> ? 0xfc00fc00u : 0xff80ff80u;

#if MASK == 1
// VEC bytes of a mask, each 0 or 1. They stay in words: else the compiler takes them apart and puts them together again.
struct Seen {
    alignas(8) uint32_t words[(VEC + 3) / 4];

    __device__ __forceinline__ void read(const uint8_t* from) {
#pragma unroll
        for (int i = 0; i < (VEC + 3) / 4; i++) words[i] = 0;
#if MASK_ALIGNED
        using W = typename Word<VEC>::type;
        reinterpret_cast<W&>(words) = *reinterpret_cast<const W*>(from);
#else
#pragma unroll
        for (int e = 0; e < VEC; e++) words[e / 4] |= uint32_t(from[e]) << 8 * (e % 4);
#endif
    }

    // Scores whose byte is 0 become -inf.
    template <typename T>
    __device__ __forceinline__ void hide(Vec<T, VEC>& scores) const {
        if constexpr (sizeof(T) == 2 && VEC > 1) {
            uint32_t* pairs = reinterpret_cast<uint32_t*>(scores.at);
#pragma unroll
            for (int i = 0; i < VEC / 2; i++) {
                // Two bytes' lowest bits become all bits of two elements.
                uint32_t bits;
                asm("prmt.b32 %0, %1, 0, %2;" : "=r"(bits) : "r"(words[i / 2] << 7), "r"(i % 2 ? 0xbbaa : 0x9988));
                pairs[i] = (pairs[i] & bits) | (HIDDEN<T> & ~bits);
            }
        } else {
#pragma unroll
            for (int e = 0; e < VEC; e++)
                if (!(words[e / 4] & 0xffu << 8 * (e % 4))) scores.set(e, -INFINITY);
        }
    }
};
#endif

// VEC scores: as they came, or -inf where they are not seen; with a mask that is added, sums times UNIT.
template <typename T>
struct Part {
#if MASK == 2
    float at[VEC];
    __device__ __forceinline__ float get(int e) const { return at[e]; }
#else
    Vec<T, VEC> at;
    __device__ __forceinline__ float get(int e) const { return at.get(e); }
#endif

    __device__ __forceinline__ void read(const T* scores, const MaskType* mask_row, int vec, float scale) {
        const Vec<T, VEC> came = load<T, VEC>(scores + int64_t(vec) * VEC);
#if MASK == 1
        Seen seen;
        seen.read(mask_row + int64_t(vec) * VEC);
#elif MASK == 2
        Vec<T, VEC> mask;
        const T* from = mask_row + int64_t(vec) * VEC;
        if (MASK_ALIGNED) {
            mask = load<T, VEC>(from);
        } else {
#pragma unroll
            for (int e = 0; e < VEC; e++) mask.at[e] = from[e];
        }
#pragma unroll
        for (int e = 0; e < VEC; e++) at[e] = came.get(e) * (scale * UNIT) + mask.get(e) * UNIT;
#endif
#if MASK != 2
        at = came;
        if (NEGATIVE) negate(at);
#if MASK == 1
        seen.hide<T>(at);
#endif
#endif
    }

    // All of them -inf.
    __device__ __forceinline__ void hide_all() {
#if MASK == 2
#pragma unroll
        for (int e = 0; e < VEC; e++) at[e] = -INFINITY;
#else
        if constexpr (sizeof(T) == 2 && VEC > 1) {
#pragma unroll
            for (int i = 0; i < VEC / 2; i++) reinterpret_cast<uint32_t*>(at.at)[i] = HIDDEN<T>;
        } else {
#pragma unroll
            for (int e = 0; e < VEC; e++) at.set(e, -INFINITY);
        }
#endif
    }
};

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
        const float share = row_max[r] == -INFINITY ? 0.f : inverse(row_sum[r]);
        factor[r] = num_warps > 1 ? share * power(max[r] - shift(row_max[r])) : share;
    }
}

// The greatest of a thread's elements of a row; pairs of 16-bit ones are compared by one instruction.
template <typename T, int COUNT>
__device__ __forceinline__ float greatest(const Part<T> (&part)[COUNT]) {
    float max = -INFINITY;
#if MASK != 2
    if constexpr (sizeof(T) == 2 && VEC > 1) {
        using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
        Pair pairs = reinterpret_cast<const Pair&>(part[0].at);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int e = 0; e < VEC; e += 2) pairs = __hmax2(pairs, reinterpret_cast<const Pair&>(part[i].at.at[e]));
        max = fmaxf(to_float(pairs.x), to_float(pairs.y));
    } else
#endif
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int e = 0; e < VEC; e++) max = fmaxf(max, part[i].get(e));
    return max;
}

#if VECS
template <typename T>
__device__ __forceinline__ void in_registers(T* out, const T* scores, const Mask& mask, int64_t num_rows, int length,
                                             float scale) {
    __shared__ float scratch[2 * ROWS][WARP];
    const Place place(length);
    const float multiplier = factor_of(scale);
    Part<T> part[ROWS][VECS];
    float max[ROWS], sum[ROWS], factor[ROWS], value[ROWS][VECS][VEC];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int64_t row = place.row + r;
        const MaskType* mask_row = MASK && row < num_rows ? mask.row(row) : nullptr;
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            if (row < num_rows && place.holds(i))
                part[r][i].read(scores + row * length, mask_row, place.vec(i), scale);
            else
                part[r][i].hide_all();
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) max[r] = greatest<T, VECS>(part[r]) * multiplier;
    warp_reduce<Max, ROWS, ROW_LANES>(max);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float base = shift(max[r]);
        float sums[VECS];
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            sums[i] = 0.f;
#pragma unroll
            for (int e = 0; e < VEC; e++)
                sums[i] += value[r][i][e] = power(fmaf(part[r][i].get(e), multiplier, -base));
        }
        sum[r] = sums[0];
#pragma unroll
        for (int i = 1; i < VECS; i++) sum[r] += sums[i];
    }
    warp_reduce<Sum, ROWS, ROW_LANES>(sum);
    merge_warps(factor, max, sum, scratch);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (place.row + r >= num_rows) break;
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            if (!place.holds(i)) break;
#pragma unroll
            for (int e = 0; e < VEC; e++) value[r][i][e] *= factor[r];
            store<T, VEC>(out + (place.row + r) * length + int64_t(place.vec(i)) * VEC, pack<T, VEC>(value[r][i]));
        }
    }
}
#else
template <typename T>
__device__ __forceinline__ void in_passes(T* out, const T* scores, const Mask& mask, int64_t row, int length,
                                          float scale) {
    __shared__ float scratch[2][WARP];
    const int num_vecs = length / VEC;
    const float multiplier = factor_of(scale);
    const MaskType* mask_row = MASK ? mask.row(row) : nullptr;
    float own_max = -INFINITY, own_sum = 0.f;
    for (int vec = threadIdx.x; vec < num_vecs; vec += THREADS) {
        Part<T> part[1];
        part[0].read(scores + row * length, mask_row, vec, scale);
        const float max = fmaxf(own_max, greatest<T, 1>(part) * multiplier), base = shift(max);
        own_sum *= power(own_max - base);
#pragma unroll
        for (int e = 0; e < VEC; e++) own_sum += power(fmaf(part[0].get(e), multiplier, -base));
        own_max = max;
    }
    float max[1] = {own_max};
    block_reduce<Max, 1, THREADS>(max, scratch);
    const float base = shift(max[0]);
    float sum[1] = {own_sum * power(own_max - base)};
    block_reduce<Sum, 1, THREADS>(sum, scratch + 1);
    const float share = max[0] == -INFINITY ? 0.f : inverse(sum[0]);
    for (int vec = threadIdx.x; vec < num_vecs; vec += THREADS) {
        Part<T> part;
        part.read(scores + row * length, mask_row, vec, scale);
        float value[VEC];
#pragma unroll
        for (int e = 0; e < VEC; e++) value[e] = power(fmaf(part.get(e), multiplier, -base)) * share;
        store<T, VEC>(out + row * length + int64_t(vec) * VEC, pack<T, VEC>(value));
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax(DTYPE* out, const DTYPE* scores, const MaskType* mask_base, int64_t num_rows, int length, float scale,
            int heads, int queries, int64_t batch_stride, int64_t head_stride, int64_t query_stride,
            uint32_t queries_factor, int queries_shift, uint32_t heads_factor, int heads_shift) {
    const Mask mask{mask_base,    heads,         queries,
                    batch_stride, head_stride,   query_stride,
                    Divisor{queries_factor, queries_shift}, Divisor{heads_factor, heads_shift}};
    wait_for_earlier_kernels();
    let_next_kernel_start();
#if VECS
    in_registers<DTYPE>(out, scores, mask, num_rows, length, scale);
#else
    in_passes<DTYPE>(out, scores, mask, blockIdx.x, length, scale);
#endif
}
