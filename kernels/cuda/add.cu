// x += y.
//
// Macros: DTYPE, VEC (elements of a thread), THREADS.
#include "common.cuh"

using namespace headrace;

extern "C" __global__ void __launch_bounds__(THREADS) add(DTYPE* x, const DTYPE* y, int64_t num_vecs) {
    using T = DTYPE;
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    if (at >= num_vecs) return;
    const Vec<T, VEC> a = load<T, VEC>(x + at * VEC), b = load<T, VEC>(y + at * VEC);
    float sum[VEC];
#pragma unroll
    for (int i = 0; i < VEC; i++) sum[i] = a.get(i) + b.get(i);
    store<T, VEC>(x + at * VEC, pack<T, VEC>(sum));
}
