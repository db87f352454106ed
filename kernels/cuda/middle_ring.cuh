// The ring of a middle product: stages of the weight's rows and of x, which one thread keeps filled.
//
// Macros: TILE, SPLITS; HEAD_DIM of panels.cuh.
#pragma once

#include "panels.cuh"
#include "tensor_copy.cuh"

namespace headrace {

constexpr int STEP_COLUMNS = HEAD_DIM;

struct Ring {
    uint32_t full, empty, stages;  // shared addresses
    int num_stages, x_bytes, stage_bytes;

    __device__ __forceinline__ uint32_t x(int stage) const { return stages + stage * stage_bytes; }
    __device__ __forceinline__ uint32_t weight(int stage) const { return x(stage) + x_bytes; }
};

// Where the block is on its way: tiles of the weight's rows, in each its share of the steps over the columns.
struct Way {
    int first_step, last_step, stride, num_tiles;
    int tile, step;

    __device__ __forceinline__ Way(int num_steps, int num_tiles, int rank) : num_tiles(num_tiles) {
        first_step = rank * num_steps / SPLITS, last_step = (rank + 1) * num_steps / SPLITS;
        tile = blockIdx.x / SPLITS, stride = gridDim.x / SPLITS, step = first_step;
    }
    __device__ __forceinline__ bool ended() const { return tile >= num_tiles; }
    __device__ __forceinline__ void next() {
        if (++step == last_step) step = first_step, tile += stride;
    }
};

__device__ __forceinline__ void copy_weight(const Ring& ring, int stage, const TensorMap& weight, const Way& way,
                                            uint64_t policy) {
    barrier_arrive_expecting(ring.full + stage * 8, ring.stage_bytes);
    copy_box(ring.weight(stage), weight, way.tile * TILE, way.step * STEP_COLUMNS, ring.full + stage * 8, policy);
}

__device__ __forceinline__ void copy_x(const Ring& ring, int stage, const TensorMap& x, const Way& way,
                                       uint64_t policy) {
    copy_box(ring.x(stage), x, 0, way.step * STEP_COLUMNS, ring.full + stage * 8, policy);
}

// Fills the ring, from the first tile's first step to the last tile's last one: one thread's work.
__device__ __forceinline__ void produce(const Ring& ring, const TensorMap& weight, const TensorMap& x, Way way) {
    const uint64_t once = evict_first_policy(), again = evict_last_policy();
    Way x_way = way;
    for (int stage = 0; stage < ring.num_stages && !way.ended(); stage++, way.next())
        copy_weight(ring, stage, weight, way, once);
    wait_for_earlier_kernels();
    for (int stage = 0; stage < ring.num_stages && !x_way.ended(); stage++, x_way.next())
        copy_x(ring, stage, x, x_way, again);
    for (int stage = 0, phase = 0; !way.ended(); way.next()) {
        barrier_wait(ring.empty + stage * 8, phase);
        copy_weight(ring, stage, weight, way, once);
        copy_x(ring, stage, x, way, again);
        if (++stage == ring.num_stages) stage = 0, phase ^= 1;
    }
}

}  // namespace headrace
