// Moving pages of keys and values, and the page tables that name them.
//
// page_copy copies whole pages, all layers in one launch. No page may be both a source and a target: the copies have
// no order. renumber puts the new numbers into page tables.
//
// Macros: THREADS, VECS (16-byte vectors of a thread).
#include "common.cuh"
#include "copy_async.cuh"

using namespace headrace;

using Wide = Vec<float, 4>;

#ifndef ONCE
#define ONCE 3
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
    page_copy(char* pages, const int2* moves, int64_t layer_stride, int64_t page_stride, int num_vecs) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int2 move = moves[blockIdx.y];  // from, to
    if (move.x < 0) return;               // a place in the list that is not used
    char* layer = pages + blockIdx.z * layer_stride;
    const float* from = reinterpret_cast<const float*>(layer + move.x * page_stride);
    float* to = reinterpret_cast<float*>(layer + move.y * page_stride);
    const int first = blockIdx.x * VECS * THREADS + threadIdx.x;
    Wide held[VECS];
#pragma unroll
    for (int i = 0; i < VECS; i++)
        if (first + i * THREADS < num_vecs) held[i] = ONCE & 1 ? load_once<float, 4>(from + int64_t(first + i * THREADS) * 4) : load<float, 4>(from + int64_t(first + i * THREADS) * 4);
#pragma unroll
    for (int i = 0; i < VECS; i++)
        if (first + i * THREADS < num_vecs) {
            if (ONCE & 2)
                store_once<float, 4>(to + int64_t(first + i * THREADS) * 4, held[i]);
            else
                store<float, 4>(to + int64_t(first + i * THREADS) * 4, held[i]);
        }
}

#if BULK
// A thread a block: stretches come and go through STAGES places in shared memory by the bulk copy engine.
extern "C" __global__ void __launch_bounds__(32)
    page_copy_bulk(char* pages, const int2* moves, int64_t layer_stride, int64_t page_stride, int page_bytes,
                   int num_moves, int num_layers) {
    extern __shared__ __align__(128) char stages[];
    __shared__ __align__(8) uint64_t full[STAGES];
    wait_for_earlier_kernels();
    let_next_kernel_start();
    if (threadIdx.x) return;
    const int num_stretches = (page_bytes + STRETCH_BYTES - 1) / STRETCH_BYTES;
    const int64_t total = int64_t(num_stretches) * num_moves * num_layers;
    for (int i = 0; i < STAGES; i++) barrier_init(shared_address(&full[i]), 1);
    barrier_init_fence();
    const uint64_t policy = evict_first_policy();
    struct Piece {
        char *from, *to;
        int bytes;
    };
    const auto piece = [&](int64_t at) {
        const int64_t page = at / num_stretches, layer = page / num_moves;
        const int begin = static_cast<int>(at - page * num_stretches) * STRETCH_BYTES;
        const int2 move = moves[page - layer * num_moves];
        char* base = pages + layer * layer_stride + begin;
        return Piece{base + move.x * page_stride, base + move.y * page_stride,
                     move.x < 0 ? 0 : min(STRETCH_BYTES, page_bytes - begin)};
    };
    int64_t ahead = blockIdx.x;
    Piece held[STAGES];
    const auto start = [&](Piece& slot, int stage) {
        slot.bytes = 0;
        if (ahead < total) {
            slot = piece(ahead);
            if (slot.bytes) {
                barrier_arrive_expecting(shared_address(&full[stage]), slot.bytes);
                copy_bulk(shared_address(stages) + stage * STRETCH_BYTES, slot.from, slot.bytes,
                          shared_address(&full[stage]), policy);
            }
        }
        ahead += gridDim.x;
    };
#pragma unroll
    for (int i = 0; i < STAGES - LAG; i++) start(held[i], i);
    uint32_t phases = 0;
    for (int64_t at = blockIdx.x; at < total;) {
#pragma unroll
        for (int i = 0; i < STAGES; i++) {
            if (at < total) {
                if (held[i].bytes) {
                    barrier_wait(shared_address(&full[i]), phases >> i & 1);
                    phases ^= 1u << i;
                    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(
                                     held[i].to),
                                 "r"(shared_address(stages) + i * STRETCH_BYTES), "r"(held[i].bytes), "l"(policy)
                                 : "memory");
                }
                asm volatile("cp.async.bulk.commit_group;" ::: "memory");
                at += gridDim.x;
            }
            // The place from which LAG turns ago a stretch was sent off has been read.
            asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LAG) : "memory");
            constexpr int BEHIND = LAG;
            start(held[(i + STAGES - BEHIND) % STAGES], (i + STAGES - BEHIND) % STAGES);
        }
    }
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS) renumber(int* page_table, const int* new_numbers, int64_t count) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at < count && page_table[at] >= 0) page_table[at] = new_numbers[page_table[at]];
}
