// Rows that stay in registers between their reduction and their use: what rms_norm.cu and layer_norm.cu share.
//
// Rows are held in the memory's own type: what a thread holds is what it has written, so a norm sees the rounded residual
// stream, as it would if the addition were an operation of its own.
//
// Macros: those of rows.cuh; RESIDUAL (0: none, 1: updated in place, 2: only read), BIASED (0 or 1: x + input_bias).
// VECS = 0: a row too long for registers, read once more per pass.
#pragma once

#include "rows.cuh"

namespace headrace {

// Read a vector of the stream: x, plus bias and residual where there are any; write the sum back into the residual.
template <typename T>
__device__ __forceinline__ Vec<T, VEC> read_stream(const T* x, T* residual, const T* input_bias, int64_t base, int vec) {
    const int64_t at = base + int64_t(vec) * VEC;
    Vec<T, VEC> value = load<T, VEC>(x + at);
    if (BIASED) {
        const Vec<T, VEC> bias = load<T, VEC>(input_bias + int64_t(vec) * VEC);
        float sum[VEC];
#pragma unroll
        for (int e = 0; e < VEC; e++) sum[e] = value.get(e) + bias.get(e);
        value = pack<T, VEC>(sum);
    }
    if (RESIDUAL) {
        const Vec<T, VEC> before = load<T, VEC>(residual + at);
        float sum[VEC];
#pragma unroll
        for (int e = 0; e < VEC; e++) sum[e] = before.get(e) + value.get(e);
        value = pack<T, VEC>(sum);
        if (RESIDUAL == 1) store<T, VEC>(residual + at, value);
    }
    return value;
}

template <typename T>
struct Held {
    Vec<T, VEC> at[ROWS][VECS ? VECS : 1];

    __device__ __forceinline__ void read(const Place& place, const T* x, T* residual, const T* input_bias,
                                         int64_t num_rows, int width) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int i = 0; i < VECS; i++) {
                at[r][i] = Vec<T, VEC>{};
                if (place.row + r < num_rows && place.holds(i))
                    at[r][i] = read_stream<T>(x, residual, input_bias, (place.row + r) * width, place.vec(i));
            }
        }
    }
};

// Read again what read_stream has returned: from the residual if that was updated, else by adding once more.
template <typename T>
__device__ __forceinline__ Vec<T, VEC> read_again(const T* x, T* residual, const T* input_bias, int64_t base, int vec) {
    if (RESIDUAL == 1) return load<T, VEC>(residual + base + int64_t(vec) * VEC);
    return read_stream<T>(x, residual, input_bias, base, vec);
}

}  // namespace headrace
