// LayerNorm [1] of x + input_bias + residual, the sum written back into the residual stream.
//
// The variance never is E[x^2] - E[x]^2, which cancels where the mean is large. A warp computes on differences from the
// first element that it holds, its pivot, so that a mean of any size costs no digits; it takes their mean, then the
// squares around that, so that a pivot far from all others costs none either; warps' counts, means and squares are
// merged by the formula of Chan, Golub and LeVeque [2], with a single barrier.
//
// [1] J. L. Ba, J. R. Kiros, G. E. Hinton. Layer normalization. arXiv:1607.06450.
// [2] T. F. Chan, G. H. Golub, R. J. LeVeque. Updating formulae and a pairwise algorithm for computing sample variances.
//     Stanford STAN-CS-79-773, 1979.
#include "norm.cuh"

using namespace headrace;

#ifndef ONE_ROUND
#define ONE_ROUND 1
#endif
#ifndef MIN_BLOCKS
#define MIN_BLOCKS 1
#endif
#ifndef OUT_STORE
#define OUT_STORE store
#endif

struct Moments {
    float mean[ROWS];     // less the warp's pivot
    float squares[ROWS];  // sum of (x - mean)^2
};

// From warps' moments to the row's: every warp merges all of them itself.
__device__ __forceinline__ void merge_warps(Moments& of, const float (&pivot)[ROWS], const Place& place, int width,
                                            float (*scratch)[WARP]) {
    constexpr int num_warps = THREADS / WARP, span = power_of_two(num_warps);
    if (num_warps == 1) return;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, from = lane % span;
    if (lane == 0) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            scratch[r][warp] = of.mean[r];
            scratch[ROWS + r][warp] = of.squares[r];
            scratch[2 * ROWS + r][warp] = pivot[r];
        }
    }
    __syncthreads();
    const float count = from < num_warps ? place.held_by(from) : 0;
    float mean[ROWS], weighted[ROWS], squares[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        // All of them less the first warp's pivot.
        mean[r] = from < num_warps ? scratch[r][from] + (scratch[2 * ROWS + r][from] - scratch[2 * ROWS + r][0]) : 0.f;
        weighted[r] = mean[r] * (count / width);
    }
    warp_reduce<Sum, ROWS, span>(weighted);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float off = mean[r] - weighted[r];
        squares[r] = (from < num_warps ? scratch[ROWS + r][from] : 0.f) + count * off * off;
    }
    warp_reduce<Sum, ROWS, span>(squares);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        of.mean[r] = weighted[r] - (pivot[r] - scratch[2 * ROWS + r][0]);
        of.squares[r] = squares[r];
    }
}

#if ONE_ROUND
// Mean and squares of as many values, of which all that are merged have equal numbers (EVEN) or not.
template <int DISTANCE_TO>
__device__ __forceinline__ void merge_lanes(Moments& of, float& count) {
#pragma unroll
    for (int distance = 1; distance < DISTANCE_TO; distance *= 2) {
        float mean[ROWS], squares[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            mean[r] = __shfl_xor_sync(ALL_LANES, of.mean[r], distance);
            squares[r] = __shfl_xor_sync(ALL_LANES, of.squares[r], distance);
        }
        const float others = EVEN ? count : __shfl_xor_sync(ALL_LANES, count, distance);
        const float both = count + others;
        const float share = EVEN ? 0.5f : both > 0.f ? __fdividef(others, both) : 0.f;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float off = mean[r] - of.mean[r];
            of.squares[r] = of.squares[r] + squares[r] + off * off * (count * share);
            of.mean[r] = EVEN ? 0.5f * (of.mean[r] + mean[r]) : of.mean[r] + off * share;
        }
        count = both;
    }
}

