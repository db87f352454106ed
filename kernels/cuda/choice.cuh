// One token out of those that are kept: the first, by id, with which their mass exceeds a random number's share of it.
//
// Ids need no sorting: sums of segments of 1,024 tell which segment holds the token, and only that one is read again.
#pragma once

#include "drawn.cuh"
#include "threshold.cuh"

namespace headrace {

// What a row keeps: tokens at or above a key that have at least so many units.
struct Kept {
    uint64_t key, least;

    __device__ __forceinline__ uint64_t units(const Mass& mass, float logit, int id) const {
        const uint64_t units = mass.units(logit);
        return token_key(logit, id) >= key && units >= least ? units : 0;
    }
};

// The part in which the running sum of all threads' values exceeds ``target``, which is less than their sum; ``before`` is
// what lies before this thread's. Each thread has ``count`` parts from ``first`` on; what precedes the part is taken off target.
template <typename Of>
__device__ __forceinline__ int part_of(uint64_t& target, uint64_t before, int first, int count, Of units_of) {
    __shared__ int part;
    __shared__ uint64_t rest;
    __syncthreads();
    for (int i = first; i < first + count; i++) {
        const uint64_t own = units_of(i);
        if (before <= target && target - before < own) {
            part = i;
            rest = target - before;
        }
        before += own;
    }
    __syncthreads();
    target = rest;
    return part;
}

// The token of a segment in which the sum of kept units exceeds ``target``, or, where a random number is given instead, its share.
template <typename Units>
__device__ __forceinline__ uint64_t token_in(const Row& row, int segment, Units units_of, uint64_t target, double uniform = -1.) {
    __shared__ uint64_t key;
    const int first = segment * SEGMENT + threadIdx.x * OCTET;
    const bool reads = threadIdx.x < SEGMENT / OCTET && first < row.vocab;
    float value[OCTET];
    uint64_t units[OCTET], own = 0;
    if (reads) row.read(value, first);
#pragma unroll
    for (int e = 0; e < OCTET; e++) {
        units[e] = reads && first + e < row.vocab ? units_of(value[e], first + e) : 0;
        own += units[e];
    }
    uint64_t before = own;
    const uint64_t total = exclusive_sum(before);
    if (uniform >= 0.) target = share_of(total, uniform);
#pragma unroll
    for (int e = 0; e < OCTET; e++) {
        if (before <= target && target - before < units[e]) key = token_key(value[e], first + e);
        before += units[e];
    }
    __syncthreads();
    return key;
}

// One warp's sum over a segment, of which it reads AHEAD turns at once; ``units_of`` may do more with a token than tell what
// it counts.
template <int AHEAD, typename Units>
__device__ __forceinline__ uint64_t sum_segment(const Row& row, int segment, Units units_of) {
    const int lane = threadIdx.x % WARP;
    uint64_t sum = 0;
#pragma unroll 1
    for (int turn = 0; turn < TURNS; turn += AHEAD) {
        float value[AHEAD][OCTET];
        const int first = segment * SEGMENT + (turn * WARP + lane) * OCTET;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) row.read(value[i], first + i * WARP * OCTET);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int e = 0; e < OCTET; e++) {
                const int id = first + i * WARP * OCTET + e;
                if (id < row.vocab) sum += units_of(value[i][e], id);
            }
    }
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
    return sum;
}

// Draw among kept tokens, once the units that they have in each segment lie in the workspace.
__device__ __forceinline__ uint64_t draw_kept(const Row& row, const Mass& mass, const Kept& kept, double uniform,
                                              const Workspace& space) {
    const int count = (space.num_segments + THREADS - 1) / THREADS, first = min(int(threadIdx.x) * count, space.num_segments);
    const int own_count = min(count, space.num_segments - first);
    auto of = [&](int segment) { return __ldcg(&space.segment_units[segment]); };
    uint64_t before = 0;
    for (int i = first; i < first + own_count; i++) before += of(i);
    uint64_t target = share_of(exclusive_sum(before), uniform);
    const int segment = part_of(target, before, first, own_count, of);
    return token_in(row, segment, [&](float logit, int id) { return kept.units(mass, logit, id); }, target);
}

struct Filters {
    int top_k;  // 1 to vocab; vocab keeps all
    float top_p, min_p;

    __device__ __forceinline__ Filters(const Parameters& of, int64_t place, int vocab)
        : top_k(of.top_k[place] > 0 ? min(of.top_k[place], vocab) : vocab),
          top_p(of.top_p[place]),
          min_p(of.min_p[place]) {}
};

// One block's sums over all segments, left in the workspace; returns their sum.
__device__ __forceinline__ uint64_t sum_kept(const Row& row, const Mass& mass, const Kept& kept, const Workspace& space) {
    uint64_t sum = 0;
    for (int segment = threadIdx.x / WARP; segment < space.num_segments; segment += NUM_WARPS) {
        const uint64_t own = sum_segment<1>(row, segment, [&](float logit, int id) { return kept.units(mass, logit, id); });
        if (threadIdx.x % WARP == 0) {
            space.segment_units[segment] = own;
            sum += own;
        }
    }
    return exclusive_sum(sum);
}

// Draw by one block, whatever is asked for and however many tokens are equal. It is called seldom, and last: what it needs
// is made anew, so that its callers keep their registers.
__device__ __noinline__ void draw_exactly(int64_t* token_ids, bool* valid, const DTYPE* logits, int vocab, float* workspace,
                                          int64_t index, int64_t place, float best, const Parameters& of, Ranking& list) {
    const Workspace space(workspace, index, vocab);
    const Row row(logits, vocab, place, of);
    const Mass mass(best, of.temperature[place]);
    const Filters filters(of, place, vocab);
    Kept kept{0, 1};
    for (int filter = 0; filter < 2; filter++) {
        if (filter == 0 ? filters.top_k >= vocab : filters.top_p >= 1.f) continue;
        Goal goal{filters.top_k, INFINITY};
        if (filter == 1) goal = Goal{vocab, filters.top_p * static_cast<double>(sum_kept(row, mass, kept, space))};
        kept.key = max(kept.key, find_cut(row, mass, goal, list));
    }
    kept.least = least_units(filters.min_p);
    sum_kept(row, mass, kept, space);
    const uint64_t key = draw_kept(row, mass, kept, of.uniform(place), space);
    if (threadIdx.x == 0) finish(token_ids, valid, index, place, key, true, of);
}

}  // namespace headrace
