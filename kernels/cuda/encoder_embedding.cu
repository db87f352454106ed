// What a token is to an encoder's first layer: its rows of the tables of words, positions and types, added up and
// normalised, in one pass.
//
//   out [num_tokens, width]; token_ids, positions, type_ids [num_tokens]; no type_ids: all are 0; no types: none is
//   added. An id that its table does not hold adds nothing.
//
// The sum stays in fp32 from the first addition to the norm; the variance is that around the mean. Macros: those of
// rows.cuh.
#include "rows.cuh"

using namespace headrace;

template <int X>
__device__ __forceinline__ void reduce(float (&value)[X], float (*scratch)[WARP]) {
    if (WARP_A_ROW) warp_reduce<Sum, X>(value);
    else block_reduce<Sum, X, THREADS>(value, scratch);
}

// Adds a table's row to what the thread holds of a token.
__device__ __forceinline__ void add_row(float (&x)[VECS][VEC], const DTYPE* table, int64_t row, int num_rows,
                                        const Place& place, int width) {
    if (row < 0 || row >= num_rows) return;
#pragma unroll
    for (int i = 0; i < VECS; i++)
        if (place.holds(i)) {
            const auto value = load<DTYPE, VEC>(table + row * width + place.vec(i) * VEC);
#pragma unroll
            for (int e = 0; e < VEC; e++) x[i][e] += value.get(e);
        }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encoder_embedding(DTYPE* out, const int64_t* token_ids, const int64_t* positions, const int64_t* type_ids,
                      const DTYPE* words, const DTYPE* position_table, const DTYPE* types, const DTYPE* weight,
                      const DTYPE* bias, long long num_tokens, int num_words, int num_positions, int num_types,
                      int width, float eps) {
    __shared__ float scratch[2][ROWS][WARP];
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const Place place(width);
    float x[ROWS][VECS][VEC] = {}, mean[ROWS] = {}, squares[ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int64_t token = place.row + r;
        if (token >= num_tokens) continue;
        add_row(x[r], words, token_ids[token], num_words, place, width);
        add_row(x[r], position_table, positions[token], num_positions, place, width);
        if (types) add_row(x[r], types, type_ids ? type_ids[token] : 0, num_types, place, width);
#pragma unroll
        for (int i = 0; i < VECS; i++)
#pragma unroll
            for (int e = 0; e < VEC; e++) mean[r] += x[r][i][e];
    }
    reduce<ROWS>(mean, scratch[0]);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        mean[r] /= width;
#pragma unroll
        for (int i = 0; i < VECS; i++)
            if (place.holds(i))
#pragma unroll
                for (int e = 0; e < VEC; e++) {
                    const float off = x[r][i][e] - mean[r];
                    squares[r] += off * off;
                }
    }
    reduce<ROWS>(squares, scratch[1]);
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        if (!place.holds(i)) continue;
        const int at = place.vec(i) * VEC;
        const auto scale = load<DTYPE, VEC>(weight + at), shift = load<DTYPE, VEC>(bias + at);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int64_t token = place.row + r;
            if (token >= num_tokens) continue;
            const float factor = rsqrtf(squares[r] / width + eps);
            float result[VEC];
#pragma unroll
            for (int e = 0; e < VEC; e++) result[e] = (x[r][i][e] - mean[r]) * factor * scale.get(e) + shift.get(e);
            store<DTYPE, VEC>(out + token * width + at, pack<DTYPE, VEC>(result));
        }
    }
}