// The row's moments; ``x`` holds differences from the warp's pivot.
__device__ __forceinline__ Moments moments(const float (&x)[ROWS][VECS ? VECS : 1][VEC], const float (&pivot)[ROWS],
                                           const Place& place, int width, float (*scratch)[WARP]) {
    float count = 0;
#pragma unroll
    for (int i = 0; i < VECS; i++) count += place.holds(i) ? VEC : 0;
    const float share = EVEN ? 1.f / (VECS ? VECS * VEC : 1) : count > 0.f ? __fdividef(1.f, count) : 0.f;
    Moments of;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        of.mean[r] = of.squares[r] = 0.f;
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.holds(i))
#pragma unroll
                for (int e = 0; e < VEC; e++) of.mean[r] += x[r][i][e];
        of.mean[r] *= share;
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.holds(i))
#pragma unroll
                for (int e = 0; e < VEC; e++) {
                    const float off = x[r][i][e] - of.mean[r];
                    of.squares[r] += off * off;
                }
    }
    merge_lanes<WARP>(of, count);
    if (!WARP_A_ROW && THREADS > WARP) {
        constexpr int num_warps = THREADS / WARP, span = power_of_two(num_warps);
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, from = lane % span;
        if (lane == 0) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                scratch[r][warp] = of.mean[r];
                scratch[ROWS + r][warp] = of.squares[r];
                scratch[2 * ROWS + r][warp] = pivot[r];
            }
        }
        __syncthreads();
        count = from < num_warps ? (EVEN ? VECS * VEC * WARP : place.held_by(from)) : 0;
        static_assert(!EVEN || span == num_warps, "warps of equal numbers only");
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            // All of them less the first warp's pivot.
            of.mean[r] = from < num_warps ? scratch[r][from] + (scratch[2 * ROWS + r][from] - scratch[2 * ROWS + r][0]) : 0.f;
            of.squares[r] = from < num_warps ? scratch[ROWS + r][from] : 0.f;
        }
        merge_lanes<span>(of, count);
#pragma unroll
        for (int r = 0; r < ROWS; r++) of.mean[r] -= pivot[r] - scratch[2 * ROWS + r][0];
    }
    return of;
}
#else
// The row's moments; ``x`` holds differences from the warp's pivot.
__device__ __forceinline__ Moments moments(const float (&x)[ROWS][VECS ? VECS : 1][VEC], const float (&pivot)[ROWS],
                                           const Place& place, int width, float (*scratch)[WARP]) {
    const int count = place.held_by(WARP_A_ROW ? 0 : threadIdx.x / WARP);
    const float share = count ? 1.f / count : 0.f;
    Moments of;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        of.mean[r] = of.squares[r] = 0.f;
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.holds(i))
#pragma unroll
                for (int e = 0; e < VEC; e++) of.mean[r] += x[r][i][e];
    }
    warp_reduce<Sum, ROWS>(of.mean);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        of.mean[r] *= share;
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.holds(i))
#pragma unroll
                for (int e = 0; e < VEC; e++) {
                    const float off = x[r][i][e] - of.mean[r];
                    of.squares[r] += off * off;
                }
    }
    warp_reduce<Sum, ROWS>(of.squares);
    if (!WARP_A_ROW) merge_warps(of, pivot, place, width, scratch);
    return of;
}

#endif

// A row too long for registers: the mean in one pass, the squares around it in the next.
template <typename T>
__device__ __forceinline__ Moments moments_in_passes(const T* x, T* residual, const T* input_bias, float pivot,
                                                     const Place& place, int width, float (*scratch)[WARP]) {
    const int64_t base = place.row * width;
    Moments of;
    of.mean[0] = of.squares[0] = 0.f;
    for (int vec = place.thread; vec < place.num_vecs; vec += place.team) {
        const Vec<T, VEC> value = read_stream<T>(x, residual, input_bias, base, vec);
#pragma unroll
        for (int e = 0; e < VEC; e++) of.mean[0] += value.get(e) - pivot;
    }
    block_reduce<Sum, 1, THREADS>(reinterpret_cast<float(&)[1]>(of.mean), scratch);
    of.mean[0] /= width;
    for (int vec = place.thread; vec < place.num_vecs; vec += place.team) {
        const Vec<T, VEC> value = read_again<T>(x, residual, input_bias, base, vec);
#pragma unroll
        for (int e = 0; e < VEC; e++) {
            const float off = value.get(e) - pivot - of.mean[0];
            of.squares[0] += off * off;
        }
    }
    block_reduce<Sum, 1, THREADS>(reinterpret_cast<float(&)[1]>(of.squares), scratch + ROWS);
    return of;
}

template <typename T>
struct Affine {
    Vec<T, VEC> weight, bias;

