// The fixed product as a function that Python calls.
#include "fixed_product.cu"

extern "C" void emulate_product(int num_blocks, DTYPE* y, const DTYPE* x, const DTYPE* weight, const DTYPE* bias, int m,
                                int n, int k, long long y_stride, long long x_stride, long long weight_stride) {
    emulated::launch(num_blocks, TOKEN_WARPS * OUTPUT_WARPS * 32, [=] {
        fixed_product(y, x, weight, bias, m, n, k, y_stride, x_stride, weight_stride);
    });
}
