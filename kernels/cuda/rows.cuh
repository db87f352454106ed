// Where a thread finds its part of a row.
//
// A row belongs to a warp or to a few lanes of one (short rows: no barrier at all), or to a block. A thread holds VECS
// vectors of VEC elements of ROWS rows.
//
// Macros: DTYPE, VEC, VECS, ROWS, WARP_A_ROW (0 or 1), ROW_LANES (a power of two; of a warp, those that share a row; 32),
// THREADS (of a block), EVEN (1: all threads hold as much, and they are a power of two).
#pragma once

#include "common.cuh"

#ifndef ROW_LANES
#define ROW_LANES 32
#endif

namespace headrace {

struct Place {
    int thread;       // in the row's team
    int team;         // threads that share a row
    int64_t row;      // first of the ROWS
    int num_vecs;     // of a row

    __device__ __forceinline__ Place(int width)
        : thread(WARP_A_ROW ? threadIdx.x % ROW_LANES : threadIdx.x),
          team(WARP_A_ROW ? ROW_LANES : THREADS),
          row((WARP_A_ROW ? int64_t(blockIdx.x) * (THREADS / ROW_LANES) + threadIdx.x / ROW_LANES : blockIdx.x) *
              int64_t(ROWS)),
          num_vecs(width / VEC) {}

    __device__ __forceinline__ int vec(int i) const { return thread + i * team; }

    // Whether the row has the thread's i-th vector.
    __device__ __forceinline__ bool holds(int i) const { return EVEN || vec(i) < num_vecs; }

    // Elements that a warp of the team holds, of a row in registers.
    __device__ __forceinline__ int held_by(int warp) const {
        int count = 0;
#pragma unroll
        for (int i = 0; i < VECS; i++) count += min(max(num_vecs - warp * WARP - i * team, 0), WARP);
        return count * VEC;
    }
};

}  // namespace headrace
