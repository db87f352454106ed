// kernels/cuda/copy_async.cuh for fibers; shared addresses count from the block's memory.
#pragma once

#include "common.cuh"

namespace headrace {

inline uint32_t shared_address(const void* pointer) {
    return static_cast<const unsigned char*>(pointer) - emulated::memory;
}

inline void copy_16_bytes(uint32_t to, const void* from, int num_bytes) {
    memset(emulated::memory + to, 255, 16);
    emulated::Fiber& own = emulated::own_fiber();
    own.copies.push_back({emulated::memory + to, from, num_bytes, own.num_groups});
}

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

}  // namespace headrace
