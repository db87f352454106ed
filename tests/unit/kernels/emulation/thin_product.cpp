// The thin product as a function that Python calls; all blocks run together.
#include "thin_product.cu"

extern "C" void emulate_product(int num_blocks, DTYPE* y, const DTYPE* x, const DTYPE* weight, const DTYPE* bias,
                                const DTYPE* residual, const DTYPE* norm, unsigned* counter, int m, int n, int k,
                                int width, int x_pitch, int num_tiles, int last_rows, unsigned last_ticket, float eps,
                                unsigned chance) {
    emulated::chance = chance;
    emulated::launch(
        num_blocks, (WARPS + 1) * 32,
        [=] {
            thin_product(y, x, weight, bias, residual, m, n, k, width, k, k, width, x_pitch, num_tiles, last_rows,
                         counter, last_ticket, norm, eps);
        },
        num_blocks);
}
