// From logits to tokens on the device: penalties, temperature, top-k, top-p, min-p, a draw; no vocabulary is sorted and
// the host waits for nothing.
//
// sample_scan reads all logits once and leaves, for each segment of 1,024, its greatest and its sum of exponentials,
// and for each group of 64 its greatest. The k-th greatest of the groups' greatest is a bound below which none of the k
// most probable tokens lies, and groups below it hold none: so sample_pick, one block a row, reads only a few groups
// again, lists what is above the bound, sorts that list (a few hundred tokens) and draws by inverting the cumulative
// distribution in the order of falling probability. The sum over the vocabulary, which top-p and a draw without top-k
// need, is known from the scan. Where the answer lies beyond the list, exact_search.cuh finds it.
//
// Nothing depends on other rows or on their number: segments are fixed, every sum has a fixed order.
//
// Further macros: THREADS, GROUPS_A_THREAD (sample_pick holds all groups' greatest in registers).
#include "exact_search.cuh"

using namespace headrace;

constexpr int NUM_CANDIDATES = 256;  // listed where there is no top_k: nearly all draws fall among them
constexpr int LONGEST_TOP_K = 1024;  // a longer one is searched exactly
constexpr int SCAN_WARPS = 4;

struct Workspace {
    float *segment_best, *segment_sum, *group_best;
    int num_segments;

    __device__ __forceinline__ Workspace(float* base, int64_t row, int vocab) : num_segments((vocab + SEGMENT - 1) / SEGMENT) {
        segment_best = base + row * num_segments * (2 + GROUPS_A_SEGMENT);
        segment_sum = segment_best + num_segments;
        group_best = segment_sum + num_segments;
    }
};

extern "C" __global__ void __launch_bounds__(SCAN_WARPS* WARP)
    sample_scan(const DTYPE* logits, int64_t stride, int vocab, float* workspace, Parameters of) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int lane = threadIdx.x % WARP, segment = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    const Workspace space(workspace, blockIdx.y, vocab);
    if (segment >= space.num_segments) return;
    const Row row(logits, stride, vocab, blockIdx.y, of);
    const float temperature = of.temperature[blockIdx.y];
    const float factor = LOG2E / (temperature > 0 ? temperature : 1.f);
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
    const Mass mass{best, temperature};
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
                                               Ranking& list) {
    make_histogram(row, mass, list);
    Found last{0, row.vocab, whole_mass};  // the last token that is kept
    if (filters.top_k < row.vocab) last = search(row, mass, Goal{filters.top_k, INFINITY, false}, list);
    if (filters.top_p < 1.f) {
        const Found cut = search(row, mass, Goal{last.count, filters.top_p * last.mass, false}, list);
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
    return search(row, mass, Goal{last.count, target, true}, list).key;
}

// Write a row's token, and count it.
__device__ __forceinline__ void finish(int64_t* token_ids, bool* valid, int64_t row, uint64_t key, bool sound,
                                       const Parameters& of) {
    const int token = sound ? token_of(key) : 0;
    token_ids[row] = token;
    valid[row] = sound;
#if PENALISED
    const int slot = of.slots[row];
    if (slot >= 0 && sound) {
        short& count = of.counts[slot * of.counts_stride + token];
        if ((count & (IN_PROMPT - 1)) != IN_PROMPT - 1) count++;
    }
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_pick(int64_t* token_ids, bool* valid, float* logprobs, const DTYPE* logits, int64_t stride, int vocab,
                float* workspace, Parameters of) {
    __shared__ Ranking list;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t index = blockIdx.x;
    const Workspace space(workspace, index, vocab);
    const Row row(logits, stride, vocab, index, of);
    const float given = of.temperature[index];
    const bool greedy = given <= 0.f;
    const float temperature = greedy ? 1.f : fmaxf(given, 1.17549435e-38f);
    uint32_t own[GROUPS_A_THREAD];
#pragma unroll
    for (int i = 0; i < GROUPS_A_THREAD; i++) {
        const int group = threadIdx.x + i * THREADS;
        own[i] = group < space.num_segments * GROUPS_A_SEGMENT ? ordered(space.group_best[group]) : 0;
    }
    float best;
    double whole_mass;
    whole(space, temperature, list, best, whole_mass);
    // What is not a number has spoilt the sum; an infinite logit the greatest.
    const bool sound = isfinite(best) && isfinite(whole_mass);
    uint64_t key = token_key(0.f, 0);
    if (sound) {
        const Mass mass{best, temperature};
        const int asked = of.top_k[index];
        Filters filters{asked > 0 ? min(asked, vocab) : vocab, of.top_p[index], of.min_p[index], 0.};
        if (greedy) filters = Filters{1, 1.f, 0.f, 0.};
        else filters.uniform = uniform(of.seed[index], of.position[index]);
        const bool all = filters.top_k >= vocab;
        bool drawn = false;
        if (all || filters.top_k <= LONGEST_TOP_K) {
            uint32_t least = 1;  // all tokens
            if (greedy) least = ordered(best);
            else if (vocab > CAPACITY) least = bound(own, all ? NUM_CANDIDATES : filters.top_k);
            drawn = list_above(row, least, own, list) && draw_listed(filters, row, mass, whole_mass, list, key);
        }
        if (!drawn) key = draw_searched(filters, row, mass, whole_mass, list);
        if (logprobs && threadIdx.x == 0)
            logprobs[index] = (logit_of(key) - best) / temperature - static_cast<float>(log(whole_mass));
    }
    if (threadIdx.x == 0) finish(token_ids, valid, index, key, sound, of);
}

// Where all rows are greedy: the greatest key of each segment, then of each row.
extern "C" __global__ void __launch_bounds__(SCAN_WARPS* WARP)
    greedy_scan(const DTYPE* logits, int64_t stride, int vocab, uint64_t* keys, Parameters of) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int lane = threadIdx.x % WARP, segment = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    const int num_segments = (vocab + SEGMENT - 1) / SEGMENT;
    if (segment >= num_segments) return;
    const Row row(logits, stride, vocab, blockIdx.y, of);
    float value[TURNS][OCTET], best = -INFINITY;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) row.read(value[turn], segment * SEGMENT + (turn * WARP + lane) * OCTET);
    int id = segment * SEGMENT + lane * OCTET;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
        for (int e = 0; e < OCTET; e++) {
            const float v = value[turn][e];
            // What is not a number wins, and stays: no comparison with it is true.
            if (v > best || v != v) {
                best = v;
                id = segment * SEGMENT + (turn * WARP + lane) * OCTET + e;
            }
        }
    uint64_t key = best != best ? ~uint64_t(0) : token_key(best, id);
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        key = max(key, static_cast<uint64_t>(__shfl_xor_sync(ALL_LANES, static_cast<unsigned long long>(key), distance)));
    if (lane == 0) keys[int64_t(blockIdx.y) * num_segments + segment] = key;
}

