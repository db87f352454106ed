// CUDA's threads on one core: each is a fiber, and a warp's collective operations are where its fibers meet.
//
// An asynchronous copy arrives when its thread waits for it, and not a moment earlier; until then its target is full of
// NaN. So a tile that is read too early, or overwritten while others read it, shows in the result.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)

struct Index {
    unsigned x, y;
};
inline Index threadIdx, blockIdx, gridDim;

struct int4 {
    int x, y, z, w;
};
struct float2 {
    float x, y;
};
struct uint2 {
    uint32_t x, y;
};
struct float4 {
    float x, y, z, w;
};
struct uint4 {
    uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
using std::max;
using std::min;

namespace emulated {

constexpr unsigned LANES = 32;

struct Slot {
    uint64_t words[4];
};
struct Barrier {
    unsigned arrived = 0, generation = 0;
};
struct Copy {
    unsigned char* to;
    const void* from;
    int num_bytes;
    unsigned group;
};
struct Fiber {
    ucontext_t context;  // to begin in
    jmp_buf place;       // to go on from
    bool has_begun;
    const Barrier* waits_at;  // while its generation is the one below
    unsigned generation;
    std::vector<char> stack;
    std::vector<Copy> copies;
    unsigned num_groups;  // of copies, so far
    unsigned num_told;    // times that it has told its cluster
    std::vector<std::vector<std::function<void()>>> products;  // under way, by commits
    bool done;
};

inline std::vector<Fiber> fibers;
inline std::vector<Slot> slots[2];
inline std::vector<Barrier> warps, warpgroups, blocks;
inline Barrier all_blocks;  // of the cluster
inline jmp_buf scheduler;
inline std::function<void()> body;
// What the copy engine, and other blocks' stores, will do at some later time.
inline std::vector<std::function<void()>> under_way;
inline uint32_t chance;

// Blocks of a cluster run together, each with memory of its own; the first one's comes first.
constexpr unsigned MEMORY_BYTES = 228 << 10;
alignas(1024) inline unsigned char all_memory[8 * MEMORY_BYTES];
inline unsigned char* memory = all_memory;
inline unsigned self, block_threads, first_block, num_told;  // fiber, threads a block, of the cluster

inline unsigned rank() { return self / block_threads; }
inline Fiber& own_fiber() { return fibers[self]; }
inline Barrier& own_warp() { return warps[self / LANES]; }
inline Barrier& own_warpgroup() { return warpgroups[rank() * (block_threads / 128 + 1) + threadIdx.x / 128]; }

inline void become(unsigned fiber) {
    self = fiber, threadIdx.x = fiber % block_threads;
    const unsigned block = first_block + rank();
    blockIdx = {block % gridDim.x, block / gridDim.x}, memory = all_memory + rank() * MEMORY_BYTES;
}

// Jumps: swapcontext asks the system for its signals each time, which takes longer than all else.
inline void let_others_run() {
    const unsigned own = self;
    if (!_setjmp(fibers[own].place)) _longjmp(scheduler, 1);
    become(own);
}

inline void go_on() {
    if (_setjmp(scheduler)) return;
    Fiber& fiber = own_fiber();
    if (fiber.has_begun) _longjmp(fiber.place, 1);
    fiber.has_begun = true;
    setcontext(&fiber.context);
}

inline void meet(Barrier& barrier, unsigned expected) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == expected) {
        barrier.arrived = 0, barrier.generation++;
        return;
    }
    own_fiber().waits_at = &barrier, own_fiber().generation = generation;
    let_others_run();
    own_fiber().waits_at = nullptr;
}

// One of what is under way comes to its end, whichever.
inline void end_one() {
    if (under_way.empty()) return;
    chance = chance * 1664525 + 1013904223;
    std::swap(under_way[(chance >> 8) % under_way.size()], under_way.back());
    const std::function<void()> one = under_way.back();
    under_way.pop_back();
    one();
}

// What each lane of the warp brought along; valid until the warp has met twice more.
template <typename T>
const Slot* exchange(const T& value) {
    static_assert(sizeof(T) <= sizeof(Slot));
    std::vector<Slot>& side = slots[own_warp().generation % 2];
    memcpy(&side[self], &value, sizeof(T));
    meet(own_warp(), LANES);
    return &side[self / LANES * LANES];
}
template <typename T>
T brought(const Slot& slot) {
    T value;
    memcpy(&value, &slot, sizeof(T));
    return value;
}

