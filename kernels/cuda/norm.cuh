// Rows that stay in registers between their reduction and their use: what rms_norm.cu and layer_norm.cu share.
//
// A row belongs to a warp (short rows: no barrier at all) or to a block. A thread holds VECS vectors of VEC elements of
// ROWS rows, in the memory's own type: what it holds is what it has written, so a norm sees the rounded residual
// stream, as it would if the addition were an operation of its own.
//
// Macros: DTYPE, VEC, VECS, ROWS, WARP_A_ROW (0 or 1), THREADS (of a block), RESIDUAL (0: none, 1: updated in place,
// 2: only read), BIASED (0 or 1: x + input_bias). VECS = 0: a row too long for registers, read once more per pass.
#pragma once

#include "common.cuh"

namespace headrace {

struct Place {
    int thread;       // in the row's team
    int team;         // threads that share a row
    int64_t row;      // first of the ROWS
    int num_vecs;     // of a row

    __device__ __forceinline__ Place(int width)
        : thread(WARP_A_ROW ? threadIdx.x % WARP : threadIdx.x),
          team(WARP_A_ROW ? WARP : THREADS),
          row((WARP_A_ROW ? int64_t(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP : int64_t(blockIdx.x)) * ROWS),
          num_vecs(width / VEC) {}

    __device__ __forceinline__ int vec(int i) const { return thread + i * team; }

    // Elements that a warp of the team holds, of a row in registers.
    __device__ __forceinline__ int held_by(int warp) const {
        int count = 0;
#pragma unroll
        for (int i = 0; i < VECS; i++) count += min(max(num_vecs - warp * WARP - i * team, 0), WARP);
        return count * VEC;
    }
};

// Read a vector of the stream: x, plus bias and residual where there are any; write the sum back into the residual.
template <typename T>
__device__ __forceinline__ Vec<T, VEC> read_stream(const T* x, T* residual, const T* input_bias, int64_t base, int vec) {
    const int64_t at = base + int64_t(vec) * VEC;
    Vec<T, VEC> value = load_once<T, VEC>(x + at);
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
                if (place.row + r < num_rows && place.vec(i) < place.num_vecs)
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
