// How many tokens of a row lie in each bin of logits, and their mass: what a search for a token begins with.
//
// Bins are equally wide and fall from the greatest logit. A token's mass is that of its bin's upper border less what it
// lacks; what tokens lack is summed in whole numbers, so that the blocks that share a row may add in any order.
#pragma once

#include "shortlist.cuh"

namespace headrace {

constexpr float BINS_A_UNIT = 64.f;        // a bin's masses are within a factor of exp(1/64)
constexpr float LACK_UNIT = 1 << 25;       // a block's tokens lack less than 2^7, in units that fit 32 bits
constexpr int BLOCK_TURNS = 2;             // octets of a thread
constexpr int PART = THREADS * OCTET * BLOCK_TURNS;  // tokens of a block
static_assert(PART <= 1 << 13, "what a block's tokens lack would not fit");

__device__ __forceinline__ float bins_a_logit(const Mass& mass) { return fminf(BINS_A_UNIT / mass.temperature, 3e38f); }

// How many bins lie above a logit, with a fraction.
__device__ __forceinline__ float depth(float logit, const Mass& mass, float bins) { return (mass.best - logit) * bins; }

// What the tokens in a bin have of mass together; the last one's, which has no lower border, is exaggerated.
__device__ __forceinline__ double mass_of_bin(int bin, int count, unsigned long long lack) {
    return expf(-bin / BINS_A_UNIT) * (count - static_cast<double>(lack) / LACK_UNIT);
}

// One block's part of a row, added to the row's bins.
__device__ __forceinline__ void count_part(const Row& row, const Mass& mass, const Bins& of_row, int first) {
    __shared__ uint32_t counts[NUM_BINS], lacks[NUM_BINS];
    for (int i = threadIdx.x; i < NUM_BINS; i += THREADS) counts[i] = lacks[i] = 0;
    float value[BLOCK_TURNS][OCTET];
#pragma unroll
    for (int turn = 0; turn < BLOCK_TURNS; turn++) row.read(value[turn], first + (turn * THREADS + threadIdx.x) * OCTET);
    __syncthreads();
    const float bins = bins_a_logit(mass);
#pragma unroll
    for (int turn = 0; turn < BLOCK_TURNS; turn++) {
#pragma unroll
        for (int e = 0; e < OCTET; e++) {
            if (first + (turn * THREADS + threadIdx.x) * OCTET + e >= row.vocab) continue;
            const float at = fminf(depth(value[turn][e], mass, bins), NUM_BINS);
            const int bin = min(static_cast<int>(at), NUM_BINS - 1);
            const float t = (at - bin) / BINS_A_UNIT;
            const float lack = t * (1.f - t * (1.f / 2 - t * (1.f / 6 - t * (1.f / 24))));  // 1 - exp(-t)
            atomicAdd(&counts[bin], 1u);
            atomicAdd(&lacks[bin], __float2uint_rn(lack * LACK_UNIT));
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < NUM_BINS; i += THREADS) {
        if (counts[i] == 0) continue;
        atomicAdd(&of_row.counts[i], static_cast<int>(counts[i]));
        atomicAdd(&of_row.lacks[i], static_cast<unsigned long long>(lacks[i]));
    }
}

}  // namespace headrace
