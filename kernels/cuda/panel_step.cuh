// A step of a product whose operands come through a ring: 64 columns of both, in panels.
#pragma once

#include "panel_products.cuh"

namespace headrace {

// c [64 x ROWS] (+)= a [64 x 64] b^T, b [ROWS x 64], on its way; unless ADD, they are the first of a tile.
template <typename T, bool ADD, int ROWS>
__device__ __forceinline__ void multiply_step(float (&c)[ROWS / 2], Matrix a, Matrix b) {
    begin_products();
    multiply_panel<T, ADD, ROWS>(c, a, b);
#pragma unroll
    for (int column = 32; column < PANEL_BYTES; column += 32)
        multiply_panel<T, true, ROWS>(c, moved(a, column), moved(b, column));
    commit_products();
}

}  // namespace headrace
