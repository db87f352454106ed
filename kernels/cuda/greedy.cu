// The most probable token of each row, where all rows are greedy: the greatest key of each segment, then of each row.
#include "drawn.cuh"

using namespace headrace;

constexpr int SCAN_WARPS = 4;

extern "C" __global__ void __launch_bounds__(SCAN_WARPS* WARP)
    greedy_scan(const DTYPE* logits, int64_t stride, int vocab, uint64_t* keys, Parameters of) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int lane = threadIdx.x % WARP, segment = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP;
    const int num_segments = (vocab + SEGMENT - 1) / SEGMENT;
    const int64_t place = of.place(blockIdx.y);
    if (segment >= num_segments || place < 0) return;
    const Row row(logits + blockIdx.y * stride, vocab, place, of);
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
    const int64_t place = of.place(blockIdx.x);
    if (threadIdx.x == 0 && place >= 0)
        finish(token_ids, valid, blockIdx.x, place, key, isfinite(logit_of(key)), of);
}