inline void run() {
    body();
    own_fiber().done = true;
    _longjmp(scheduler, 1);
}

// Clusters of blocks one after the other; in each turn the last warp goes first.
inline void launch(Index grid, unsigned num_threads, const std::function<void()>& kernel, unsigned cluster = 1) {
    const unsigned num_fibers = num_threads * cluster;
    body = kernel;
    gridDim = grid, block_threads = num_threads;
    fibers.resize(num_fibers);
    for (first_block = 0; first_block < grid.x * grid.y; first_block += cluster) {
        memset(all_memory, 255, cluster * MEMORY_BYTES);
        warps.assign(num_fibers / LANES, {}), blocks.assign(cluster, {});
        warpgroups.assign(cluster * (num_threads / 128 + 1), {}), num_told = 0, all_blocks = {};
        for (auto& side : slots) side.assign(num_fibers, {});
        for (Fiber& fiber : fibers) {
            fiber.done = false, fiber.stack.resize(1 << 17), fiber.copies.clear();
            fiber.num_groups = fiber.num_told = 0, fiber.has_begun = false, fiber.waits_at = nullptr;
            fiber.products.assign(1, {});
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = fiber.stack.size();
            makecontext(&fiber.context, run, 0);
        }
        for (bool any = true; any; end_one()) {
            any = false;
            for (unsigned i = 0; i < num_fibers; i++) {
                become(num_fibers - LANES - i / LANES * LANES + i % LANES);
                const Fiber& fiber = own_fiber();
                if (fiber.done) continue;
                any = true;
                if (fiber.waits_at == nullptr || fiber.waits_at->generation != fiber.generation) go_on();
            }
        }
    }
    memory = all_memory;
}

inline void launch(unsigned num_blocks, unsigned num_threads, const std::function<void()>& kernel,
                   unsigned cluster = 1) {
    launch(Index{num_blocks, 1}, num_threads, kernel, cluster);
}

}  // namespace emulated

inline void __syncthreads() { emulated::meet(emulated::blocks[emulated::rank()], emulated::block_threads); }
inline void __syncwarp() { emulated::meet(emulated::own_warp(), emulated::LANES); }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulated::brought<T>(emulated::exchange(value)[threadIdx.x % emulated::LANES ^ mask]);
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulated::brought<T>(emulated::exchange(value)[lane]);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned distance) {
    const emulated::Slot* all = emulated::exchange(value);
    const unsigned lane = threadIdx.x % emulated::LANES;
    return emulated::brought<T>(all[lane < distance ? lane : lane - distance]);
}
inline bool __any_sync(unsigned, bool value) {
    const emulated::Slot* all = emulated::exchange(value);
    return std::any_of(all, all + emulated::LANES, emulated::brought<bool>);
}
inline int __syncthreads_or(int value) {
    static int any;
    __syncthreads();
    any = 0;
    __syncthreads();
    any |= value;
    __syncthreads();
    return any;
}
inline int __reduce_add_sync(unsigned, int value) {
    const emulated::Slot* all = emulated::exchange(value);
    int sum = 0;
    for (unsigned lane = 0; lane < emulated::LANES; lane++) sum += emulated::brought<int>(all[lane]);
    return sum;
}
inline int __reduce_max_sync(unsigned, int value) {
    const emulated::Slot* all = emulated::exchange(value);
    int greatest = emulated::brought<int>(all[0]);
    for (unsigned lane = 1; lane < emulated::LANES; lane++) greatest = max(greatest, emulated::brought<int>(all[lane]));
    return greatest;
}
// One core: no two threads are ever between a read and a write.
template <typename T, typename U>
T atomicAdd(T* address, U value) {
    const T old = *address;
    *address += value;
    return old;
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
    const unsigned old = *address;
    *address = old >= last ? 0 : old + 1;
    return old;
}
inline void atomicMax(int* address, int value) { *address = max(*address, value); }
inline void atomicMin(int* address, int value) { *address = min(*address, value); }
template <typename T>
T __ldcg(const T* address) {
    return *address;
}
inline void __threadfence() {}
// Bytes of two words, numbered from the lower one's lowest, as the hexadecimal digits of ``order`` say.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t order) {
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    uint32_t chosen = 0;
    for (int i = 0; i < 4; i++) chosen |= static_cast<uint32_t>(both >> (order >> 4 * i & 7) * 8 & 255) << 8 * i;
    return chosen;
}
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }
using std::isfinite;
using std::isnan;
