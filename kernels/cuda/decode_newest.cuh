// A row's newest token on its way from the product of queries, keys and values straight into attention: each block
// norms and rotates the query heads that it needs, and the block whose piece ends the row the newest key, too, which
// goes into the pages for steps to come and into the tile for this one.
#pragma once

#include "decode_walk.cuh"
#include "rotary.cuh"

namespace headrace {

constexpr int NEWEST_PITCH = HEAD_DIM + 16 / sizeof(DTYPE);  // equal columns of neighbouring rows in different banks

struct NewestArgs {
    DTYPE *keys, *values;  // pages, to be written
    const float *cosines, *sines;
    const DTYPE *query_norm, *key_norm;
    float eps;
};

// In shared memory.
struct alignas(16) Newest {
    DTYPE query[GROUP][NEWEST_PITCH];
    DTYPE key_value[2][NEWEST_PITCH];

    // By a warp, into its tile of keys and values in shared memory, whose row for it is empty.
    __device__ __forceinline__ void join(unsigned char* tile, int row) const {
        constexpr int CHUNKS = ROW_BYTES / 16;
        for (int i = threadIdx.x % WARP; i < 2 * CHUNKS; i += WARP) {
            const int side = i / CHUNKS, column = (i - side * CHUNKS) * 16;
            *reinterpret_cast<uint4*>(tile + side * TILE_BYTES + row * PITCH + swizzled(row, column)) =
                *reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(key_value[side]) + column);
        }
        __syncwarp();
    }
};

// A piece's heads over the block's threads: query heads, and if the piece ends its row, the newest key and value.
// Constructed, it has on its way all that does not depend on the kernel before this one.
struct NewestHeads {
    static constexpr int GROUPS = THREADS / LANES, ROUNDS = (GROUP + 2 + GROUPS - 1) / GROUPS;

#if ROTARY_DIM
    float cosine[VEC], sine[VEC];
#endif
#if NORMED
    HeadPart<DTYPE> weight[ROUNDS];
#endif
    long long place;  // the newest token's, in the pages

    static __device__ __forceinline__ int side(int round) {  // below 0: a query; 0: the key; 1: the value
        return round * GROUPS + static_cast<int>(threadIdx.x) / LANES - GROUP;
    }
    static __device__ __forceinline__ bool wanted(const Pairs& pairs, const Walk& walk, int round) {
        return side(round) < (walk.end * TILE_KEYS >= walk.length ? 2 : 0) && pairs.held;
    }

    __device__ __forceinline__ NewestHeads(const Args& args, const NewestArgs& more, const Walk& walk) {
        if (walk.left == 0) return;
        const Pairs pairs(threadIdx.x % LANES);
#if ROTARY_DIM
        if (pairs.rotates) {
            const long long at = static_cast<long long>(walk.row) * HALF + threadIdx.x % LANES * VEC;
#pragma unroll
            for (int e = 0; e < VEC; e++) cosine[e] = more.cosines[at + e], sine[e] = more.sines[at + e];
        }
#endif
        place = 0;
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            if (!wanted(pairs, walk, round)) continue;
#if NORMED
            if (side(round) < 1) weight[round].read(side(round) < 0 ? more.query_norm : more.key_norm, pairs);
#endif
            if (side(round) >= 0) {
                const int position = walk.length - 1, page_size = args.page_tiles * TILE_KEYS;
                const int page = position / page_size;
                place = args.page_table[static_cast<long long>(walk.row) * args.max_pages + page] * args.page_stride +
                        walk.head * args.head_stride + (position - page * page_size) * HEAD_DIM;
            }
        }
    }

    // By all threads; what they read of ``newest`` before must be read, and they meet before they read what this writes.
    __device__ __forceinline__ void make(Newest& newest, const Args& args, const NewestArgs& more, const Walk& walk) {
        const Pairs pairs(threadIdx.x % LANES);
        const DTYPE* row = args.query + walk.row * args.query_stride;
        HeadPart<DTYPE> parts[ROUNDS];
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const int head = side(round) < 0 ? walk.head * GROUP + side(round) + GROUP
                                             : args.num_kv_heads * (GROUP + side(round)) + walk.head;
            parts[round] = HeadPart<DTYPE>{};
            if (wanted(pairs, walk, round)) parts[round].read(row + head * HEAD_DIM, pairs);
        }
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            float value[2 * VEC];
#pragma unroll
            for (int e = 0; e < 2 * VEC; e++) value[e] = parts[round].get(e);
#if NORMED
            float squares[1] = {};
#pragma unroll
            for (int e = 0; e < 2 * VEC; e++) squares[0] += value[e] * value[e];
            warp_reduce<Sum, 1, LANES>(squares);
            if (side(round) < 1) {
                const float scale = rsqrtf(squares[0] / HEAD_DIM + more.eps);
#pragma unroll
                for (int e = 0; e < 2 * VEC; e++) value[e] *= scale * weight[round].get(e);
            }
#endif
#if ROTARY_DIM
            if (pairs.rotates && side(round) < 1) rotate(value, cosine, sine);
#endif
            if (!wanted(pairs, walk, round)) continue;
            if (side(round) < 0) {
                write<DTYPE>(newest.query[side(round) + GROUP], value, pairs);
            } else {
                write<DTYPE>(newest.key_value[side(round)], value, pairs);
                write<DTYPE>((side(round) ? more.values : more.keys) + place, value, pairs);
            }
        }
    }
};

}  // namespace headrace
