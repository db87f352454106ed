// How probable tokens are to the model: natural logarithms of the softmax of its own logits, for rows that ask.
//
// logprob_scan and logprob_top look at the logits before anything of the request changes them, and leave each row's most
// probable tokens and what all its logarithms are told by; logprob_chosen looks up the token that was drawn.
#include "shortlist.cuh"

using namespace headrace;

constexpr float LEAST = -9999.f;  // "hardly ever": JSON has no infinity

// A row's greatest logit, and the logarithm of the sum of exponentials of all logits less that one.
struct Scale {
    float best, log_sum;

    __device__ __forceinline__ float logprob(float logit) const { return fmaxf(logit - best - log_sum, LEAST); }
};

// The asking rows' places say how many tokens: none but the chosen one (0), some, or nothing at all (-1).
__device__ __forceinline__ bool asks(const int64_t* places, const int* num_top, int64_t row) {
    return places[row] >= 0 && num_top[places[row]] >= 0;
}

extern "C" __global__ void __launch_bounds__(SCAN_WARPS* WARP)
    logprob_scan(const DTYPE* logits, int64_t stride, int vocab, float* workspace, const int64_t* places, const int* num_top) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int segment = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    const Workspace space(workspace, blockIdx.y, vocab);
    if (segment < space.num_segments && asks(places, num_top, blockIdx.y))
        scan(Row(logits + blockIdx.y * stride, vocab), space, segment, LOG2E);
}

// The greatest key below another, of a whole row.
__device__ __forceinline__ uint64_t next_key(const Row& row, uint64_t below, Ranking& list) {
    unsigned long long own = 0;
    for (int first = threadIdx.x * OCTET; first < row.vocab; first += THREADS * OCTET) {
        float value[OCTET];
        row.read(value, first);
#pragma unroll
        for (int e = 0; e < OCTET; e++) {
            const unsigned long long key = token_key(value[e], first + e);
            if (first + e < row.vocab && key < below) own = max(own, key);
        }
    }
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) own = max(own, __shfl_xor_sync(ALL_LANES, own, distance));
    __syncthreads();
    if (threadIdx.x % WARP == 0) list.keys[threadIdx.x / WARP] = own;
    __syncthreads();
    for (int warp = 0; warp < NUM_WARPS; warp++) own = max(own, static_cast<unsigned long long>(list.keys[warp]));
    return own;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    logprob_top(Scale* scales, int* top_ids, float* top_logprobs, int most_top, const DTYPE* logits, int64_t stride,
                int vocab, float* workspace, const int64_t* places, const int* num_top) {
    __shared__ Ranking list;
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t index = blockIdx.x;
    if (!asks(places, num_top, index)) return;
    const int count = min(num_top[places[index]], min(most_top, vocab));
    const Workspace space(workspace, index, vocab);
    const Row row(logits + index * stride, vocab);
    uint32_t own[GROUPS_A_THREAD];
    take_groups(space, own);
    float best;
    double sum;
    whole(space, 1.f, list, best, sum);
    const Scale scale{best, static_cast<float>(log(sum))};
    if (threadIdx.x == 0) scales[index] = scale;
    if (count == 0) return;
    auto tell = [&](int i, uint64_t key) {
        top_ids[index * most_top + i] = token_of(key);
        top_logprobs[index * most_top + i] = scale.logprob(logit_of(key));
    };
    // Where thousands of tokens are equal, the list may be too short for them.
    if (list_above(row, vocab > CAPACITY ? bound(own, count) : 1, own, list)) {
        if (threadIdx.x < count) tell(threadIdx.x, list.keys[threadIdx.x]);
        return;
    }
    uint64_t key = ~uint64_t(0);
    for (int i = 0; i < count; i++) {
        key = next_key(row, key, list);
        if (threadIdx.x == 0) tell(i, key);
    }
}

// One warp a row. Where a bias was added to the token's logit, the edits have kept what it was.
extern "C" __global__ void __launch_bounds__(THREADS)
    logprob_chosen(float* logprobs, const int64_t* token_ids, const Scale* scales, const DTYPE* logits, int64_t stride,
                   int num_rows, const int64_t* places, const int* num_top, const int* bias_ids, const float* unbiased,
                   const int* num_biases, int most_biases) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int lane = threadIdx.x % WARP;
    const int64_t index = blockIdx.x * NUM_WARPS + threadIdx.x / WARP;
    if (index >= num_rows || !asks(places, num_top, index)) return;
    const int64_t place = places[index], token = token_ids[index];
    float logit = to_float(logits[index * stride + token]);
    const int count = num_biases[place];
    for (int first = 0; first < count; first += WARP) {
        const bool is_it = first + lane < count && bias_ids[place * most_biases + first + lane] == token;
        const unsigned found = __ballot_sync(ALL_LANES, is_it);
        if (found) logit = unbiased[place * most_biases + first + __ffs(found) - 1];
    }
    if (lane == 0) logprobs[index] = scales[index].logprob(logit);
}