    __device__ __forceinline__ void read(const T* weights, const T* biases, int vec) {
        const int64_t column = int64_t(vec) * VEC;
        weight = load<T, VEC>(weights + column);
        bias = Vec<T, VEC>{};
        if (biases) bias = load<T, VEC>(biases + column);
    }

    // Write (x - mean) * scale * weight + bias, where ``x`` and the mean are differences from the pivot.
    __device__ __forceinline__ void write(T* out, const float (&x)[VEC], float mean, float scale) const {
        float y[VEC];
#pragma unroll
        for (int e = 0; e < VEC; e++) y[e] = (x[e] - mean) * scale * weight.get(e) + bias.get(e);
        OUT_STORE<T, VEC>(out, pack<T, VEC>(y));
    }
};

template <typename T>
__device__ __forceinline__ void differences(float (&x)[VEC], const Vec<T, VEC>& value, float pivot) {
#pragma unroll
    for (int e = 0; e < VEC; e++) x[e] = value.get(e) - pivot;
}

#if VECS
template <typename T>
__device__ __forceinline__ void rows_in_registers(T* out, const T* x, T* residual, const T* input_bias, const T* weight,
                                                  const T* bias, int64_t num_rows, int width, float eps) {
    // Two by turns: with one barrier a turn, no warp overwrites what another one still reads.
    __shared__ float scratch[STAGES ? 2 : 1][3 * ROWS][WARP];
    Place place(width);
#if STAGES
    extern __shared__ __align__(16) char stages[];
    Ahead<T> ahead(stages, place, x, num_rows, width);
    Affine<T> affine[VECS];
#pragma unroll
    for (int i = 0; i < VECS; i++)
        if (place.holds(i)) affine[i].read(weight, bias, place.vec(i));
#endif
    int turn = 0;
    do {
        Held<T> held;
#if STAGES
        ahead.next(held.at, place);
#else
        held.read(place, x, residual, input_bias, num_rows, width);
#endif
        float off[ROWS][VECS][VEC], pivot[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            pivot[r] = __shfl_sync(ALL_LANES, held.at[r][0].get(0), 0);
#pragma unroll
            for (int i = 0; i < VECS; i++) differences<T>(off[r][i], held.at[r][i], pivot[r]);
        }
        const Moments of = moments(off, pivot, place, width, scratch[STAGES ? turn : 0]);
        turn ^= 1;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (place.row + r >= num_rows) break;
            const float scale = rsqrtf(of.squares[r] / width + eps);
#pragma unroll
            for (int i = 0; i < VECS; i++) {
                if (!place.holds(i)) break;
#if !STAGES
                Affine<T> affine[VECS];
                affine[i].read(weight, bias, place.vec(i));
#endif
                affine[i].write(out + (place.row + r) * width + int64_t(place.vec(i)) * VEC, off[r][i], of.mean[r], scale);
            }
        }
    } while (STAGES && (place.row += place.step) < num_rows);
}
#else
template <typename T>
__device__ __forceinline__ void row_in_passes(T* out, const T* x, T* residual, const T* input_bias, const T* weight,
                                              const T* bias, int width, float eps) {
    __shared__ float scratch[3 * ROWS][WARP];
    const Place place(width);
    const int64_t base = place.row * width;
    // All read it before any of them may overwrite it.
    const float pivot = to_float(RESIDUAL ? residual[base] : x[base]);
    __syncthreads();
    const Moments of = moments_in_passes<T>(x, residual, input_bias, pivot, place, width, scratch);
    const float scale = rsqrtf(of.squares[0] / width + eps);
    for (int vec = place.thread; vec < place.num_vecs; vec += place.team) {
        float off[VEC];
        differences<T>(off, read_again<T>(x, residual, input_bias, base, vec), pivot);
        Affine<T> affine;
        affine.read(weight, bias, vec);
        affine.write(out + base + int64_t(vec) * VEC, off, of.mean[0], scale);
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    layer_norm(DTYPE* out, const DTYPE* x, DTYPE* residual, const DTYPE* input_bias, const DTYPE* weight,
               const DTYPE* bias, int64_t num_rows, int width, float eps) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
#if VECS
    rows_in_registers<DTYPE>(out, x, residual, input_bias, weight, bias, num_rows, width, eps);
#else
    row_in_passes<DTYPE>(out, x, residual, input_bias, weight, bias, width, eps);
#endif
}
