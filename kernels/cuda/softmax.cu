// Masked softmax over the last dimension: softmax(scores * scale + mask), any length.
//
// A row belongs to a warp or to a block and stays in registers; ROWS rows share one batch reduction. A longer row
// (VECS = 0) is read twice, its maximum and sum found together in one pass [1]. A row that sees nothing becomes zeros.
//
// Macros: DTYPE, VEC, VECS, ROWS, WARP_A_ROW, THREADS as in norm.cuh; MASK (0: none, 1: bytes, nonzero sees, 2: DTYPE,
// added). The mask's rows are found by strides, so that it may be broadcast.
//
// [1] M. Milakov, N. Gimelshein. Online normalizer calculation for softmax. arXiv:1805.02867.
#include "common.cuh"

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

    __device__ __forceinline__ const MaskType* row(int64_t row) const {
        const int64_t query = row % queries, head = row / queries % heads, batch = row / queries / heads;
        return base + batch * batch_stride + head * head_stride + query * query_stride;
    }
};

template <typename T>
__device__ __forceinline__ void masked(float (&value)[VEC], const T* scores, const MaskType* mask, int vec, float scale) {
    const Vec<T, VEC> raw = load_once<T, VEC>(scores + int64_t(vec) * VEC);
#pragma unroll
    for (int e = 0; e < VEC; e++) value[e] = raw.get(e) * scale;
#if MASK
    // Scalar loads: a mask's rows are aligned to nothing, and the cache has them after the first head.
#pragma unroll
    for (int e = 0; e < VEC; e++) {
        const MaskType m = mask[int64_t(vec) * VEC + e];
#if MASK == 1
        value[e] = m ? value[e] : -INFINITY;
#else
        value[e] += to_float(m);
#endif
    }
#endif
}

// exp(value - max), and 0 in a row whose maximum is -inf.
__device__ __forceinline__ float exponential(float value, float max) {
    return max == -INFINITY ? 0.f : sizeof(DTYPE) == 4 ? expf(value - max) : __expf(value - max);
}

#if VECS
template <typename T>
__device__ __forceinline__ void in_registers(T* out, const T* scores, const Mask& mask, int64_t first_row,
                                             int64_t num_rows, int length, float scale, float (*scratch)[WARP]) {
    const int thread = WARP_A_ROW ? threadIdx.x % WARP : threadIdx.x, team = WARP_A_ROW ? WARP : THREADS;
    const int num_vecs = length / VEC;
    float value[ROWS][VECS][VEC], max[ROWS], sum[ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        max[r] = -INFINITY;
        const int64_t row = first_row + r;
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            const int vec = thread + i * team;
#pragma unroll
            for (int e = 0; e < VEC; e++) value[r][i][e] = -INFINITY;
            if (row < num_rows && vec < num_vecs)
                masked<T>(value[r][i], scores + row * length, MASK ? mask.row(row) : nullptr, vec, scale);
#pragma unroll
            for (int e = 0; e < VEC; e++) max[r] = fmaxf(max[r], value[r][i][e]);
        }
    }
    if (WARP_A_ROW)
        warp_reduce<Max, ROWS>(max);
    else
        block_reduce<Max, ROWS>(max, scratch);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < VECS; i++)
#pragma unroll
            for (int e = 0; e < VEC; e++) sum[r] += value[r][i][e] = exponential(value[r][i][e], max[r]);
    if (WARP_A_ROW)
        warp_reduce<Sum, ROWS>(sum);
    else
        block_reduce<Sum, ROWS>(sum, scratch + ROWS);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (first_row + r >= num_rows) break;
        // Not sum == 0: what is not a number shall stay visible.
        const float share = max[r] == -INFINITY ? 0.f : 1.f / sum[r];
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            const int vec = thread + i * team;
            if (vec >= num_vecs) break;
            Vec<T, VEC> y;
#pragma unroll
            for (int e = 0; e < VEC; e++) y.set(e, value[r][i][e] * share);
            store_once<T, VEC>(out + (first_row + r) * length + int64_t(vec) * VEC, y);
        }
    }
}
#else
template <typename T>
__device__ __forceinline__ void in_passes(T* out, const T* scores, const Mask& mask, int64_t row, int length, float scale,
                                          float (*scratch)[WARP]) {
    const int num_vecs = length / VEC;
    const T* from = scores + row * length;
    const MaskType* mask_row = MASK ? mask.row(row) : nullptr;
    float own_max = -INFINITY, own_sum = 0.f;
    for (int vec = threadIdx.x; vec < num_vecs; vec += THREADS) {
        float value[VEC], max = own_max;
        masked<T>(value, from, mask_row, vec, scale);
#pragma unroll
        for (int e = 0; e < VEC; e++) max = fmaxf(max, value[e]);
        own_sum *= exponential(own_max, max);
#pragma unroll
        for (int e = 0; e < VEC; e++) own_sum += exponential(value[e], max);
        own_max = max;
    }
    float max[1] = {own_max};
    block_reduce<Max, 1>(max, scratch);
    float sum[1] = {own_sum * exponential(own_max, max[0])};
    block_reduce<Sum, 1>(sum, scratch + 1);
    const float share = max[0] == -INFINITY ? 0.f : 1.f / sum[0];
    for (int vec = threadIdx.x; vec < num_vecs; vec += THREADS) {
        float value[VEC];
        masked<T>(value, from, mask_row, vec, scale);
        Vec<T, VEC> y;
#pragma unroll
        for (int e = 0; e < VEC; e++) y.set(e, exponential(value[e], max[0]) * share);
        store_once<T, VEC>(out + row * length + int64_t(vec) * VEC, y);
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax(DTYPE* out, const DTYPE* scores, const MaskType* mask_base, int64_t num_rows, int length, float scale,
            int heads, int queries, int64_t batch_stride, int64_t head_stride, int64_t query_stride) {
    __shared__ float scratch[2 * ROWS][WARP];
    const Mask mask{mask_base, heads, queries, batch_stride, head_stride, query_stride};
    wait_for_earlier_kernels();
    let_next_kernel_start();
#if VECS
    const int64_t team = WARP_A_ROW ? int64_t(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP : int64_t(blockIdx.x);
    in_registers<DTYPE>(out, scores, mask, team * ROWS, num_rows, length, scale, scratch);
#else
    in_passes<DTYPE>(out, scores, mask, blockIdx.x, length, scale, scratch);
#endif
}
