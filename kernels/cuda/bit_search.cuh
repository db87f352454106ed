// Find a token of a row by its place in the falling order, without sorting the row: a four-way search over the bits of
// logits, each pass of which counts and sums what is at or above three thresholds; what is left is listed, sorted and
// walked. Equal logits beyond the list's capacity are told apart by their ids in one more pass. A good guess saves most
// passes, and a bad one costs one.
#pragma once

#include "ranking.cuh"

namespace headrace {

// What the tokens so far must reach: ``count`` tokens, or a mass of ``mass`` (more than that, if ``beyond``).
struct Goal {
    int count;
    double mass;
    bool beyond;

    __device__ __forceinline__ bool reached(int tokens, double sum) const {
        return tokens > 0 && (tokens >= count || (beyond ? sum > mass : sum >= mass));
    }
};

struct Found {
    uint64_t key;  // of the first token that reaches the goal; of the last one if none does
    int count;     // tokens up to and including it
    double mass;   // theirs
};

struct Bracket {
    uint32_t low, high;  // ordered bits: at or above low the goal is reached, at or above high it is not
    int low_count, high_count;
    double low_mass, high_mass;
};

// Two turns are read before the first is used, because reading takes longer than anything done here; but only where
// reading itself needs few registers.
template <typename Use>
__device__ __forceinline__ void for_each_octet(const Row& row, Use use) {
    constexpr int AHEAD = PENALISED || VEC < FULL<DTYPE> ? 1 : 2, TURN = THREADS * OCTET;
    for (int first = threadIdx.x * OCTET; first < row.vocab; first += AHEAD * TURN) {
        float value[AHEAD][OCTET];
#pragma unroll
        for (int turn = 0; turn < AHEAD; turn++) row.read(value[turn], first + turn * TURN);
#pragma unroll
        for (int turn = 0; turn < AHEAD; turn++)
            if (first + turn * TURN < row.vocab) use(first + turn * TURN, value[turn]);
    }
}

// Three thresholds, rising.
struct Thresholds {
    uint32_t at[3];

