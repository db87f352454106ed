// Copies of boxes of a matrix in global memory into shared memory, by the bulk copy engine of Hopper.
#pragma once

#include "copy_async.cuh"

namespace headrace {

// What the driver has encoded (tensor_map.py): where the matrix lies, how large it and a box are, and how a box lies in
// shared memory. A kernel gets it by value, as a __grid_constant__, behind 48 bytes (or these and multiples of 64) of
// other parameters: there it lies at a multiple of 64 bytes, as the engine wants it. Were its type aligned so, the
// compiler would move all parameters by 48 bytes, which one who launches by a packed buffer does not know.
struct TensorMap {
    uint64_t encoded[16];
};

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box that begins at (row, column); what it has beyond the matrix becomes zeros, and counts as bytes, too.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, int row, int column, uint32_t barrier,
                                         uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
        : "memory");
}

// The same for what may leave the second-level cache like anything else.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap& map, int row, int column, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// The same into the cluster's blocks that ``mask`` has a bit for, in each at the same addresses.
__device__ __forceinline__ void copy_box_to_all(uint32_t to, const TensorMap& map, int row, int column,
                                                uint32_t barrier, uint64_t policy, int mask) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
        ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<uint16_t>(mask)), "l"(policy)
        : "memory");
}

}  // namespace headrace
