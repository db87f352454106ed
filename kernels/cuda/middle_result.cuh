// What becomes of a middle product's sums: bias, and gate or residual, then y, a lane's numbers side by side.
//
// Macros: DTYPE, GATED.
#pragma once

#include "logistic.cuh"
#include "quad.cuh"
#include "tensor_core.cuh"

namespace headrace {

struct Result {
    DTYPE* y;
    const DTYPE *bias, *residual;
    int m, n;
    long long y_stride, residual_stride;
};

// What is added to eight rows' products, of the tokens ``token`` and ``token`` + 8: asked for, and there when it is used.
struct Addend {
    Vec<DTYPE, 8> at[2];

    // Of the rows number t of ``row``'s four times eight, for lane t of four.
    __device__ __forceinline__ void ask(const Result& to, int row, int end, int token) {
        const int own = row + 8 * (thread_index() % 4);
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (to.residual && own < end && token + 8 * h < to.m)
                at[h] = load<DTYPE, 8>(to.residual + (token + 8 * h) * to.residual_stride + own);
    }
};

// Writes what quads have transposed: lane t of four the eight rows number t, of a token each.
__device__ __forceinline__ void write_sums(const Result& to, const uint32_t (&word)[4], const Vec<DTYPE, 8>& addend,
                                           int own, bool exists, int token) {
    Vec<DTYPE, 8> eight;
#pragma unroll
    for (int i = 0; i < 4; i++) reinterpret_cast<uint32_t*>(eight.at)[i] = word[i];
    if (to.residual) {
        float sum[8];
#pragma unroll
        for (int e = 0; e < 8; e++) sum[e] = eight.get(e) + addend.get(e);
        eight = pack<DTYPE, 8>(sum);
    }
    if (exists && token < to.m) store<DTYPE, 8>(to.y + token * to.y_stride + own, eight);
}
// The same of gated rows, both tokens' results sharing a word.
__device__ __forceinline__ void write_gated(const Result& to, const uint32_t (&word)[4], int own, bool exists,
                                            int token) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (!exists || token + 8 * h >= to.m) continue;
        const uint32_t half = h ? 0x7632 : 0x5410;
        const uint2 four = make_uint2(__byte_perm(word[0], word[1], half), __byte_perm(word[2], word[3], half));
        *reinterpret_cast<uint2*>(to.y + (token + 8 * h) * to.y_stride + own / 2) = four;
    }
}

// Ends the product of four times eight rows of the weight, from ``row`` on, with the tokens ``token`` and ``token`` + 8.
// ``sums`` are laid out as the tensor cores' (tensor_core.cuh); lane t of four writes the eight rows number t.
__device__ __forceinline__ void finish(const Result& to, float (&sums)[4][4], int row, int end, int token) {
    const int t = thread_index() % 4, own = row + 8 * t;
    const bool exists = own < end;
    if (to.bias) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (row + 8 * i >= end) break;
            const Vec<DTYPE, 2> bias = load<DTYPE, 2>(to.bias + row + 8 * i + 2 * t);
#pragma unroll
            for (int e = 0; e < 4; e++) sums[i][e] += bias.get(e % 2);
        }
    }
#if GATED
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float gated[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float gate = rounded<DTYPE>(sums[i][2 * h]);
            gated[h] = gate * logistic<DTYPE>(gate) * rounded<DTYPE>(sums[i][2 * h + 1]);
        }
        word[i] = pack<DTYPE>(gated[0], gated[1]);
    }
    transpose_quad(word);
    write_gated(to, word, own, exists, token);
#else
    Addend addend;
    addend.ask(to, row, end, token);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; i++) word[i] = pack<DTYPE>(sums[i][2 * h], sums[i][2 * h + 1]);
        transpose_quad(word);
        write_sums(to, word, addend.at[h], own, exists, token + 8 * h);
    }
#endif
}

}  // namespace headrace
