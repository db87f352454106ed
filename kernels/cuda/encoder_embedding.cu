// What a token is to an encoder's first layer: its rows of the tables of words, positions and types, added up and
// normalised, in one pass.
//
//   out [num_tokens, width]; token_ids, positions, type_ids [num_tokens]; no type_ids: all are 0; no types: there are
//   0 of them. An id that its table does not hold adds nothing.
//
// The sum stays in fp32 from the first addition to the norm; the variance is that around the mean. A row's three parts
// are on their way together; a warp or a block goes on to further rows, whose ids it has read while the row before was
// on its way, for their latency is as long as the row's own. Macros: those of rows.cuh.
#include "rows.cuh"

using namespace headrace;

using Part = Vec<DTYPE, VEC>;

template <int X>
__device__ __forceinline__ void reduce(float (&value)[X], float (*scratch)[WARP]) {
    if (WARP_A_ROW) warp_reduce<Sum, X>(value);
    else block_reduce<Sum, X, THREADS>(value, scratch);
}

struct Ids {
    int64_t word, position, type;  // -1: none
};

__device__ __forceinline__ void read_ids(Ids (&ids)[ROWS], int64_t first, int64_t num_tokens, const int64_t* token_ids,
                                         const int64_t* positions, const int64_t* type_ids) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        ids[r] = {-1, -1, -1};
        if (first + r < num_tokens) ids[r] = {token_ids[first + r], positions[first + r], 0};
        if (type_ids && first + r < num_tokens) ids[r].type = type_ids[first + r];
    }
}

// What the thread holds of a table's row, as memory has it: whoever looked into it would wait for it.
__device__ __forceinline__ void fetch(Part (&held)[VECS], const DTYPE* table, int64_t id, int num_rows,
                                      const Place& place, int width) {
    const bool known = id >= 0 && id < num_rows;
#pragma unroll
    for (int i = 0; i < VECS; i++) {
        held[i] = Part{};
        if (known && place.holds(i)) held[i] = load<DTYPE, VEC>(table + id * width + place.vec(i) * VEC);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    encoder_embedding(DTYPE* out, const int64_t* token_ids, const int64_t* positions, const int64_t* type_ids,
                      const DTYPE* words, const DTYPE* position_table, const DTYPE* types, const DTYPE* weight,
                      const DTYPE* bias, long long num_tokens, int num_words, int num_positions, int num_types,
                      int width, float eps) {
    __shared__ float scratch[2][ROWS][WARP];  // in turn: a barrier lies between one's use and its next
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const Place place(width);
    const int64_t step = int64_t(gridDim.x) * (WARP_A_ROW ? THREADS / WARP : 1) * ROWS;
    const float share = 1.f / width;
    Ids ids[ROWS];
    read_ids(ids, place.row, num_tokens, token_ids, positions, type_ids);
    for (int64_t first = place.row; first < num_tokens; first += step) {
        Part word[ROWS][VECS], position[ROWS][VECS], type[ROWS][VECS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            fetch(word[r], words, ids[r].word, num_words, place, width);
            fetch(position[r], position_table, ids[r].position, num_positions, place, width);
            fetch(type[r], types, ids[r].type, num_types, place, width);
        }
        read_ids(ids, first + step, num_tokens, token_ids, positions, type_ids);
        float x[ROWS][VECS][VEC], mean[ROWS] = {}, squares[ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int i = 0; i < VECS; i++)
#pragma unroll
                for (int e = 0; e < VEC; e++) {
                    x[r][i][e] = word[r][i].get(e) + position[r][i].get(e) + type[r][i].get(e);
                    mean[r] += x[r][i][e];
                }
        reduce<ROWS>(mean, scratch[0]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            mean[r] *= share;
#pragma unroll
            for (int i = 0; i < VECS; i++)
                if (place.holds(i))
#pragma unroll
                    for (int e = 0; e < VEC; e++) {
                        x[r][i][e] -= mean[r];
                        squares[r] += x[r][i][e] * x[r][i][e];
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
                if (first + r >= num_tokens) continue;
                const float factor = rsqrtf(squares[r] * share + eps);
                float result[VEC];
#pragma unroll
                for (int e = 0; e < VEC; e++) result[e] = x[r][i][e] * factor * scale.get(e) + shift.get(e);
                store<DTYPE, VEC>(out + (first + r) * width + at, pack<DTYPE, VEC>(result));
            }
        }
    }
}
