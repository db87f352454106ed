// LayerNorm [1] of x + input_bias + residual, the sum written back into the residual stream.
//
// The variance never is E[x^2] - E[x]^2, which cancels where the mean is large. A warp takes its own mean, then the
// squares around it together with what the mean had lost to rounding (one batch reduction of both); warps' counts,
// means and squares are merged by the formula of Chan, Golub and LeVeque [2]: exact, with a single barrier.
//
// [1] J. L. Ba, J. R. Kiros, G. E. Hinton. Layer normalization. arXiv:1607.06450.
// [2] T. F. Chan, G. H. Golub, R. J. LeVeque. Updating formulae and a pairwise algorithm for computing sample variances.
//     Stanford STAN-CS-79-773, 1979.
#include "norm.cuh"

using namespace headrace;

struct Moments {
    float mean[ROWS], squares[ROWS];  // squares: sum of (x - mean)^2
};

// From a warp's moments, ``count`` elements each, to the row's.
__device__ __forceinline__ void merge_warps(Moments& of, const Place& place, int width, float (*scratch)[WARP]) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, num_warps = THREADS / WARP;
    if (num_warps == 1) return;
    if (lane == 0) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            scratch[r][warp] = of.mean[r];
            scratch[ROWS + r][warp] = of.squares[r];
        }
    }
    __syncthreads();
    const float count = lane < num_warps ? place.held_by(lane) : 0;
    float mean[ROWS], weighted[ROWS], squares[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        mean[r] = lane < num_warps ? scratch[r][lane] : 0.f;
        weighted[r] = mean[r] * (count / width);
    }
    warp_reduce<Sum, ROWS>(weighted);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float off = mean[r] - weighted[r];
        squares[r] = (lane < num_warps ? scratch[ROWS + r][lane] : 0.f) + count * off * off;
    }
    warp_reduce<Sum, ROWS>(squares);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        of.mean[r] = weighted[r];
        of.squares[r] = squares[r];
    }
}

template <typename T>
__device__ __forceinline__ Moments moments(const Held<T>& held, const Place& place, int width, float (*scratch)[WARP]) {
    const int count = place.held_by(WARP_A_ROW ? 0 : threadIdx.x / WARP);
    const float share = count ? 1.f / count : 0.f;
    float sum[ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < VECS; i++)
#pragma unroll
            for (int e = 0; e < VEC; e++) sum[r] += held.at[r][i].get(e);
    warp_reduce<Sum, ROWS>(sum);
    float around[2 * ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.vec(i) < place.num_vecs)
#pragma unroll
                for (int e = 0; e < VEC; e++) {
                    const float off = held.at[r][i].get(e) - sum[r] * share;
                    around[r] += off;
                    around[ROWS + r] += off * off;
                }
    warp_reduce<Sum, 2 * ROWS>(around);
    Moments of;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        of.mean[r] = sum[r] * share + around[r] * share;
        of.squares[r] = fmaxf(around[ROWS + r] - around[r] * around[r] * share, 0.f);
    }
    if (!WARP_A_ROW) merge_warps(of, place, width, scratch);
    return of;
}

// A row too long for registers: the mean in one pass, the squares around it in the next.
template <typename T>
__device__ __forceinline__ Moments moments_in_passes(const T* x, T* residual, const T* input_bias, const Place& place,
                                                     int width, float (*scratch)[WARP]) {
    const int64_t base = place.row * width;
    float sum[1] = {0.f};
    for (int vec = place.thread; vec < place.num_vecs; vec += place.team) {
        const Vec<T, VEC> value = read_stream<T>(x, residual, input_bias, base, vec);
#pragma unroll
        for (int e = 0; e < VEC; e++) sum[0] += value.get(e);
    }
    block_reduce<Sum, 1>(sum, scratch);
    const float mean = sum[0] / width;
    float around[2] = {0.f, 0.f};
    for (int vec = place.thread; vec < place.num_vecs; vec += place.team) {
        const Vec<T, VEC> value = read_again<T>(x, residual, input_bias, base, vec);
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            const float off = value.get(e) - mean;
            around[0] += off;
            around[1] += off * off;
        }
    }
    __syncthreads();
    block_reduce<Sum, 2>(around, scratch);
    Moments of;
    of.mean[0] = mean + around[0] / width;
    of.squares[0] = fmaxf(around[1] - around[0] * around[0] / width, 0.f);
    return of;
}

template <typename T>
__device__ __forceinline__ void normalise(T* out, const Vec<T, VEC>& x, const T* weight, const T* bias, int64_t base,
                                          int vec, float mean, float scale) {
    const int64_t column = int64_t(vec) * VEC;
    const Vec<T, VEC> w = load<T, VEC>(weight + column);
    Vec<T, VEC> b{}, y;
    if (bias) b = load<T, VEC>(bias + column);
#pragma unroll
    for (int e = 0; e < VEC; e++) y.set(e, (x.get(e) - mean) * scale * w.get(e) + (bias ? b.get(e) : 0.f));
    store<T, VEC>(out + base + column, y);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm(DTYPE* out, const DTYPE* x, DTYPE* residual, const DTYPE* input_bias, const DTYPE* weight,
               const DTYPE* bias, int64_t num_rows, int width, float eps) {
    using T = DTYPE;
    __shared__ float scratch[2 * ROWS][WARP];
    const Place place(width);
    wait_for_earlier_kernels();
    let_next_kernel_start();
#if VECS
    Held<T> held;
    held.read(place, x, residual, input_bias, num_rows, width);
    const Moments of = moments<T>(held, place, width, scratch);
#else
    const Moments of = moments_in_passes<T>(x, residual, input_bias, place, width, scratch);
#endif
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (place.row + r >= num_rows) break;
        const int64_t base = (place.row + r) * width;
        const float scale = rsqrtf(of.squares[r] / width + eps);
#if VECS
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.vec(i) < place.num_vecs)
                normalise<T>(out, held.at[r][i], weight, bias, base, place.vec(i), of.mean[r], scale);
#else
        for (int vec = place.thread; vec < place.num_vecs; vec += place.team) {
            const Vec<T, VEC> value = read_again<T>(x, residual, input_bias, base, vec);
            normalise<T>(out, value, weight, bias, base, vec, of.mean[r], scale);
        }
#endif
    }
}
