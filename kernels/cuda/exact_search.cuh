// Search the whole vocabulary in its falling order, without sorting it: for the few rows whose answer lies beyond the
// list of the most probable tokens, or whose top_k is longer than that list.
//
// A query asks for the first token, in falling order, at which the tokens so far reach a count or a mass. The row's bins
// (mass_bins.cuh) say in which of them it lies; one pass lists what is in that bin; the list is sorted and walked. If
// rounding has led to a bin beside the right one, if the list is too long, or if nobody has counted bins, the query is
// answered by a search over bits, which begins where the bins point.
#pragma once

#include "bit_search.cuh"
#include "mass_bins.cuh"

namespace headrace {

// Borders of the tokens in a bin, as far as rounding lets tell, and what lies midway.
__device__ __forceinline__ Thresholds borders(const Mass& mass, int bin) {
    const float bins = bins_a_logit(mass);
    const uint32_t low = ordered(bin == NUM_BINS - 1 ? -INFINITY : mass.best - (bin + 1) / bins);
    const uint32_t high = ordered(mass.best - bin / bins) + 1;
    return low + 1 < high ? Thresholds{{low, low + (high - low) / 2, high}} : Thresholds::quarters(0, ~0u);
}

// Answer a query; the row's bins may be missing.
__device__ __noinline__ Found search(const Row& row, const Mass& mass, const Goal& goal, const Bins& of_row, Ranking& list) {
    if (!of_row.counts) return search_bits(row, mass, goal, Thresholds::quarters(0, ~0u), list);
    __shared__ int found_bin, found_count, count_above;
    __shared__ double mass_above;
    constexpr int BINS = NUM_BINS / THREADS;
    int counts[BINS], count = 0;
    double sums[BINS], sum = 0;
#pragma unroll
    for (int i = 0; i < BINS; i++) {
        const int bin = threadIdx.x * BINS + i;
        counts[i] = of_row.counts[bin];
        sums[i] = mass_of_bin(bin, counts[i], of_row.lacks[bin]);
        count += counts[i];
        sum += sums[i];
    }
    if (threadIdx.x == 0) list.count = 0;
    exclusive_sum(sum, count, list);
    bool reached_before = goal.reached(count, sum);
#pragma unroll
    for (int i = 0; i < BINS; i++) {
        const int bin = threadIdx.x * BINS + i;
        const bool reached = goal.reached(count + counts[i], sum + sums[i]);
        if (!reached_before && (reached || bin == NUM_BINS - 1)) {
            found_bin = bin;
            found_count = counts[i];
            count_above = count;
            mass_above = sum;
        }
        count += counts[i];
        sum += sums[i];
        reached_before = reached;
    }
    __syncthreads();
    const int bin = found_bin, num_above = count_above;
    const double above = mass_above;
    if (found_count <= CAPACITY) {
        const float bins = bins_a_logit(mass), end = bin == NUM_BINS - 1 ? INFINITY : bin + 1;
        for_each_octet(row, [&](int first, const float(&value)[OCTET]) {
#pragma unroll
            for (int e = 0; e < OCTET; e++) {
                const float at = depth(value[e], mass, bins);
                if (at >= bin && (at < end || end == INFINITY) && first + e < row.vocab)
                    add(list, token_key(value[e], first + e));
            }
        });
        __syncthreads();
        if (list.count > 0) {
            const Found found = walk(list, mass, goal, num_above, above);
            if (goal.reached(found.count, found.mass)) return found;
        }
    }
    __syncthreads();
    return search_bits(row, mass, goal, borders(mass, bin), list);
}

}  // namespace headrace
