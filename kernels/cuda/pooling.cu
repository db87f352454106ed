// A vector for each row of packed tokens: its first token's, its last one's, or each number's mean or maximum; and of
// length 1, if asked for.
//
//   out fp32 [num_rows, width]; x [num_tokens, width]; starts [num_rows + 1]; a row without tokens becomes zeros.
//
// A block has a row. Its threads lie side by side over the row's width, and behind each other over its tokens where
// threads are left; what each has of its tokens meets in shared memory, where every thread takes its share of the
// numbers. Macros: DTYPE, VEC, THREADS, AHEAD (tokens of a thread, whose vectors are on their way together), POOLING (0:
// first, 1: last, 2: mean, 3: maximum), NORMALISE.
#include "common.cuh"

using namespace headrace;

using Op = std::conditional_t<POOLING == 3, Max, Sum>;

// AHEAD tokens of the thread, each ``stride`` behind the other: all of their vectors are asked for before one is used.
template <bool ALL>
__device__ __forceinline__ void gather(float (&sum)[VEC], const DTYPE* from, int token, int end, int stride, int width) {
    Vec<DTYPE, VEC> held[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const int at = ALL ? token + i * stride : min(token + i * stride, end - 1);
        held[i] = load<DTYPE, VEC>(from + static_cast<int64_t>(at) * width);
    }
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
        if (ALL || token + i * stride < end)
#pragma unroll
            for (int e = 0; e < VEC; e++) sum[e] = Op::of(sum[e], held[i].get(e));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pooling(float* out, const DTYPE* x, const int* starts, int width) {
    __shared__ __align__(16) float partial[THREADS * VEC];  // [groups][columns][VEC]
    __shared__ float scratch[1][WARP];
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int num_vecs = width / VEC, columns = min(num_vecs, THREADS), groups = THREADS / columns;
    const int column = threadIdx.x % columns, group = threadIdx.x / columns;
    int begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    const int length = end - begin;
    if (POOLING == 0) end = min(end, begin + 1);
    if (POOLING == 1) begin = max(begin, end - 1);
    float* own = out + static_cast<int64_t>(blockIdx.x) * width;
    float squares[1] = {0};
    // As often for all threads, which meet in it.
    for (int base = 0; base < num_vecs; base += columns) {
        if (group < groups && base + column < num_vecs) {
            float sum[VEC];
#pragma unroll
            for (int e = 0; e < VEC; e++) sum[e] = Op::NEUTRAL;
            const DTYPE* from = x + static_cast<int64_t>(base + column) * VEC;
            int token = begin + group;
            for (; token + (AHEAD - 1) * groups < end; token += AHEAD * groups)
                gather<true>(sum, from, token, end, groups, width);
            if (token < end) gather<false>(sum, from, token, end, groups, width);
#pragma unroll
            for (int e = 0; e < VEC; e++) partial[threadIdx.x * VEC + e] = sum[e];
        }
        __syncthreads();
        const int count = min(num_vecs - base, columns) * VEC;
        for (int at = threadIdx.x; at < count; at += THREADS) {
            float sum = partial[at];
            for (int other = 1; other < groups; other++) sum = Op::of(sum, partial[other * columns * VEC + at]);
            if (POOLING == 2) sum /= max(length, 1);
            if (length == 0) sum = 0;
            own[base * VEC + at] = sum;
            squares[0] += sum * sum;
        }
        __syncthreads();
    }
    if (!NORMALISE) return;
    block_reduce<Sum, 1, THREADS>(squares, scratch);
    // As torch's normalize: a shorter vector is divided by so much. A thread finds the numbers that it wrote itself.
    const float norm = fmaxf(sqrtf(squares[0]), 1e-12f);
    for (int at = threadIdx.x; at < width; at += THREADS) own[at] /= norm;
}
