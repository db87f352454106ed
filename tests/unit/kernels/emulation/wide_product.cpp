// The wide product as a function that Python calls.
#include "wide_product.cu"

extern "C" void emulate_product(int num_blocks, const headrace::Map* weight, const headrace::Map* x, DTYPE* y,
                                const DTYPE* bias, const DTYPE* residual, int m, int n, int num_steps, int num_tiles,
                                int num_token_tiles, int band, int num_stages, int x_rows, long long y_stride,
                                long long residual_stride, unsigned chance) {
    headrace::TensorMap weight_map, x_map;
    memcpy(weight_map.encoded, weight, sizeof(*weight)), memcpy(x_map.encoded, x, sizeof(*x));
    emulated::chance = chance;
    emulated::launch(
        num_blocks, headrace::CONSUMERS + headrace::FILLING_WARPS * headrace::WARP,
        [=] {
            wide_product(y, bias, residual, y_stride, residual_stride, m, n, weight_map, x_map, num_steps, num_tiles,
                         num_token_tiles, band, num_stages, x_rows);
        },
        headrace::CLUSTER);
}
