// kernels/cuda/warpgroup.cuh for fibers: matrices in shared memory by PTX's canonical layouts with a swizzle.
#pragma once

#include "panels.cuh"

namespace headrace {

// Where the rows, or groups of 8 rows, of a matrix lie.
struct Matrix {
    uint32_t start, panel_bytes;
};
inline Matrix rows_matrix(uint32_t shared_address) { return {shared_address, 0}; }
inline Matrix columns_matrix(uint32_t shared_address, int panel_bytes) {
    return {shared_address, static_cast<uint32_t>(panel_bytes)};
}
inline Matrix moved(Matrix matrix, int num_bytes) { return {matrix.start + num_bytes, matrix.panel_bytes}; }

inline void show_to_products() {}
inline void begin_products() {}
template <int N>
void finish_products(float (&)[N]) {
    auto& groups = emulated::own_fiber().products;
    bool any = false;
    for (const auto& group : groups)
        for (const auto& product : group) product(), any = true;
    groups.assign(1, {});
    if (any) emulated::meet(emulated::own_warp(), WARP);
}
template <int N>
void keep(const uint32_t (&)[N][4]) {}

// The hardware exchanges an address's bits from 4 on by those from 7 on, as many as number a row's 16-byte groups.
template <typename T>
float number_at(uint32_t address) {
    T value;
    memcpy(&value, emulated::all_memory + (address ^ (address >> 7 & (PANEL_BYTES / 16 - 1)) << 4), 2);
    return to_float(value);
}
template <typename T>
float in_row(const Matrix& x, int row, int column) {
    return number_at<T>(x.start + row * PANEL_BYTES + column * 2);
}
template <typename T>
float in_column(const Matrix& x, int row, int column) {
    return number_at<T>(x.start + column * 2 / PANEL_BYTES * x.panel_bytes + column * 2 % PANEL_BYTES + row * PANEL_BYTES);
}

// All four warps are done with shared memory when any of them goes on.
inline void meet_warpgroup() { emulated::meet(emulated::own_warpgroup(), 128); }

template <typename T>
void multiply_rows(float (&c)[32], const Matrix& a, const Matrix& b, int add) {
    const int lane = threadIdx.x % WARP, first = threadIdx.x % 128 / WARP * 16;
    for (int i = 0; i < 32; i++) {
        const int row = first + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += in_row<T>(a, row, k) * in_row<T>(b, column, k);
        c[i] = add ? c[i] + sum : sum;
    }
    meet_warpgroup();
}

template <typename T>
void multiply_held_rows(float (&c)[32], const uint32_t (&a)[4], const Matrix& b, int add) {
    struct Operand {
        uint32_t a[4];
    };
    const emulated::Slot* all = emulated::exchange(Operand{{a[0], a[1], a[2], a[3]}});
    const int lane = threadIdx.x % WARP;
    for (int i = 0; i < 32; i++) {
        const int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            const auto left = emulated::brought<Operand>(all[row % 8 * 4 + k % 8 / 2]);
            T both[2];
            memcpy(both, &left.a[row / 8 + k / 8 * 2], 4);
            sum += to_float(both[k % 2]) * in_row<T>(b, column, k);
        }
        c[i] = add ? c[i] + sum : sum;
    }
    meet_warpgroup();
}

template <typename T, int N>
void multiply_columns(float (&c)[N], const uint32_t (&a)[4], const Matrix& b) {
    struct Operand {
        uint32_t a[4];
    };
    const emulated::Slot* all = emulated::exchange(Operand{{a[0], a[1], a[2], a[3]}});
    const int lane = threadIdx.x % WARP;
    for (int i = 0; i < N; i++) {
        const int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            const auto left = emulated::brought<Operand>(all[row % 8 * 4 + k % 8 / 2]);
            T both[2];
            memcpy(both, &left.a[row / 8 + k / 8 * 2], 4);
            sum += to_float(both[k % 2]) * in_column<T>(b, k, column);
        }
        c[i] += sum;
    }
    meet_warpgroup();
}

}  // namespace headrace
