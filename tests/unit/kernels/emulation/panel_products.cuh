// kernels/cuda/panel_products.cuh for fibers. Products read as late as they may: when somebody waits for them.
#pragma once

#include "warpgroup.cuh"

namespace headrace {

inline void commit_products() { emulated::own_fiber().products.emplace_back(); }

template <int PENDING>
void wait_for_products() {
    auto& groups = emulated::own_fiber().products;  // the last one is not committed
    while (groups.size() > PENDING + 1) {
        for (const auto& product : groups.front()) product();
        groups.erase(groups.begin());
    }
    emulated::meet(emulated::own_warp(), emulated::LANES);
}

template <int N>
void pin(float (&)[N]) {}

template <int N>
void wait_for_products(float (&)[N]) {
    wait_for_products<0>();
}

template <typename T, int ADD, int ROWS>
void multiply_panel(float (&c)[ROWS / 2], Matrix a, Matrix b) {
    const int lane = threadIdx.x % WARP, first = threadIdx.x % 128 / WARP * 16;
    float* sums = c;
    emulated::own_fiber().products.back().push_back([=] {
        for (int i = 0; i < ROWS / 2; i++) {
            const int row = first + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += in_row<T>(a, row, k) * in_row<T>(b, column, k);
            sums[i] = ADD ? sums[i] + sum : sum;
        }
    });
}

}  // namespace headrace
