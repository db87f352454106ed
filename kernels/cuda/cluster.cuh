// Blocks that run side by side and write into each other's shared memory (sm_90).
#pragma once

#include <stdint.h>

namespace headrace {

// The block's number within its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Tells the cluster's blocks that this one has come so far: when it has begun, its barriers, initialised before and
// followed by barrier_init_fence, may be used from now on. Every thread calls it, and then waits.
__device__ __forceinline__ void tell_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// Until all of the cluster's threads have told so.
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// Until all of the cluster's threads have come here, and what they have written is there. Every warp comes as a whole.
__device__ __forceinline__ void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// An arrival at a barrier of one of the cluster's blocks, this one among them.
__device__ __forceinline__ void barrier_arrive_at(uint32_t rank, uint32_t barrier) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// Writes 16 bytes into another block's shared memory, where this block has ``to`` and ``barrier`` lie at the same
// addresses; the barrier there expects them.
__device__ __forceinline__ void send_shared(uint32_t rank, uint32_t to, uint32_t barrier, const float* four) {
    asm volatile(
        "{\n.reg .b32 there, told;\nmapa.shared::cluster.u32 there, %0, %2;\nmapa.shared::cluster.u32 told, %1, %2;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [there], {%3, %4, %5, %6}, [told];\n}\n" ::"r"(
            to),
        "r"(barrier), "r"(rank), "f"(four[0]), "f"(four[1]), "f"(four[2]), "f"(four[3])
        : "memory");
}

}  // namespace headrace
