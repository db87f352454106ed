// From logits to tokens on the device: penalties, temperature, top-k, top-p, min-p, a draw; no vocabulary is sorted and
// the host waits for nothing.
//
// The filters keep the front of the falling order; what is drawn is the first kept token, by id, with which the mass of
// kept tokens exceeds a random number's share of it. sample_scan reads all logits; sample_pick, one block a row, does the
// rest. Without filters the scan's sums tell the segment, and that alone is read again. Filters are applied to a list of
// the most probable tokens (shortlist.cuh). Where they keep more than that, the row is left to search.cu, whose many
// blocks read the logits twice more, or, if those are not to be launched, is drawn by its block (choice.cuh).
//
// Nothing depends on other rows or on their number.
#include "choice.cuh"

using namespace headrace;

constexpr int NUM_CANDIDATES = 256;  // listed where there is no top_k: nearly all cuts fall among them
constexpr int LONGEST_TOP_K = 1024;  // a longer one is searched exactly
constexpr int FEW = 128;             // tokens that are compared each with each sooner than they are sorted by id
constexpr double PARTS = 0x1p40;     // of the best token's mass: integers in which segments' sums are added

extern "C" __global__ void __launch_bounds__(SCAN_WARPS* WARP)
    sample_scan(const DTYPE* logits, int64_t stride, int vocab, float* workspace, Parameters of) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int segment = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    const int64_t index = blockIdx.y, place = of.place(index);
    const Workspace space(workspace, index, vocab);
    if (segment >= space.num_segments || place < 0) return;
    scan(Row(logits + index * stride, vocab, place, of), space, segment, LOG2E / Mass::normal(of.temperature[place]));
}

// The segments' sums, added up in the order of ids.
struct Sums {
    const Workspace& space;
    const Mass mass;
    int first, count;        // this thread's segments
    uint64_t before, total;  // what lies before them, and all

    __device__ __forceinline__ Sums(const Workspace& space, const Mass& mass) : space(space), mass(mass) {
        count = (space.num_segments + THREADS - 1) / THREADS;
        first = min(int(threadIdx.x) * count, space.num_segments);
        count = min(count, space.num_segments - first);
        before = 0;
        for (int i = first; i < first + count; i++) before += of(i);
        total = exclusive_sum(before);
    }

    __device__ __forceinline__ uint64_t of(int segment) const {
        return static_cast<uint64_t>(space.segment_sum[segment] * static_cast<double>(mass.of(space.segment_best[segment])) * PARTS);
    }
};

// The row's greatest logit; false if that is not finite, or if anything is not a number: then a segment's sum is none.
__device__ __forceinline__ bool find_best(const Workspace& space, float& best) {
    __shared__ float partial[1][WARP];
    float own[1] = {-INFINITY};
    bool spoilt = false;
    for (int i = threadIdx.x; i < space.num_segments; i += THREADS) {
        own[0] = fmaxf(own[0], space.segment_best[i]);
        spoilt |= isnan(space.segment_sum[i]);
    }
    block_reduce<Max, 1, THREADS>(own, partial);
    best = own[0];
    return !__syncthreads_or(spoilt) && isfinite(best);
}

// The first token that is as great as the greatest.
__device__ __forceinline__ uint64_t take_best(const Row& row, const Workspace& space, float best) {
    __shared__ int segment, id;
    if (threadIdx.x == 0) segment = id = 0x7fffffff;
    __syncthreads();
    for (int i = threadIdx.x; i < space.num_segments; i += THREADS)
        if (space.segment_best[i] == best) atomicMin(&segment, i);
    __syncthreads();
    const int first = segment * SEGMENT + threadIdx.x * OCTET;
    if (threadIdx.x < SEGMENT / OCTET && first < row.vocab) {
        float value[OCTET];
        row.read(value, first);
        int own = 0x7fffffff;
#pragma unroll
        for (int e = OCTET - 1; e >= 0; e--)
            if (value[e] == best) own = first + e;
        if (own < row.vocab) atomicMin(&id, own);
    }
    __syncthreads();
    return token_key(best, id);
}

// Draw by the segments' sums, from all tokens.
__device__ __forceinline__ uint64_t draw_plainly(const Row& row, const Sums& sums, double uniform, float temperature) {
    uint64_t target = share_of(sums.total, uniform);
    const int segment = part_of(target, sums.before, sums.first, sums.count, [&](int i) { return sums.of(i); });
    const double share = static_cast<double>(target) / static_cast<double>(sums.of(segment));
    const Mass mass(sums.space.segment_best[segment], temperature);
    return token_in(row, segment, [&](float logit, int) { return mass.units(logit); }, 0, share);
}

