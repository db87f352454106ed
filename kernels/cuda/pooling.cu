// A vector for each row of packed tokens: its first token's, its last one's, or each number's mean or maximum; and of
// length 1, if asked for.
//
//   out fp32 [num_rows, width]; x [num_tokens, width]; starts [num_rows + 1]; a row without tokens becomes zeros.
//
// A block has a row. Its threads lie side by side over the row's width, and behind each other over its tokens where
// threads are left; their sums meet in shared memory. Macros: DTYPE, VEC, THREADS, POOLING (0: first, 1: last, 2: mean,
// 3: maximum), NORMALISE.
#include "common.cuh"

using namespace headrace;

using Op = std::conditional_t<POOLING == 3, Max, Sum>;

extern "C" __global__ void __launch_bounds__(THREADS)
    pooling(float* out, const DTYPE* x, const int* starts, int width) {
    constexpr int AHEAD = 8;  // tokens whose loads are on their way together
    __shared__ float partial[VEC][THREADS];
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
        const int vec = base + column;
        const bool works = group < groups && vec < num_vecs;
        float sum[VEC];
#pragma unroll
        for (int e = 0; e < VEC; e++) sum[e] = Op::NEUTRAL;
        if (works) {
            const DTYPE* from = x + static_cast<int64_t>(vec) * VEC;
#pragma unroll AHEAD
            for (int token = begin + group; token < end; token += groups) {
                const auto value = load<DTYPE, VEC>(from + static_cast<int64_t>(token) * width);
#pragma unroll
                for (int e = 0; e < VEC; e++) sum[e] = Op::of(sum[e], value.get(e));
            }
        }
#pragma unroll
        for (int e = 0; e < VEC; e++) partial[e][threadIdx.x] = sum[e];
        __syncthreads();
        if (works && group == 0) {
#pragma unroll
            for (int e = 0; e < VEC; e++) {
                for (int other = 1; other < groups; other++)
                    sum[e] = Op::of(sum[e], partial[e][other * columns + column]);
                if (POOLING == 2) sum[e] /= max(length, 1);
                if (length == 0) sum[e] = 0;
                own[vec * VEC + e] = sum[e];
                squares[0] += sum[e] * sum[e];
            }
        }
        __syncthreads();
    }
    if (!NORMALISE) return;
    block_reduce<Sum, 1, THREADS>(squares, scratch);
    // As torch's normalize: a shorter vector is divided by so much.
    const float norm = fmaxf(sqrtf(squares[0]), 1e-12f);
    if (group == 0)
        for (int vec = column; vec < num_vecs; vec += columns)
#pragma unroll
            for (int e = 0; e < VEC; e++) own[vec * VEC + e] /= norm;
}
