// Where a row's falling order is cut, found without sorting it: the key of the last token that a filter keeps.
//
// A radix select [1] over the bits of logits, 11, 11 and 10 at a time: a histogram of the tokens that share the bits
// found so far says in which bin a count or a mass is reached. Counts and masses are integers, so that nothing depends on
// the order of atomics; logits that are equal to the last bit are told apart by their ids in one more pass. It is one
// block's work, for rows whose cut lies beyond every list.
//
// [1] R. M. Alabi, J. D. Blanchard, B. Gordon, R. Steinbach. Fast k-selection algorithms for graphics processing units.
//     ACM Journal of Experimental Algorithmics 17 (2012).
#pragma once

#include "shortlist.cuh"

namespace headrace {

// What the kept tokens must reach: so many of them, or so many units of mass; one of them at least.
struct Goal {
    int count;
    double units;

    __device__ __forceinline__ bool reached(int tokens, uint64_t sum) const {
        return tokens > 0 && (tokens >= count || static_cast<double>(sum) >= units);
    }
};

// 64-bit sums in shared memory, which has no such atomics: the upper halves take what the lower ones carry.
struct Bins {
    uint32_t lower[NUM_BINS], upper[NUM_BINS];

    __device__ __forceinline__ void add(int bin, uint64_t units) {
        const uint32_t low = static_cast<uint32_t>(units);
        uint32_t high = static_cast<uint32_t>(units >> 32);
        if (low && atomicAdd(&lower[bin], low) + low < low) high++;
        if (high) atomicAdd(&upper[bin], high);
    }
    __device__ __forceinline__ uint64_t of(int bin) const { return uint64_t(upper[bin]) << 32 | lower[bin]; }
};
static_assert(sizeof(Bins) <= sizeof(Ranking::keys), "a list's memory holds bins while nothing is listed");

template <typename Use>
__device__ __forceinline__ void for_each_octet(const Row& row, Use use) {
    for (int first = threadIdx.x * OCTET; first < row.vocab; first += THREADS * OCTET) {
        float value[OCTET];
        row.read(value, first);
        use(first, value);
    }
}

// The ``index``-th token, by id, of those with exactly these bits; there are more than ``index``.
__device__ __forceinline__ int tied_token(const Row& row, uint32_t bits, int index) {
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
        int at = own;
        const int in_tile = exclusive_sum(at);
        if (own && at <= index && index < at + own) {
            for (int e = 0; e < OCTET; e++)
                if (first + e < row.vocab && ordered(value[e]) == bits && at++ == index) found = first + e;
        }
        if (index < in_tile) break;
        index -= in_tile;
    }
    __syncthreads();
    const int id = found;
    __syncthreads();
    return id;
}

// The key of the first token at which the goal is reached; 0, below all keys, if it never is. Tokens without any mass
// do not count: they are never drawn.
__device__ __forceinline__ uint64_t find_cut(const Row& row, const Mass& mass, const Goal& goal, Ranking& list) {
    __shared__ int chosen, chosen_count;
    __shared__ int count_above;
    __shared__ uint64_t units_above;
    Bins& bins = *reinterpret_cast<Bins*>(list.keys);
    int* counts = list.scratch;
    constexpr int BINS = NUM_BINS / THREADS;
    uint32_t prefix = 0;
    __syncthreads();
    if (threadIdx.x == 0) count_above = units_above = 0;
    for (int level = 0; level < 3; level++) {
        const int shift = level == 0 ? 21 : level == 1 ? 10 : 0, width = level == 2 ? 10 : 11;
        const uint32_t mask = (1u << width) - 1;
        if (threadIdx.x == 0) chosen = -1;
        for (int i = threadIdx.x; i < NUM_BINS; i += THREADS) counts[i] = bins.lower[i] = bins.upper[i] = 0;
        __syncthreads();
        for_each_octet(row, [&](int, const float(&value)[OCTET]) {
            // Neighbours that are equal, as in rows of one value, are added together.
            int bin = -1, count = 0;
            uint64_t sum = 0;
            for (int e = 0; e < OCTET; e++) {
                const uint32_t bits = ordered(value[e]);
                const uint64_t units = mass.units(value[e]);
                if (units == 0 || (level && bits >> (shift + width) != prefix)) continue;
                const int own = mask - (bits >> shift & mask);
                if (own != bin && count) {
                    atomicAdd(&counts[bin], count);
                    bins.add(bin, sum);
                    count = sum = 0;
                }
                bin = own;
                count++;
                sum += units;
            }
            if (count) {
                atomicAdd(&counts[bin], count);
                bins.add(bin, sum);
            }
        });
        __syncthreads();
        int own_count = 0;
        uint64_t own_units = 0;
#pragma unroll
        for (int i = 0; i < BINS; i++) {
            own_count += counts[threadIdx.x * BINS + i];
            own_units += bins.of(threadIdx.x * BINS + i);
        }
        exclusive_sum(own_count);
        exclusive_sum(own_units);
        int tokens = count_above + own_count;
        uint64_t units = units_above + own_units;
        __syncthreads();
        for (int i = 0; i < BINS; i++) {
            const int bin = threadIdx.x * BINS + i, more = tokens + counts[bin];
            const uint64_t further = units + bins.of(bin);
            if (goal.reached(more, further) && !goal.reached(tokens, units)) {
                chosen = bin;
                chosen_count = counts[bin];
                count_above = tokens;
                units_above = units;
            }
            tokens = more;
            units = further;
        }
        __syncthreads();
        if (chosen < 0) return 0;
        prefix = prefix << width | (mask - chosen);
        __syncthreads();
    }
    const uint64_t each = mass.units(unordered(prefix));
    int tied = goal.count - count_above;
    const double wanted = ceil((goal.units - static_cast<double>(units_above)) / static_cast<double>(each));
    if (wanted < tied) tied = static_cast<int>(wanted);
    tied = max(tied, 1);
    if (tied >= chosen_count) return uint64_t(prefix) << 32;
    return uint64_t(prefix) << 32 | uint32_t(~tied_token(row, prefix, tied - 1));
}

}  // namespace headrace
