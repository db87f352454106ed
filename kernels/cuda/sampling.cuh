// What the kernels of sampling share: a row's parameters, its logits after penalties, the order of tokens, masses, the
// random numbers.
//
// Macros: DTYPE (of logits), VEC (elements of a load: 1, 2, 4 or 8, as the rows' alignment allows), PENALISED (0 or 1).
#pragma once

#include "common.cuh"

namespace headrace {

constexpr int OCTET = 8;                    // elements of a thread's turn
constexpr int GROUP = 64;                   // elements whose greatest is kept
constexpr int SEGMENT = 1024;               // elements of a warp, whose greatest and sum are kept
constexpr int TURNS = SEGMENT / WARP / OCTET;
constexpr int GROUPS_A_SEGMENT = SEGMENT / GROUP;
constexpr float LOG2E = 1.4426950408889634f;
constexpr int UNIT_BITS = 34;               // the best token has 2^34 units of mass

// Stafford's variant 13, as in SplitMix64 [1, figure 16]; workers/engine/uniform.py is the same function.
// [1] G. L. Steele, D. Lea, C. H. Flood. Fast splittable pseudorandom number generators. OOPSLA 2014.
__device__ __forceinline__ uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

// In [0, 1), a function of the request's seed and of the tokens that it has generated: of no other row.
__device__ __forceinline__ double uniform(uint64_t seed, uint64_t position) {
    constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15ull;
    return (mix(mix(seed + GAMMA) + (position + 1) * GAMMA) >> 11) * 0x1p-53;
}

// Rows' parameters lie in arrays, one element a place, so that a captured graph reads what changes between replays.
struct Parameters {
    const int64_t* places;  // where a row's parameters lie; null: in the order of rows; -1: the row is passed over
    const float *temperature, *top_p, *min_p, *repetition, *presence, *frequency;
    const int* top_k;
    const int64_t *position, *num_prompt_tokens;  // their difference numbers the draw
    const uint64_t* seed;
    short* counts;        // [num_slots, counts_stride]: times generated, plus IN_PROMPT
    const int* slots;     // a row's line in counts, or -1
    int64_t* last_token;  // what is drawn, by place; may be null
    int64_t counts_stride;

    __device__ __forceinline__ int64_t place(int64_t row) const { return places ? places[row] : row; }

    // The row's random number.
    __device__ __forceinline__ double uniform(int64_t place) const {
        return headrace::uniform(seed[place], position[place] - num_prompt_tokens[place]);
    }
};

constexpr int IN_PROMPT = 0x8000;

// One row's logits as sampling sees them.
struct Row {
    const DTYPE* logits;
    const short* counts;
    int vocab;
    float repetition, presence, frequency;

    __device__ __forceinline__ Row(const DTYPE* logits, int vocab) : logits(logits), counts(nullptr), vocab(vocab) {}

    __device__ __forceinline__ Row(const DTYPE* logits, int vocab, int64_t place, const Parameters& of) : Row(logits, vocab) {
#if PENALISED
        const int slot = of.slots[place];
        if (slot >= 0) {
            counts = of.counts + slot * of.counts_stride;
            repetition = of.repetition[place];
            presence = of.presence[place];
            frequency = of.frequency[place];
        }
#endif
    }

    // Penalties as OpenAI's interface and CTRL [2] define them: repetition concerns prompt and output, the others output.
    // Rounded after each operation, as they are on a CPU.
    // [2] N. S. Keskar et al. CTRL: a conditional transformer language model. arXiv:1909.05858, section 4.1.
    __device__ __forceinline__ float penalised(float logit, int id) const {
        const int count = static_cast<unsigned short>(counts[id]);
        if (count == 0) return logit;
        const int generated = count & (IN_PROMPT - 1);
        logit = logit > 0 ? logit / repetition : logit * repetition;
        return generated ? __fsub_rn(__fsub_rn(logit, __fmul_rn(generated, frequency)), presence) : logit;
    }

    // Eight neighbours from ``first`` on, a multiple of 8; what lies beyond the vocabulary is -inf.
    __device__ __forceinline__ void read(float (&value)[OCTET], int first) const {
#pragma unroll
        for (int part = 0; part < OCTET; part += VEC) {
            if (first + part + VEC <= vocab) {
                const Vec<DTYPE, VEC> held = load<DTYPE, VEC>(logits + first + part);
#pragma unroll
                for (int e = 0; e < VEC; e++) value[part + e] = held.get(e);
            } else {
#pragma unroll
                for (int e = 0; e < VEC; e++)
                    value[part + e] = first + part + e < vocab ? to_float(logits[first + part + e]) : -INFINITY;
            }
        }
#if PENALISED
        if (counts) {
#pragma unroll
            for (int e = 0; e < OCTET; e++)
                if (first + e < vocab) value[e] = penalised(value[e], first + e);
        }
#endif
    }
};

// Bits that compare as the floats do; -inf is above 0, which stands for no token at all.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x == 0.f ? 0.f : x);  // one zero
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(uint32_t bits) {
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// A token's place in the falling order: greater logits first, of equal ones the smaller id.
__device__ __forceinline__ uint64_t token_key(float logit, int id) {
    return uint64_t(ordered(logit)) << 32 | uint32_t(~id);
}

__device__ __forceinline__ int token_of(uint64_t key) { return ~uint32_t(key); }
__device__ __forceinline__ float logit_of(uint64_t key) { return unordered(uint32_t(key >> 32)); }

// A token's probability, times a factor that its row has in common: 1 for the best.
struct Mass {
    float best, factor;

    __device__ __forceinline__ Mass(float best, float temperature) : best(best), factor(LOG2E / normal(temperature)) {}

    // A number whose inverse is finite; rows of temperature 0 take their best token, by no mass.
    static __device__ __forceinline__ float normal(float temperature) {
        return temperature > 0.f ? fmaxf(temperature, 1.17549435e-38f) : 1.f;
    }

    // Relative error 2^-20.
    __device__ __forceinline__ float of(float logit) const { return exp2_roughly((logit - best) * factor); }

    // An integer, so that sums depend on no order; from the float's bits, which is faster than a conversion.
    __device__ __forceinline__ uint64_t units(float logit) const {
        const uint32_t bits = __float_as_uint(of(logit));
        const uint32_t below_one = 127 - (bits >> 23);
        return (uint64_t(bits & 0x7fffffu | 0x800000u) << (UNIT_BITS - 23)) >> (below_one < 63 ? below_one : 63);
    }
};

// The least units of tokens that min_p keeps, and of those that can be drawn at all.
__device__ __forceinline__ uint64_t least_units(float min_p) {
    return max(uint64_t(1), static_cast<uint64_t>(ceil(min_p * double(uint64_t(1) << UNIT_BITS))));
}

// Of so many units, those up to which a random number lets tokens pass: fewer than all.
__device__ __forceinline__ uint64_t share_of(uint64_t units, double uniform) {
    return min(static_cast<uint64_t>(uniform * static_cast<double>(units)), units - 1);
}

}  // namespace headrace
