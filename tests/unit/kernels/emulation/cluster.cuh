// kernels/cuda/cluster.cuh for fibers: a block's shared addresses lie as far behind another's as their memory does.
#pragma once

#include "copy_async.cuh"

namespace headrace {

inline uint32_t cluster_rank() { return emulated::rank(); }

inline void tell_cluster() { emulated::num_told++, emulated::own_fiber().num_told++; }
inline void wait_for_cluster() {
    while (emulated::num_told < emulated::own_fiber().num_told * emulated::fibers.size()) emulated::let_others_run();
}

inline void meet_cluster() { emulated::meet(emulated::all_blocks, emulated::fibers.size()); }

// How far behind this block's memory another one's lies.
inline uint32_t distance_to(uint32_t rank) { return (rank - emulated::rank()) * emulated::MEMORY_BYTES; }

inline void barrier_arrive_at(uint32_t rank, uint32_t barrier) { barrier_arrive(barrier + distance_to(rank)); }

inline void send_shared(uint32_t rank, uint32_t to, uint32_t barrier, const float* four) {
    const uint32_t distance = distance_to(rank);
    const uint4 value = *reinterpret_cast<const uint4*>(four);
    emulated::under_way.push_back([=] {
        memcpy(emulated::all_memory + (to + distance), &value, 16);
        barrier_complete(barrier + distance, 16);
    });
}

}  // namespace headrace