    // Those that cut a stretch of bits in quarters.
    static __device__ __forceinline__ Thresholds quarters(uint32_t low, uint32_t high) {
        const uint32_t step = max((high - low) / 4, 1u);
        return Thresholds{{low + step, low + 2 * step, low + 3 * step}};
    }
};

// One pass: narrow the bracket to what lies between two thresholds, or beyond them.
__device__ __forceinline__ void narrow(Bracket& bracket, const Thresholds& threshold, const Row& row, const Mass& mass,
                                       const Goal& goal, Ranking& list) {
    int counts[3] = {};
    double sums[3];
    float own[3] = {};
    const float factor = mass.factor();
    for_each_octet(row, [&](int, const float(&value)[OCTET]) {
#pragma unroll
        for (int e = 0; e < OCTET; e++) {
            const uint32_t bits = ordered(value[e]);
            if (bits < threshold.at[0]) continue;
            const float m = mass.roughly(value[e], factor);
#pragma unroll
            for (int i = 0; i < 3; i++) {
                counts[i] += bits >= threshold.at[i];
                own[i] += bits >= threshold.at[i] ? m : 0.f;
            }
        }
    });
#pragma unroll
    for (int i = 0; i < 3; i++) {
        sums[i] = block_sum<double>(own[i], list.partial);
        counts[i] = static_cast<int>(block_sum<double>(counts[i], list.partial));
    }
    // The highest threshold at which the goal is reached becomes low, the one above it high.
#pragma unroll
    for (int i = 2; i >= 0; i--) {
        if (threshold.at[i] >= bracket.high) continue;
        if (!goal.reached(counts[i], sums[i])) {
            bracket.high = threshold.at[i];
            bracket.high_count = counts[i];
            bracket.high_mass = sums[i];
        } else {
            bracket.low = threshold.at[i];
            bracket.low_count = counts[i];
            bracket.low_mass = sums[i];
            break;
        }
    }
}

// The ``index``-th token, by id, of those with exactly these bits; there are more than ``index``.
__device__ __forceinline__ int tied_token(const Row& row, uint32_t bits, int index, Ranking& list) {
    __shared__ int found;
    for (int base = 0; base < row.vocab; base += THREADS * OCTET) {
        float value[OCTET];
        const int first = base + threadIdx.x * OCTET;
        int own = 0;
        if (first < row.vocab) {
            row.read(value, first);
#pragma unroll
            for (int e = 0; e < OCTET; e++) own += first + e < row.vocab && ordered(value[e]) == bits;
        }
        double unused = 0;
        int at = own;
        exclusive_sum(unused, at, list);
        if (own && at <= index && index < at + own) {
            for (int e = 0; e < OCTET; e++)
                if (first + e < row.vocab && ordered(value[e]) == bits && at++ == index) found = first + e;
        }
        const int in_tile = static_cast<int>(block_sum<double>(own, list.partial));
        if (index < in_tile) break;
        index -= in_tile;
    }
    __syncthreads();
    return found;
}

// All tokens of at least some mass: how many, and their mass, added in the order in which every pass adds.
__device__ __forceinline__ void total(const Row& row, const Mass& mass, float least, Ranking& list, int& count,
                                      double& sum) {
    int own_count = 0;
    float own_sum = 0;
    for_each_octet(row, [&](int, const float(&value)[OCTET]) {
#pragma unroll
        for (int e = 0; e < OCTET; e++) {
            const float m = mass.of(value[e]);
            if (m >= least) {
                own_count++;
                own_sum += m;
            }
        }
    });
    sum = block_sum<double>(own_sum, list.partial);
    count = static_cast<int>(block_sum<double>(own_count, list.partial));
}

// The first token of an unsorted list, in falling order, that reaches the goal; so much lies above the list.
__device__ __forceinline__ Found walk(Ranking& list, const Mass& mass, const Goal& goal, int above, double mass_above) {
    sort(list);
    accumulate(list, list.count, mass_above, mass);
    int at = prefix_length(list.count, [&](int i) { return !goal.reached(above + i + 1, list.cumulative[i]); });
    // Rounding may let a mass be missed that the passes have seen reached: then it is the last token with any.
    if (at == list.count)
        at = max(1, prefix_length(list.count, [&](int i) { return mass.of(logit_of(list.keys[i])) > 0; })) - 1;
    const Found found{list.keys[at], above + at + 1, list.cumulative[at]};
    __syncthreads();
    return found;
}

__device__ __noinline__ Found search_bits(const Row& row, const Mass& mass, const Goal& goal, const Thresholds& guess,
                                          Ranking& list) {
    // Nothing has the bits 0, everything is at or above them: there the goal counts as reached.
    Bracket bracket{0, 0xffffffffu, row.vocab, 0, 1e300, 0};
    Thresholds threshold = guess;
    while (bracket.low_count - bracket.high_count > CAPACITY && bracket.high - bracket.low > 1) {
        narrow(bracket, threshold, row, mass, goal, list);
        threshold = Thresholds::quarters(bracket.low, bracket.high);
    }
    __syncthreads();
    const int between = bracket.low_count - bracket.high_count;
    if (between > CAPACITY) {
        const double each = mass.of(unordered(bracket.low));
        int index = goal.count - bracket.high_count - 1;
        if (each > 0) {
            // The least index whose mass reaches the goal; one more where it must be exceeded and is only met.
            const double exact = (goal.mass - bracket.high_mass) / each;
            const double steps = goal.beyond ? floor(exact) : ceil(exact) - 1;
            index = static_cast<int>(fmin(static_cast<double>(index), fmax(steps, 0.)));
        }
        index = min(max(index, 0), between - 1);
        const int id = tied_token(row, bracket.low, index, list);
        const double sum = bracket.high_mass + each * (index + 1);
        return Found{uint64_t(bracket.low) << 32 | uint32_t(~id), bracket.high_count + index + 1, sum};
    }
    if (threadIdx.x == 0) list.count = 0;
    __syncthreads();
    for_each_octet(row, [&](int first, const float(&value)[OCTET]) {
#pragma unroll
        for (int e = 0; e < OCTET; e++) {
            const uint32_t bits = ordered(value[e]);
            if (first + e < row.vocab && bits >= bracket.low && bits < bracket.high) add(list, token_key(value[e], first + e));
        }
    });
    return walk(list, mass, goal, bracket.high_count, bracket.high_mass);
}

}  // namespace headrace
