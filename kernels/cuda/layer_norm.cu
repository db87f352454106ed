// LayerNorm [1] of x + input_bias + residual, the sum written back into the residual stream.
//
// The variance never is E[x^2] - E[x]^2, which cancels where the mean is large. A thread takes the mean of its own values
// and the squares around that; lanes' and then warps' counts, means and squares are merged by the formula of Chan, Golub
// and LeVeque [2], both in one round and with one barrier. Where fp32 could lose digits of a large mean, a warp computes on
// differences from the first element that it holds, its pivot.
//
// [1] J. L. Ba, J. R. Kiros, G. E. Hinton. Layer normalization. arXiv:1607.06450.
// [2] T. F. Chan, G. H. Golub, R. J. LeVeque. Updating formulae and a pairwise algorithm for computing sample variances.
//     Stanford STAN-CS-79-773, 1979.
#include "norm.cuh"

using namespace headrace;

// Blocks of a multiprocessor that registers shall leave room for: threads with two vectors must be many to read enough
// ahead of what is reduced.
constexpr int BLOCKS = !WARP_A_ROW && VECS == 2 ? 1536 / THREADS : 1;

// fp32 holds sums of a thread's 16-bit values to the last digit, and halves of them, however large they are.
constexpr bool PIVOTED = sizeof(DTYPE) == 4 || !EVEN;

struct Moments {
    float mean[ROWS];     // less the warp's pivot
    float squares[ROWS];  // sum of (x - mean)^2
};

// Merge the moments of SPAN neighbouring lanes, each of ``count`` values: of equally many, if EVEN.
template <int SPAN>
__device__ __forceinline__ void merge_lanes(Moments& of, float& count) {
#pragma unroll
    for (int distance = 1; distance < SPAN; distance *= 2) {
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
        // A sum a vector, lest one addition waits for the other.
        float sum[VECS ? VECS : 1] = {}, squares[VECS ? VECS : 1] = {};
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.holds(i))
#pragma unroll
                for (int e = 0; e < VEC; e++) sum[i] += x[r][i][e];
#pragma unroll
        for (int i = 1; i < VECS; i++) sum[0] += sum[i];
        of.mean[r] = sum[0] * share;
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.holds(i))
#pragma unroll
                for (int e = 0; e < VEC; e++) {
                    const float off = x[r][i][e] - of.mean[r];
                    squares[i] += off * off;
                }
#pragma unroll
        for (int i = 1; i < VECS; i++) squares[0] += squares[i];
        of.squares[r] = squares[0];
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
                if (PIVOTED) scratch[2 * ROWS + r][warp] = pivot[r];
            }
        }
        __syncthreads();
        count = from < num_warps ? (EVEN ? VECS * VEC * WARP : place.held_by(from)) : 0;
        static_assert(!EVEN || span == num_warps, "warps of equal numbers only");
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            // All of them less the first warp's pivot.
            const float shifted = PIVOTED && from < num_warps ? scratch[2 * ROWS + r][from] - scratch[2 * ROWS + r][0] : 0.f;
            of.mean[r] = from < num_warps ? scratch[r][from] + shifted : 0.f;
            of.squares[r] = from < num_warps ? scratch[ROWS + r][from] : 0.f;
        }
        merge_lanes<span>(of, count);
#pragma unroll
        for (int r = 0; PIVOTED && r < ROWS; r++) of.mean[r] -= pivot[r] - scratch[2 * ROWS + r][0];
    }
    return of;
}

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
        store<T, VEC>(out, pack<T, VEC>(y));
    }
};

template <typename T>
__device__ __forceinline__ void differences(float (&x)[VEC], const Vec<T, VEC>& value, float pivot) {
#pragma unroll
    for (int e = 0; e < VEC; e++) x[e] = PIVOTED ? value.get(e) - pivot : value.get(e);
}

#if VECS
template <typename T>
__device__ __forceinline__ void rows_in_registers(T* out, const T* x, T* residual, const T* input_bias, const T* weight,
                                                  const T* bias, int64_t num_rows, int width, float eps) {
    __shared__ float scratch[3 * ROWS][WARP];
    const Place place(width);
    Held<T> held;
    held.read(place, x, residual, input_bias, num_rows, width);
    const float row_share = 1.f / width;
    float off[ROWS][VECS][VEC], pivot[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        pivot[r] = PIVOTED ? __shfl_sync(ALL_LANES, held.at[r][0].get(0), 0) : 0.f;
#pragma unroll
        for (int i = 0; i < VECS; i++) differences<T>(off[r][i], held.at[r][i], pivot[r]);
    }
    const Moments of = moments(off, pivot, place, width, scratch);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (place.row + r >= num_rows) break;
        const float scale = rsqrtf(of.squares[r] * row_share + eps);
#pragma unroll
        for (int i = 0; i < VECS; i++) {
            if (!place.holds(i)) break;
            Affine<T> affine;
            affine.read(weight, bias, place.vec(i));
            affine.write(out + (place.row + r) * width + int64_t(place.vec(i)) * VEC, off[r][i], of.mean[r], scale);
        }
    }
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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
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
