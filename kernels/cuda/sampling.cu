// From logits to tokens on the device: penalties, temperature, top-k, top-p, min-p, a draw; no vocabulary is sorted and
// the host waits for nothing.
//
// sample_scan reads all logits; sample_pick, one block a row, lists the most probable tokens (shortlist.cuh) and draws
// by inverting the cumulative distribution in the order of falling probability. The sum over the vocabulary, which top-p
// and a draw without top-k need, is known from the scan. Where the answer lies beyond the list, exact_search.cuh finds it,
// from bins that sample_bins has counted for the rows that may come to that.
//
// Nothing depends on other rows or on their number.
#include "drawn.cuh"
#include "exact_search.cuh"
#include "shortlist.cuh"

using namespace headrace;

constexpr int NUM_CANDIDATES = 256;  // listed where there is no top_k: nearly all draws fall among them
constexpr int LONGEST_TOP_K = 1024;  // a longer one is searched exactly

// Whether a row's answer may lie beyond its list.
__device__ __forceinline__ bool needs_bins(const Parameters& of, int64_t place, int vocab) {
    const int top_k = of.top_k[place];
    return vocab > CAPACITY && of.temperature[place] > 0.f && (top_k <= 0 || min(top_k, vocab) > LONGEST_TOP_K);
}

// Of a row that is drawn from.
__device__ __forceinline__ float usable(float temperature) { return fmaxf(temperature, 1.17549435e-38f); }

extern "C" __global__ void __launch_bounds__(SCAN_WARPS* WARP)
    sample_scan(const DTYPE* logits, int64_t stride, int vocab, float* workspace, Parameters of) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int segment = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    const int64_t index = blockIdx.y, place = of.place(index);
    const Workspace space(workspace, index, vocab);
    if (place < 0) return;
    if (needs_bins(of, place, vocab)) {
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < NUM_BINS; i += gridDim.x * blockDim.x) {
            space.bins.counts[i] = 0;
            space.bins.lacks[i] = 0;
        }
    }
    if (segment >= space.num_segments) return;
    const float temperature = of.temperature[place];
    scan(Row(logits + index * stride, vocab, place, of), space, segment, LOG2E / (temperature > 0 ? temperature : 1.f));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_bins(const DTYPE* logits, int64_t stride, int vocab, float* workspace, Parameters of) {
    __shared__ float scratch[1][WARP];
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t index = blockIdx.y, place = of.place(index);
    if (place < 0 || !needs_bins(of, place, vocab)) return;
    const Workspace space(workspace, index, vocab);
    float best[1] = {-INFINITY};
    for (int i = threadIdx.x; i < space.num_segments; i += THREADS) best[0] = fmaxf(best[0], space.segment_best[i]);
    block_reduce<Max, 1, THREADS>(best, scratch);
    if (!isfinite(best[0])) return;
    const Row row(logits + index * stride, vocab, place, of);
    count_part(row, Mass{best[0], usable(of.temperature[place])}, space.bins, blockIdx.x * PART);
}

struct Filters {
    int top_k;  // 1 to vocab; vocab keeps all
    float top_p, min_p;
    double uniform;

    __device__ __forceinline__ bool none() const { return top_p >= 1.f && min_p <= 0.f; }
};

// Draw from the sorted list; false if the list is too short to tell.
__device__ __forceinline__ bool draw_listed(const Filters& filters, const Row& row, const Mass& mass, double whole_mass,
                                            Ranking& list, uint64_t& key) {
    const bool all = filters.top_k >= row.vocab;
    const int n = min(list.count, filters.top_k);
    accumulate(list, n, 0., mass);
    const double total = all ? whole_mass : list.cumulative[n - 1];
    const int kept = max(1, prefix_length(n, [&](int i) {
                             const double before = i ? list.cumulative[i - 1] : 0.;
                             return (filters.top_p >= 1.f || before < filters.top_p * total) &&
                                    mass.of(logit_of(list.keys[i])) >= filters.min_p;
                         }));
    const double target = filters.uniform * (filters.none() ? total : list.cumulative[kept - 1]);
    const int choice = prefix_length(kept, [&](int i) { return list.cumulative[i] <= target; });
    if (all && n < row.vocab && (filters.none() ? choice == n : kept == n)) return false;
    // Rounding may carry the target to the last token: no further than to one that has any mass.
    const int possible = max(1, prefix_length(kept, [&](int i) { return mass.of(logit_of(list.keys[i])) > 0.f; }));
    key = list.keys[min(choice, possible - 1)];
    return true;
}

// The same, by queries to the whole row.
__device__ __noinline__ uint64_t draw_searched(const Filters& filters, const Row& row, const Mass& mass, double whole_mass,
                                               const Bins& bins, Ranking& list) {
    __syncthreads();  // the list may still be looked at
    const auto find = [&](const Goal& goal) { return search(row, mass, goal, bins, list); };
    Found last{0, row.vocab, whole_mass};  // the last token that is kept
    if (filters.top_k < row.vocab) last = find(Goal{filters.top_k, INFINITY, false});
    if (filters.top_p < 1.f) {
        const Found cut = find(Goal{last.count, filters.top_p * last.mass, false});
        if (cut.count < last.count) last = cut;
    }
    if (filters.min_p > 0.f) {
        int likely;
        double likely_mass;
        total(row, mass, filters.min_p, list, likely, likely_mass);
        if (likely < last.count) last = Found{0, likely, likely_mass};
    }
    // Sums by different ways differ by a millionth: no further than what all of them reach.
    const double target = fmin(filters.uniform * last.mass, whole_mass * (1. - 4e-6));
    return find(Goal{last.count, target, true}).key;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_pick(int64_t* token_ids, bool* valid, const DTYPE* logits, int64_t stride, int vocab,
                float* workspace, Parameters of) {
    __shared__ Ranking list;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t index = blockIdx.x, place = of.place(index);
    if (place < 0) return;
    const Workspace space(workspace, index, vocab);
    const Row row(logits + index * stride, vocab, place, of);
    const float given = of.temperature[place];
    const bool greedy = given <= 0.f;
    const float temperature = greedy ? 1.f : usable(given);
    uint32_t own[GROUPS_A_THREAD];
    take_groups(space, own);
    float best;
    double whole_mass;
    whole(space, temperature, list, best, whole_mass);
    // What is not a number has spoilt the sum; an infinite logit the greatest.
    const bool sound = isfinite(best) && isfinite(whole_mass);
    uint64_t key = token_key(0.f, 0);
    if (sound) {
        const Mass mass{best, temperature};
        const int asked = of.top_k[place];
        Filters filters{asked > 0 ? min(asked, vocab) : vocab, of.top_p[place], of.min_p[place], 0.};
        if (greedy) filters = Filters{1, 1.f, 0.f, 0.};
        else filters.uniform = uniform(of.seed[place], of.position[place] - of.num_prompt_tokens[place]);
        const bool all = filters.top_k >= vocab;
        bool drawn = false;
        if (all || filters.top_k <= LONGEST_TOP_K) {
            uint32_t least = 1;  // all tokens
            if (greedy) least = ordered(best);
            else if (vocab > CAPACITY) least = bound(own, all ? NUM_CANDIDATES : filters.top_k);
            drawn = list_above(row, least, own, list) && draw_listed(filters, row, mass, whole_mass, list, key);
        }
        if (!drawn) {
            const Bins bins = needs_bins(of, place, vocab) ? space.bins : Bins{};
            key = draw_searched(filters, row, mass, whole_mass, bins, list);
        }
    }
    if (threadIdx.x == 0) finish(token_ids, valid, index, place, key, sound, of);
}
