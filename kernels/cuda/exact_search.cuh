// Search the whole vocabulary in its falling order, without sorting it: for the few rows whose answer lies beyond the
// list of the most probable tokens, or whose top_k is longer than that list.
//
// A query asks for the first token, in falling order, at which the tokens so far reach a count or a mass. A histogram of
// logits, made once, says between which bins it lies, from exact counts and from masses as if all tokens lay in the
// middle of their bins; one pass sums what is above those bins and lists what is in them; the list is sorted and walked.
// If the exact sums do not bear the guess out, or the list is too long, the query is answered by a search over bits,
// which begins where the histogram points.
#pragma once

#include "bit_search.cuh"

namespace headrace {

constexpr int NUM_BINS = CAPACITY;
constexpr float BINS_A_UNIT = 64.f;  // a bin's masses are within a factor of exp(1/64)
// How far masses taken in the middle of bins may be off: many times what rounding and a few tokens make of it.
constexpr double DOUBT = 1e-3;

__device__ __forceinline__ int bin_of(float logit, const Mass& mass, float bins) {
    return min(static_cast<int>((mass.best - logit) * bins), NUM_BINS - 1);
}

__device__ __forceinline__ float bins_a_logit(const Mass& mass) { return fminf(BINS_A_UNIT / mass.temperature, 3e38f); }

// Borders of the tokens in bins from one to another, as far as rounding lets tell, and what lies midway.
__device__ __forceinline__ Thresholds borders(const Mass& mass, int first_bin, int last_bin) {
    const float bins = bins_a_logit(mass);
    const uint32_t low = ordered(last_bin == NUM_BINS - 1 ? -INFINITY : mass.best - (last_bin + 1) / bins);
    const uint32_t high = ordered(mass.best - first_bin / bins) + 1;
    return low + 1 < high ? Thresholds{{low, low + (high - low) / 2, high}} : Thresholds::quarters(0, ~0u);
}

// Count the row's tokens by bins, into the list's scratch.
__device__ __forceinline__ void make_histogram(const Row& row, const Mass& mass, Ranking& list) {
    __syncthreads();
    for (int i = threadIdx.x; i < NUM_BINS; i += THREADS) list.scratch[i] = 0;
    __syncthreads();
    const float bins = bins_a_logit(mass);
    for_each_octet(row, [&](int first, const float(&value)[OCTET]) {
#pragma unroll
        for (int e = 0; e < OCTET; e++)
            if (first + e < row.vocab) atomicAdd(&list.scratch[bin_of(value[e], mass, bins)], 1);
    });
    __syncthreads();
}

// Answer a query, from the histogram that make_histogram has made.
__device__ __noinline__ Found search(const Row& row, const Mass& mass, const Goal& goal, Ranking& list) {
    __shared__ int first_bin, last_bin, first_count, last_count;
    constexpr int BINS = NUM_BINS / THREADS;
    int counts[BINS], count = 0;
    double sums[BINS], sum = 0;
#pragma unroll
    for (int i = 0; i < BINS; i++) {
        const int bin = threadIdx.x * BINS + i;
        counts[i] = list.scratch[bin];
        sums[i] = counts[i] * static_cast<double>(expf(-(bin + 0.5f) / BINS_A_UNIT));
        count += counts[i];
        sum += sums[i];
    }
    if (threadIdx.x == 0) {
        first_bin = last_bin = NUM_BINS - 1;
        list.count = 0;
    }
    exclusive_sum(sum, count, list);
    bool reached_before = goal.reached(count, sum * (1 - DOUBT)), near_before = goal.reached(count, sum * (1 + DOUBT));
#pragma unroll
    for (int i = 0; i < BINS; i++) {
        const int bin = threadIdx.x * BINS + i, before = count;
        count += counts[i];
        sum += sums[i];
        const bool reached = goal.reached(count, sum * (1 - DOUBT)), near = goal.reached(count, sum * (1 + DOUBT));
        const bool end = bin == NUM_BINS - 1;
        if (!near_before && (near || end)) {
            first_bin = bin;
            first_count = before;
        }
        if (!reached_before && (reached || end)) {
            last_bin = bin;
            last_count = count;
        }
        reached_before = reached;
        near_before = near;
    }
    __syncthreads();
    const Thresholds guess = borders(mass, first_bin, last_bin);
    if (last_count - first_count > CAPACITY) return search_bits(row, mass, goal, guess, list);
    const float bins = bins_a_logit(mass), factor = mass.factor();
    const int above = first_bin, below = last_bin, num_above = first_count;
    float own = 0;
    for_each_octet(row, [&](int first, const float(&value)[OCTET]) {
#pragma unroll
        for (int e = 0; e < OCTET; e++) {
            const int bin = bin_of(value[e], mass, bins);
            if (bin < above)
                own += mass.roughly(value[e], factor);
            else if (bin <= below && first + e < row.vocab)
                add(list, token_key(value[e], first + e));
        }
    });
    const double mass_above = block_sum<double>(own, list.partial);
    if (!goal.reached(num_above, mass_above) && list.count > 0) {
        const Found found = walk(list, mass, goal, num_above, mass_above);
        if (goal.reached(found.count, found.mass)) return found;
    }
    __syncthreads();
    return search_bits(row, mass, goal, guess, list);
}

}  // namespace headrace