// The first of the list's first tokens, by id, with which their sum exceeds ``target``. They lie in falling order, summed up.
__device__ __forceinline__ uint64_t take_by_id(Ranking& list, int kept, uint64_t target, const Mass& mass) {
    if (kept <= FEW) {
        __shared__ uint64_t taken;
        if (threadIdx.x < kept) {
            const int id = token_of(list.keys[threadIdx.x]);
            uint64_t before = 0, last = 0, own = 0;
            for (int i = 0; i < kept; i++) {
                const uint64_t sum = list.cumulative[i];
                if (token_of(list.keys[i]) < id) before += sum - last;
                if (i == threadIdx.x) own = sum - last;
                last = sum;
            }
            if (before <= target && target - before < own) taken = list.keys[threadIdx.x];
        }
        __syncthreads();
        return taken;
    }
    __syncthreads();
    // The smaller id's complement is the greater.
    for (int i = threadIdx.x; i < kept; i += THREADS) list.keys[i] = list.keys[i] << 32 | list.keys[i] >> 32;
    if (threadIdx.x == 0) list.count = kept;
    __syncthreads();
    sort(list);
    accumulate(list, kept, 0, [&](uint64_t listed) { return mass.units(unordered(static_cast<uint32_t>(listed))); });
    const uint64_t taken = list.keys[prefix_length(kept - 1, [&](int i) { return list.cumulative[i] <= target; })];
    return taken << 32 | taken >> 32;
}

// Draw from the sorted list; false if the list is too short to tell. ``whole`` is the mass of all tokens, in units.
__device__ __forceinline__ bool draw_listed(const Filters& filters, const Parameters& of, int64_t place, const Row& row,
                                            const Mass& mass, double whole, Ranking& list, uint64_t& key) {
    const bool all = filters.top_k >= row.vocab;
    const int n = min(list.count, filters.top_k);
    const uint64_t least = least_units(filters.min_p);
    accumulate(list, n, 0, [&](uint64_t listed) { return mass.units(logit_of(listed)); });
    const double wanted = filters.top_p < 1.f ? filters.top_p * (all ? whole : static_cast<double>(list.cumulative[n - 1])) : INFINITY;
    const int kept = max(1, prefix_length(n, [&](int i) {
                             const uint64_t before = i ? list.cumulative[i - 1] : 0;
                             return before < wanted && list.cumulative[i] - before >= least;
                         }));
    if (all && kept == n && n < row.vocab) return false;
    key = take_by_id(list, kept, share_of(list.cumulative[kept - 1], of.uniform(place)), mass);
    return true;
}

// Leave a row to search.cu.
__device__ __forceinline__ void leave_open(const Filters& filters, const Workspace& space, float best) {
    if (filters.top_p < 1.f)
        for (int i = threadIdx.x; i < NUM_BINS; i += THREADS) space.bins[i] = 0;
    if (threadIdx.x == 0) *space.note = Note{0, 0, best, NUM_BINS, 0, 0, 1, 0};
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_pick(int64_t* token_ids, bool* valid, const DTYPE* logits, int64_t stride, int vocab,
                float* workspace, int is_searched, const __grid_constant__ Parameters of) {
    __shared__ Ranking list;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t index = blockIdx.x, place = of.place(index);
    if (place < 0) return;
    const Workspace space(workspace, index, vocab);
    const Row row(logits + index * stride, vocab, place, of);
    const float temperature = of.temperature[place];
    if (is_searched && threadIdx.x == 0) space.note->open = 0;
    float best;
    uint64_t key = token_key(0.f, 0);
    const bool sound = find_best(space, best);
    if (sound && temperature <= 0.f) {
        key = take_best(row, space, best);
    } else if (sound) {
        const Mass mass(best, temperature);
        const Filters filters(of, place, vocab);
        const bool all = filters.top_k >= vocab;
        bool drawn = false;
        if (all && filters.top_p >= 1.f && filters.min_p <= 0.f) {
            key = draw_plainly(row, Sums(space, mass), of.uniform(place), temperature);
            drawn = true;
        } else if (all || filters.top_k <= LONGEST_TOP_K) {
            uint32_t own[GROUPS_A_THREAD], least = 1;  // all tokens
            take_groups(space, own);
            if (vocab > CAPACITY) least = bound(own, all ? NUM_CANDIDATES : filters.top_k);
            const double whole = all ? Sums(space, mass).total * (double(uint64_t(1) << UNIT_BITS) / PARTS) : 0.;
            drawn = list_above(row, least, own, list) && draw_listed(filters, of, place, row, mass, whole, list, key);
        }
        if (!drawn && is_searched && all) return leave_open(filters, space, best);
        if (!drawn) return draw_exactly(token_ids, valid, row.logits, vocab, workspace, index, place, best, of, list);
    }
    if (threadIdx.x == 0) finish(token_ids, valid, index, place, key, sound, of);
}
