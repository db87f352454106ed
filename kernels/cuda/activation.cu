// SwiGLU and GeGLU [1] of a gate and an up half, GELU [2] of x + bias: elementwise, one read and one write.
//
// A block works on a stretch of one row, so that no thread divides to find its column; of x alone, where columns mean
// nothing, on a stretch of all there is.
//
// Macros: DTYPE, VEC (elements of a vector of the result), VECS (of a thread), THREADS, FUNCTION (0: SiLU, 1: GELU by
// erf, 2: GELU by tanh), FORM (0: x, 1: gate before up in a row, 2: gate and up alternate, 3: x + bias).
//
// [1] N. Shazeer. GLU variants improve transformer. arXiv:2002.05202.
// [2] D. Hendrycks, K. Gimpel. Gaussian error linear units. arXiv:1606.08415.
#include "common.cuh"
#include "logistic.cuh"

using namespace headrace;

// erf for 16-bit results: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; absolute error 1.5e-7.
__device__ __forceinline__ float erf_roughly(float x) {
    const float z = fabsf(x), t = reciprocal_roughly(1.f + 0.3275911f * z);
    const float sum =
        t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    return copysignf(1.f - sum * exp2_roughly(-1.4426950408889634f * z * z), x);
}

template <typename T>
__device__ __forceinline__ float activated(float x) {
#if FUNCTION == 0
    return x * logistic<T>(x);
#elif FUNCTION == 1
    const float root = x * 0.70710678118654752f;
    return 0.5f * x * (1.f + (sizeof(T) == 4 ? erff(root) : erf_roughly(root)));
#else
    // (1 + tanh(y)) / 2 is the logistic function of 2y.
    return x * logistic<T>(1.5957691216057308f * (x + 0.044715f * x * x * x));
#endif
}

// Of an element among those that a stretch is of.
using Index = std::conditional_t<FORM == 0, int64_t, int>;

template <typename T>
__device__ __forceinline__ Vec<T, VEC> at(const T* x, const T* bias, int64_t row, int width, Index column) {
    float y[VEC];
#if FORM == 0
    const Vec<T, VEC> in = load<T, VEC>(x + column);
#pragma unroll
    for (int e = 0; e < VEC; e++) y[e] = activated<T>(in.get(e));
#elif FORM == 3
    const Vec<T, VEC> in = load<T, VEC>(x + row * width + column), b = load<T, VEC>(bias + column);
#pragma unroll
    for (int e = 0; e < VEC; e++) y[e] = activated<T>(in.get(e) + b.get(e));
#else
    const T* from = x + row * 2 * width;
    Vec<T, VEC> half[2];
#pragma unroll
    for (int h = 0; h < 2; h++)
        half[h] = load<T, VEC>(from + (FORM == 1 ? int64_t(h) * width + column : 2 * int64_t(column) + h * VEC));
#pragma unroll
    for (int e = 0; e < VEC; e++) {
        const float gate = FORM == 1 ? half[0].get(e) : half[2 * e / VEC].get(2 * e % VEC);
        const float up = FORM == 1 ? half[1].get(e) : half[(2 * e + 1) / VEC].get((2 * e + 1) % VEC);
        y[e] = activated<T>(gate) * up;
    }
#endif
    return pack<T, VEC>(y);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    activation(DTYPE* out, const DTYPE* x, const DTYPE* bias, int64_t num_rows, int width) {
    using T = DTYPE;
    const Index first = (Index(blockIdx.x) * (VECS * THREADS) + threadIdx.x) * VEC;
    const int64_t row = FORM == 0 ? 0 : int64_t(blockIdx.z) * gridDim.y + blockIdx.y;
    const Index behind = FORM == 0 ? Index(num_rows * width) : Index(width);
    wait_for_earlier_kernels();
    let_next_kernel_start();
    if (row >= num_rows) return;
    Vec<T, VEC> y[VECS];
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        const Index column = first + i * THREADS * VEC;
        if (column < behind) y[i] = at<T>(x, bias, row, width, column);
    }
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        const Index column = first + i * THREADS * VEC;
        if (column < behind) store<T, VEC>(out + row * width + column, y[i]);
    }
}
