// RMSNorm [1] of x + input_bias + residual, the sum written back into the residual stream.
//
// One read and one write of each: the least that the operation can move. ROWS rows share one batch reduction.
//
// [1] B. Zhang, R. Sennrich. Root mean square layer normalization. NeurIPS 2019.
#include "norm.cuh"

using namespace headrace;

template <typename T>
__device__ __forceinline__ void normalise(T* out, const Vec<T, VEC>& x, const T* weight, int64_t base, int vec, float scale) {
    const Vec<T, VEC> w = load<T, VEC>(weight + int64_t(vec) * VEC);
    float y[VEC];
#pragma unroll
    for (int e = 0; e < VEC; e++) y[e] = x.get(e) * scale * w.get(e);
    store<T, VEC>(out + base + int64_t(vec) * VEC, pack<T, VEC>(y));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(DTYPE* out, const DTYPE* x, DTYPE* residual, const DTYPE* input_bias, const DTYPE* weight, int64_t num_rows,
             int width, float eps) {
    using T = DTYPE;
    __shared__ float scratch[ROWS][WARP];
    const Place place(width);
    // At once: a product that follows has its weight to fetch meanwhile.
    let_next_kernel_start();
    wait_for_earlier_kernels();
    float squares[ROWS] = {};
#if VECS
    Held<T> held;
    held.read(place, x, residual, input_bias, num_rows, width);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < VECS; i++)
#pragma unroll
            for (int e = 0; e < VEC; e++) squares[r] += held.at[r][i].get(e) * held.at[r][i].get(e);
#else
    for (int vec = place.thread; vec < place.num_vecs; vec += place.team) {
        const Vec<T, VEC> value = read_stream<T>(x, residual, input_bias, place.row * width, vec);
#pragma unroll
        for (int e = 0; e < VEC; e++) squares[0] += value.get(e) * value.get(e);
    }
#endif
    const float share = 1.f / width;
    if (WARP_A_ROW)
        warp_reduce<Sum, ROWS>(squares);
    else
        block_reduce<Sum, ROWS, THREADS>(squares, scratch);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (place.row + r >= num_rows) break;
        const int64_t base = (place.row + r) * width;
        const float scale = rsqrtf(squares[r] * share + eps);
#if VECS
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.holds(i)) normalise<T>(out, held.at[r][i], weight, base, place.vec(i), scale);
#else
        for (int vec = place.thread; vec < place.num_vecs; vec += place.team)
            normalise<T>(out, read_again<T>(x, residual, input_bias, base, vec), weight, base, vec, scale);
#endif
    }
}
