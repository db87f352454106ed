// Draws of rows whose top_p or min_p keeps more tokens than a list of the most probable ones holds: many blocks a row.
//
// search_bins sums masses by the distance of logits from the best one, in 2,048 bins; the block that ends last finds the
// bin in which top_p ends. search_sums adds up, segment by segment, what lies above that bin, and lists the tokens in it.
// search_pick, one block a row, sorts that list, which tells the last token kept, and draws. Sums are of integers: however
// many blocks share a row, it draws the same token. Rows that sample_pick has drawn are passed over.
#include "choice.cuh"

using namespace headrace;

constexpr float BINS_A_UNIT = 80.f;  // masses 2^36 times less than the best lie in the last bin

struct Scale {
    float best, bins;

    __device__ __forceinline__ Scale(float best, float temperature)
        : best(best), bins(fminf(BINS_A_UNIT / Mass::normal(temperature), 3e38f)) {}

    __device__ __forceinline__ int bin_of(float logit) const {
        return static_cast<int>(fminf((best - logit) * bins, NUM_BINS - 1));
    }
};

__device__ __forceinline__ void note_bin(const Workspace& space, float top_p) {
    constexpr int BINS = NUM_BINS / THREADS;
    uint64_t bins[BINS], before = 0;
#pragma unroll
    for (int i = 0; i < BINS; i++) {
        bins[i] = __ldcg(&space.bins[threadIdx.x * BINS + i]);
        before += bins[i];
    }
    const double target = top_p * static_cast<double>(exclusive_sum(before));
    auto reached = [&](uint64_t units) { return units > 0 && static_cast<double>(units) >= target; };
#pragma unroll
    for (int i = 0; i < BINS; i++) {
        if (!reached(before) && reached(before + bins[i])) {
            space.note->bin = threadIdx.x * BINS + i;
            space.note->units_above = before;
            space.note->target = static_cast<uint64_t>(ceil(target));
        }
        before += bins[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    search_bins(const DTYPE* logits, int64_t stride, int vocab, float* workspace, Parameters of) {
    __shared__ Bins bins;
    __shared__ bool is_last;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t index = blockIdx.y, place = of.place(index);
    const Workspace space(workspace, index, vocab);
    if (place < 0 || !space.note->open || of.top_p[place] >= 1.f) return;
    const Row row(logits + index * stride, vocab, place, of);
    const float best = space.note->best, temperature = of.temperature[place];
    const Mass mass(best, temperature);
    const Scale scale(best, temperature);
    for (int i = threadIdx.x; i < NUM_BINS; i += THREADS) bins.lower[i] = bins.upper[i] = 0;
    __syncthreads();
    for (int first = (blockIdx.x * THREADS + threadIdx.x) * OCTET; first < vocab; first += gridDim.x * THREADS * OCTET) {
        float value[OCTET];
        row.read(value, first);
#pragma unroll
        for (int e = 0; e < OCTET; e++) {
            const uint64_t units = mass.units(value[e]);
            if (units) bins.add(scale.bin_of(value[e]), units);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < NUM_BINS; i += THREADS)
        if (const uint64_t own = bins.of(i)) atomicAdd(reinterpret_cast<unsigned long long*>(&space.bins[i]), static_cast<unsigned long long>(own));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(&space.note->num_counted, 1) == static_cast<int>(gridDim.x) - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    note_bin(space, of.top_p[place]);
}

extern "C" __global__ void __launch_bounds__(SCAN_WARPS* WARP)
    search_sums(const DTYPE* logits, int64_t stride, int vocab, float* workspace, Parameters of) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int segment = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    const int64_t index = blockIdx.y, place = of.place(index);
    const Workspace space(workspace, index, vocab);
    if (segment >= space.num_segments || place < 0 || !space.note->open) return;
    const Row row(logits + index * stride, vocab, place, of);
    const float best = space.note->best, temperature = of.temperature[place];
    const Mass mass(best, temperature);
    const Scale scale(best, temperature);
    const int last = space.note->bin;
    const uint64_t least = least_units(of.min_p[place]);
    const uint64_t sum = sum_segment<TURNS>(row, segment, [&](float logit, int id) {
        const uint64_t units = mass.units(logit);
        const int bin = scale.bin_of(logit);
        if (bin == last && units) {
            const int at = atomicAdd(&space.note->num_listed, 1);
            if (at < CAPACITY) space.keys[at] = token_key(logit, id);
        }
        return bin < last && units >= least ? units : 0;
    });
    if (threadIdx.x % WARP == 0) space.segment_units[segment] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    search_pick(int64_t* token_ids, bool* valid, const DTYPE* logits, int64_t stride, int vocab,
                float* workspace, const __grid_constant__ Parameters of) {
    __shared__ Ranking list;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t index = blockIdx.x, place = of.place(index);
    const Workspace space(workspace, index, vocab);
    if (place < 0 || !space.note->open) return;
    const Row row(logits + index * stride, vocab, place, of);
    const Mass mass(space.note->best, of.temperature[place]);
    const int num_listed = space.note->num_listed;
    if (num_listed > CAPACITY)
        return draw_exactly(token_ids, valid, row.logits, vocab, workspace, index, place, space.note->best, of, list);
    Kept kept{0, least_units(of.min_p[place])};
    if (num_listed > 0) {
        for (int i = threadIdx.x; i < num_listed; i += THREADS) list.keys[i] = space.keys[i];
        if (threadIdx.x == 0) list.count = num_listed;
        __syncthreads();
        sort(list);
        auto units_of = [&](uint64_t listed) { return mass.units(logit_of(listed)); };
        accumulate(list, num_listed, space.note->units_above, units_of);
        const uint64_t target = space.note->target;
        const int last = prefix_length(num_listed - 1, [&](int i) { return list.cumulative[i] < target; });
        kept.key = list.keys[last];
        for (int i = threadIdx.x; i <= last; i += THREADS) {
            const uint64_t units = units_of(list.keys[i]);
            if (units >= kept.least)
                atomicAdd(reinterpret_cast<unsigned long long*>(&space.segment_units[token_of(list.keys[i]) / SEGMENT]),
                          static_cast<unsigned long long>(units));
        }
        __syncthreads();
    }
    const uint64_t key = draw_kept(row, mass, kept, of.uniform(place), space);
    if (threadIdx.x == 0) finish(token_ids, valid, index, place, key, true, of);
}
