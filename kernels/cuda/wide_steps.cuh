// The steps of a wide product over the columns: a group of four warps multiplies what the ring has of each.
//
// Macros: DTYPE, and those of wide_ring.cuh.
#pragma once

#include "panel_step.cuh"
#include "wide_ring.cuh"

namespace headrace {

struct Steps {
    const Ring& ring;
    Place at;
    int warp, first_token;  // the same in all lanes
    int stage = 0, phase = 0, before = 0;

    __device__ __forceinline__ Steps(const Ring& ring, const Place& at) : ring(ring), at(at) {
        // The compiler cannot know it of a thread's number.
        warp = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0);
        first_token = warp / 4 * GROUP_TOKENS;
    }
    // Unless ADD, the step is a tile's first one.
    template <bool ADD>
    __device__ __forceinline__ void multiply(float (&sums)[TILE / 2]) {
        barrier_wait(ring.full + stage * 8, phase);
        const Matrix x = rows_matrix(ring.x(stage) + first_token * PANEL_BYTES);
        multiply_step<DTYPE, ADD, TILE>(sums, x, rows_matrix(ring.weight(stage)));
    }
    __device__ __forceinline__ void next() {
        before = stage;
        if (++stage == ring.num_stages) stage = 0, phase ^= 1;
    }
    // The step before is done with what it read.
    __device__ __forceinline__ void release() {
        const int lane = threadIdx.x % WARP;
        if (TOKEN_BLOCKS == 1 && lane == 0) barrier_arrive(ring.empty + before * 8);
        if (TOKEN_BLOCKS > 1 && lane < TOKEN_BLOCKS) barrier_arrive_at(at.first() + lane, ring.empty + before * 8);
    }
};

}  // namespace headrace
