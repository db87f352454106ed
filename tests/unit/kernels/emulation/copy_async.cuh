// kernels/cuda/copy_async.cuh for fibers; shared addresses count from the cluster's memory.
#pragma once

#include "common.cuh"

namespace headrace {

inline uint32_t shared_address(const void* pointer) {
    return static_cast<const unsigned char*>(pointer) - emulated::all_memory;
}

inline void copy_16_bytes(uint32_t to, const void* from, int num_bytes) {
    memset(emulated::all_memory + to, 255, 16);
    emulated::Fiber& own = emulated::own_fiber();
    own.copies.push_back({emulated::all_memory + to, from, num_bytes, own.num_groups});
}

inline void copy_16_bytes(uint32_t to, const void* from, int num_bytes, uint64_t) { copy_16_bytes(to, from, num_bytes); }

inline void commit_copies() { emulated::own_fiber().num_groups++; }

// The newest PENDING groups stay under way; with none, whatever was not committed arrives, too.
template <int PENDING>
void wait_for_copies() {
    emulated::Fiber& own = emulated::own_fiber();
    std::vector<emulated::Copy> under_way;
    for (const emulated::Copy& copy : own.copies) {
        if (PENDING > 0 && copy.group + PENDING >= own.num_groups) {
            under_way.push_back(copy);
            continue;
        }
        memset(copy.to, 0, 16);
        memcpy(copy.to, copy.from, copy.num_bytes);
    }
    own.copies = under_way;
}

inline uint4 read_shared(uint32_t address) {
    uint4 value;
    memcpy(&value, emulated::all_memory + address, 16);
    return value;
}

inline void write_shared(uint32_t address, uint4 value) { memcpy(emulated::all_memory + address, &value, 16); }

inline void write_shared(uint32_t address, uint32_t value) { memcpy(emulated::all_memory + address, &value, 4); }

inline uint64_t evict_first_policy() { return 0; }
inline uint64_t evict_last_policy() { return 0; }

// A barrier that counts arrivals and bytes; a phase ends when none of either is owed.
struct Counter {
    int32_t bytes;
    int16_t arrivals;
    uint16_t num_arrivals : 15, phase : 1;

    void settle() {
        if (arrivals == 0 && bytes == 0) phase ^= 1, arrivals = num_arrivals;
    }
};
static_assert(sizeof(Counter) == 8);
inline Counter& counter(uint32_t barrier) { return *reinterpret_cast<Counter*>(emulated::all_memory + barrier); }

inline void barrier_init(uint32_t barrier, int num_arrivals) {
    counter(barrier) = {0, static_cast<int16_t>(num_arrivals), static_cast<uint16_t>(num_arrivals), 0};
}
inline void barrier_init_fence() {}
inline void barrier_arrive(uint32_t barrier) { counter(barrier).arrivals--, counter(barrier).settle(); }
inline void barrier_arrive_expecting(uint32_t barrier, uint32_t num_bytes) {
    counter(barrier).bytes += num_bytes, barrier_arrive(barrier);
}
inline void barrier_complete(uint32_t barrier, uint32_t num_bytes) {
    counter(barrier).bytes -= num_bytes, counter(barrier).settle();
}
inline void barrier_arrive_when_copied(uint32_t barrier) {
    emulated::under_way.push_back([barrier, copies = emulated::own_fiber().copies] {
        for (const emulated::Copy& copy : copies) memcpy(copy.to, copy.from, copy.num_bytes);
        barrier_arrive(barrier);
    });
    emulated::own_fiber().copies.clear();
}
inline void copy_bulk(uint32_t to, const void* from, uint32_t num_bytes, uint32_t barrier, uint64_t) {
    memset(emulated::all_memory + to, 255, num_bytes);
    emulated::under_way.push_back([=] {
        memcpy(emulated::all_memory + to, from, num_bytes);
        barrier_complete(barrier, num_bytes);
    });
}
inline void barrier_wait(uint32_t barrier, uint32_t phase) {
    while (counter(barrier).phase == phase) emulated::let_others_run();
}

}  // namespace headrace
