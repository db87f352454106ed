// kernels/cuda/tensor_core.cuh for fibers: the same register layouts, by PTX's definition of them.
#pragma once

#include "common.cuh"

namespace headrace {

template <typename T>
float half_of(uint32_t pair, int i) {
    T both[2];
    memcpy(both, &pair, 4);
    return to_float(both[i]);
}

template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Operands {
        uint32_t a[4], b[2];
    };
    const emulated::Slot* all = emulated::exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        const int row = g + i / 2 * 8, column = 2 * t + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            const auto left = emulated::brought<Operands>(all[row % 8 * 4 + k % 8 / 2]);
            const auto right = emulated::brought<Operands>(all[column * 4 + k % 8 / 2]);
            sum += half_of<T>(left.a[row / 8 + k / 8 * 2], k % 2) * half_of<T>(right.b[k / 8], k % 2);
        }
        c[i] += sum;
    }
}

inline void load(uint32_t (&a)[4], uint32_t address, bool transposed) {
    const emulated::Slot* all = emulated::exchange(address);
    const int lane = threadIdx.x % WARP;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            const int first = lane / 4, second = lane % 4 * 2 + j;
            const int row = transposed ? second : first, column = transposed ? first : second;
            const uint32_t from = emulated::brought<uint32_t>(all[i * 8 + row]) + column * 2;
            memcpy(reinterpret_cast<char*>(&a[i]) + j * 2, emulated::all_memory + from, 2);
        }
}
inline void load_matrices(uint32_t (&a)[4], uint32_t address) { load(a, address, false); }
inline void load_matrices_transposed(uint32_t (&a)[4], uint32_t address) { load(a, address, true); }

template <typename T>
uint32_t pack(float low, float high) {
    const T both[2] = {from_float<T>(low), from_float<T>(high)};
    uint32_t word;
    memcpy(&word, both, 4);
    return word;
}

inline uint32_t transpose_matrix(uint32_t rows) {
    const emulated::Slot* all = emulated::exchange(rows);
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
    uint32_t columns = 0;
    for (int i = 0; i < 2; i++)
        columns |= (emulated::brought<uint32_t>(all[(column + i) * 4 + row / 2]) >> row % 2 * 16 & 0xffff) << 16 * i;
    return columns;
}

}  // namespace headrace
