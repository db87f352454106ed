// A row's most probable tokens, listed without looking at most of the others.
//
// A scan reads all logits once and leaves, for each segment of 1,024, its greatest and its sum of exponentials, and for
// each group of 64 its greatest. The k-th greatest of the groups' greatest is a bound below which none of the k most
// probable tokens lies, and groups below it hold none: so one block reads only a few groups again, lists what is above
// the bound, and sorts that list (a few hundred tokens). Segments are fixed and every sum has a fixed order.
//
// Further macros: THREADS, GROUPS_A_THREAD (a block holds all groups' greatest in registers).
#pragma once

#include "ranking.cuh"

namespace headrace {

constexpr int SCAN_WARPS = 4;
constexpr int NUM_BINS = 2048;

// What is known of a row whose draw needs more than the list.
struct Note {
    uint64_t units_above;  // of the bins above ``bin``
    uint64_t target;       // the units that top_p asks for
    float best;
    int bin;         // the one in which top_p ends; NUM_BINS: top_p keeps all
    int num_listed;  // of its tokens in ``keys``; more than CAPACITY: they are not whole
    int num_counted;  // blocks that have counted their part
    int open;        // 0: the row is drawn
    int unused;
};

// A row's part, kernels/logits.py knows its size; search.cuh says what a search leaves in the last four.
struct Workspace {
    float *segment_best, *segment_sum, *group_best;
    uint64_t *segment_units, *bins, *keys;
    Note* note;
    int num_segments;

    __device__ __forceinline__ Workspace(float* base, int64_t row, int vocab) : num_segments((vocab + SEGMENT - 1) / SEGMENT) {
        const int64_t scanned = int64_t(num_segments) * (2 + GROUPS_A_SEGMENT);
        segment_best = base + row * (scanned + 2 * (num_segments + NUM_BINS + CAPACITY) + sizeof(Note) / sizeof(float));
        segment_sum = segment_best + num_segments;
        group_best = segment_sum + num_segments;
        segment_units = reinterpret_cast<uint64_t*>(segment_best + scanned);
        bins = segment_units + num_segments;
        keys = bins + NUM_BINS;
        note = reinterpret_cast<Note*>(keys + CAPACITY);
    }
};

// One warp's segment.
__device__ __forceinline__ void scan(const Row& row, const Workspace& space, int segment, float factor) {
    const int lane = threadIdx.x % WARP;
    float value[TURNS][OCTET], best[TURNS];
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++)
        row.read(value[turn], segment * SEGMENT + (turn * WARP + lane) * OCTET);
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        best[turn] = value[turn][0];
#pragma unroll
        for (int e = 1; e < OCTET; e++) best[turn] = fmaxf(best[turn], value[turn][e]);
    }
    warp_reduce<Max, TURNS, GROUP / OCTET>(best);
    if (lane % (GROUP / OCTET) == 0) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++)
            space.group_best[(segment * TURNS + turn) * (SEGMENT / TURNS / GROUP) + lane / (GROUP / OCTET)] = best[turn];
    }
    float greatest[1] = {best[0]};
#pragma unroll
    for (int turn = 1; turn < TURNS; turn++) greatest[0] = fmaxf(greatest[0], best[turn]);
    warp_reduce<Max, 1>(greatest);
    // A segment without any possible token has the sum 0, and not that of exp(-inf + inf).
    const float base = fmaxf(greatest[0], -3.4e38f);
    float sum[1] = {0.f};
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
        for (int e = 0; e < OCTET; e++) sum[0] += exp2_roughly((value[turn][e] - base) * factor);
    warp_reduce<Sum, 1>(sum);
    if (lane == 0) {
        space.segment_best[segment] = greatest[0];
        space.segment_sum[segment] = sum[0];
    }
}

// The groups' greatest, spread over a block.
__device__ __forceinline__ void take_groups(const Workspace& space, uint32_t (&own)[GROUPS_A_THREAD]) {
#pragma unroll
    for (int i = 0; i < GROUPS_A_THREAD; i++) {
        const int group = threadIdx.x + i * THREADS;
        own[i] = group < space.num_segments * GROUPS_A_SEGMENT ? ordered(space.group_best[group]) : 0;
    }
}

// The row's greatest logit, and the sum of all tokens' masses.
__device__ __forceinline__ void whole(const Workspace& space, float temperature, Ranking& list, float& best, double& sum) {
    float own = -INFINITY;
    for (int i = threadIdx.x; i < space.num_segments; i += THREADS) own = fmaxf(own, space.segment_best[i]);
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) own = fmaxf(own, __shfl_xor_sync(ALL_LANES, own, distance));
    if (threadIdx.x % WARP == 0) list.partial[threadIdx.x / WARP] = own;
    __syncthreads();
    best = -INFINITY;
#pragma unroll
    for (int warp = 0; warp < NUM_WARPS; warp++) best = fmaxf(best, static_cast<float>(list.partial[warp]));
    const Mass mass(best, temperature);
    double own_sum = 0;
    for (int i = threadIdx.x; i < space.num_segments; i += THREADS) {
        // Not 0 times what is not a number: that must stay.
        const float scale = space.segment_best[i] == -INFINITY ? 0.f : mass.of(space.segment_best[i]);
        own_sum += static_cast<double>(space.segment_sum[i]) * scale;
    }
    sum = block_sum<double>(own_sum, list.partial);
}

// Bits that at least ``k`` groups' greatest reach, and not many more.
__device__ __forceinline__ uint32_t bound(const uint32_t (&own)[GROUPS_A_THREAD], int k) {
    __shared__ int scratch[2][NUM_WARPS];
    uint32_t found = 0;
    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t candidate = found | 1u << bit;
        int count = 0;
#pragma unroll
        for (int i = 0; i < GROUPS_A_THREAD; i++) count += own[i] >= candidate;
        count = __reduce_add_sync(ALL_LANES, count);
        // Two scratches by turns, so that one barrier a turn is enough.
        if (threadIdx.x % WARP == 0) scratch[bit & 1][threadIdx.x / WARP] = count;
        __syncthreads();
        count = 0;
#pragma unroll
        for (int warp = 0; warp < NUM_WARPS; warp++) count += scratch[bit & 1][warp];
        if (count >= k) found = candidate;
        if (count >= k && count <= k + k / 4) break;
    }
    return found;
}

// List all tokens at or above the bound, sorted; false if there are too many.
__device__ __forceinline__ bool list_above(const Row& row, uint32_t bound, const uint32_t (&own)[GROUPS_A_THREAD], Ranking& list) {
    __shared__ int num_groups;
    int* groups = list.scratch;
    if (threadIdx.x == 0) num_groups = list.count = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < GROUPS_A_THREAD; i++) {
        if (own[i] == 0 || own[i] < bound) continue;
        const int at = atomicAdd(&num_groups, 1);
        if (at < CAPACITY) groups[at] = threadIdx.x + i * THREADS;
    }
    __syncthreads();
    if (num_groups > CAPACITY) return false;
    constexpr int TEAM = GROUP / OCTET;
    for (int i = threadIdx.x / TEAM; i < num_groups; i += THREADS / TEAM) {
        const int first = groups[i] * GROUP + threadIdx.x % TEAM * OCTET;
        float value[OCTET];
        row.read(value, first);
#pragma unroll
        for (int e = 0; e < OCTET; e++)
            if (first + e < row.vocab && ordered(value[e]) >= bound) add(list, token_key(value[e], first + e));
    }
    __syncthreads();
    if (list.count > CAPACITY) return false;
    sort(list);
    return true;
}

}  // namespace headrace