extern "C" __global__ void __launch_bounds__(WARP)
    greedy_pick(int64_t* token_ids, bool* valid, const uint64_t* keys, int vocab, Parameters of) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int num_segments = (vocab + SEGMENT - 1) / SEGMENT;
    uint64_t key = 0;
    for (int i = threadIdx.x; i < num_segments; i += WARP) key = max(key, keys[int64_t(blockIdx.x) * num_segments + i]);
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        key = max(key, static_cast<uint64_t>(__shfl_xor_sync(ALL_LANES, static_cast<unsigned long long>(key), distance)));
    if (threadIdx.x == 0) finish(token_ids, valid, blockIdx.x, key, isfinite(logit_of(key)), of);
}

// Add to single logits: logit biases, bans (-inf). An id below 0 is passed over; a row names no id twice.
extern "C" __global__ void __launch_bounds__(THREADS)
    edit_logits(DTYPE* logits, int64_t stride, int vocab, const int* ids, const float* values, int num_edits) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t row = blockIdx.x;
    for (int i = threadIdx.x; i < num_edits; i += THREADS) {
        const int id = ids[row * num_edits + i];
        if (id < 0 || id >= vocab) continue;
        DTYPE& logit = logits[row * stride + id];
        logit = from_float<DTYPE>(to_float(logit) + values[row * num_edits + i]);
    }
}

// Begin a row's counts: those of its prompt are marked, those of what it has generated already are added up.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_tokens(short* counts, int vocab, const int64_t* token_ids, int num_tokens, int num_prompt_tokens) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= num_tokens || token_ids[i] < 0 || token_ids[i] >= vocab) return;
    // There are no atomics on 16 bits; a token's count is one half of an aligned word, whichever that is.
    const uintptr_t address = reinterpret_cast<uintptr_t>(counts + token_ids[i]);
    unsigned* word = reinterpret_cast<unsigned*>(address & ~uintptr_t(3));
    const int shift = address & 2 ? 16 : 0;
    if (i < num_prompt_tokens)
        atomicOr(word, unsigned(IN_PROMPT) << shift);
    else
        atomicAdd(word, 1u << shift);
}
