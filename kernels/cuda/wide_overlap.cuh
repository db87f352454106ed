// Tiles of a wide product that are written while the next ones are begun, so that the tensor cores have work meanwhile.
//
// A tile's sums are rounded as soon as they are there, which halves the registers that they take, and the next tile's
// take theirs. Behind each of that one's first steps, while the tensor cores are at the next, 32 rows are ended: gated,
// or added to the residual stream, of which the next rows have been asked for a step before.
//
// Macros: DTYPE, TILE, GATED, those of wide_ring.cuh.
#pragma once

#include "middle_result.cuh"
#include "wide_steps.cuh"

namespace headrace {

constexpr int NUM_PARTS = TILE / 32;  // of a tile, each ended behind a step

// A tile's sums, rounded, in pairs of neighbours; those of a lane lie as the tensor cores' do (tensor_core.cuh).
struct Rounded {
    uint32_t pairs[TILE / 4];
    int first_row, end, token, m;  // m: tokens that there are, of this block's; 0 before the first tile

    __device__ __forceinline__ void round(const float (&sums)[TILE / 2], const Result& to) {
#pragma unroll
        for (int eight = 0; eight < TILE / 8; eight++) {
            const int row = first_row + 8 * eight;
            float own[4];
#pragma unroll
            for (int e = 0; e < 4; e++) own[e] = sums[4 * eight + e];
            if (to.bias && row < end) {
                const Vec<DTYPE, 2> bias = load<DTYPE, 2>(to.bias + row + 2 * (thread_index() % 4));
#pragma unroll
                for (int e = 0; e < 4; e++) own[e] += bias.get(e % 2);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) pairs[2 * eight + h] = pack<DTYPE>(own[2 * h], own[2 * h + 1]);
        }
    }
    __device__ __forceinline__ void ask(Addend& addend, Result to, int part) const {
        to.m = m;
        if (!GATED) addend.ask(to, first_row + 32 * part, end, token);
    }
    // Ends 32 rows with the lane's two tokens, as middle_result.cuh does.
    __device__ __forceinline__ void finish(Result to, int part, const Addend& addend) const {
        const int own = first_row + 32 * part + 8 * (thread_index() % 4);
        to.m = m;
        uint32_t word[4];
#if GATED
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float gated[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Vec<DTYPE, 2> both;
                *reinterpret_cast<uint32_t*>(both.at) = pairs[2 * (4 * part + i) + h];
                gated[h] = both.get(0) * logistic<DTYPE>(both.get(0)) * both.get(1);
            }
            word[i] = pack<DTYPE>(gated[0], gated[1]);
        }
        transpose_quad(word);
        write_gated(to, word, own, own < end, token);
#else
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int i = 0; i < 4; i++) word[i] = pairs[2 * (4 * part + i) + h];
            transpose_quad(word);
            write_sums(to, word, addend.at[h], own, own < end, token + 8 * h);
        }
#endif
    }
};

__device__ __forceinline__ void consume_overlapping(Steps steps, Way way, const Result& to) {
    Rounded tile;
    tile.m = 0;
    Addend addend;
    for (; !way.ended(); way.next_tile()) {
        float sums[TILE / 2];
        steps.multiply<false>(sums);
        steps.next();
        if (tile.m) tile.ask(addend, to, 0);
#pragma unroll
        for (int part = 0; part < NUM_PARTS; part++) {
            steps.multiply<true>(sums);
            wait_for_products<1>();
            steps.release();
            steps.next();
            if (!tile.m) continue;
            const Addend now = addend;
            if (part + 1 < NUM_PARTS) tile.ask(addend, to, part + 1);
            tile.finish(to, part, now);
        }
#pragma unroll 1
        for (int step = way.first_step + 1 + NUM_PARTS; step < way.last_step; step++) {
            steps.multiply<true>(sums);
            wait_for_products<1>();
            steps.release();
            steps.next();
        }
        wait_for_products(sums);
        steps.release();
        tile.first_row = way.tile * TILE, tile.end = min(tile.first_row + TILE, to.n);
        tile.token = way.tokens * steps.ring.x_rows + steps.first_token + steps.warp % 4 * 16 + threadIdx.x % WARP / 4;
        tile.m = min(to.m, (way.tokens + 1) * steps.ring.x_rows);
        tile.round(sums, to);
    }
    if (!tile.m) return;
    tile.ask(addend, to, 0);
#pragma unroll
    for (int part = 0; part < NUM_PARTS; part++) {
        const Addend now = addend;
        if (part + 1 < NUM_PARTS) tile.ask(addend, to, part + 1);
        tile.finish(to, part, now);
    }
}

}  // namespace headrace
