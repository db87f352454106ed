// How the blocks of a cluster that share a product's columns add their sums up: through each other's shared memory, in
// the blocks' order, so that a result does not depend on timing.
//
// Macros: TILE, SPLITS; SPACING (blocks of the cluster from one that shares the columns to the next one; 1).
#pragma once

#include "cluster.cuh"
#include "common.cuh"
#include "copy_async.cuh"

#ifndef SPACING
#define SPACING 1
#endif

namespace headrace {

constexpr int EIGHTS = TILE / 8;  // of a tile's rows
constexpr int FOURS = (EIGHTS + 3) / 4;

// Where the other blocks put their sums of those of the tile's rows that this block ends: every SPLITS-th time 32 rows.
// Of each block that sends, as many vectors as there are threads with tokens for every eight rows.
struct Meeting {
    static constexpr int OWN_EIGHTS = (FOURS + SPLITS - 1) / SPLITS * 4;

    uint32_t arrived, sums;    // shared addresses, the same in all blocks
    int threads, rank, first;  // threads with tokens; which share it is; the first share's block of the cluster

    // Before anything can come; by one thread.
    __device__ __forceinline__ void expect() const {
        int eighths = 0;
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) eighths += i / 4 % SPLITS == rank;
        barrier_arrive_expecting(arrived, eighths * (SPLITS - 1) * threads * 16);
    }
    __device__ __forceinline__ uint32_t place(int sender, int receiver, int eighth) const {
        const int own = eighth / (4 * SPLITS) * 4 + eighth % 4, turn = sender < receiver ? sender : sender - 1;
        return sums + ((turn * OWN_EIGHTS + own) * threads + thread_index()) * 16;
    }
    __device__ __forceinline__ void send(const float (&own)[TILE / 2]) const {
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) {
            const int receiver = i / 4 % SPLITS;
            if (receiver != rank)
                send_shared(first + receiver * SPACING, place(rank, receiver, i), arrived, own + 4 * i);
        }
    }
    __device__ __forceinline__ void add(float (&total)[4], const float* own, int eighth) const {
#pragma unroll
        for (int sender = 0; sender < SPLITS; sender++) {
            uint4 part = make_uint4(__float_as_uint(own[0]), __float_as_uint(own[1]), __float_as_uint(own[2]),
                                    __float_as_uint(own[3]));
            if (sender != rank) part = read_shared(place(sender, rank, eighth));
            total[0] += __uint_as_float(part.x), total[1] += __uint_as_float(part.y);
            total[2] += __uint_as_float(part.z), total[3] += __uint_as_float(part.w);
        }
    }
};

}  // namespace headrace
