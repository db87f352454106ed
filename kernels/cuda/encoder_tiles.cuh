// How the queries, keys and values of one head come from the product that made them into shared memory.
//
// A token's three lie in one row of that product, its heads behind each other: no kernel splits it, and nothing is
// copied but what a block needs. The product's bias is added here. That of the keys is left out: it adds the same to
// all scores of a query, which the softmax does not see. That of the values is added to their weighted sum instead, for
// the weights' sum is 1.
//
// A head has HEAD_SIZE numbers, and zeros behind them up to HEAD_DIM, which products can be made of.
#pragma once

#include "head_tiles.cuh"

namespace headrace {

constexpr int REAL_CHUNKS = HEAD_SIZE * sizeof(DTYPE) / 16;
static_assert(HEAD_SIZE <= HEAD_DIM && HEAD_SIZE * sizeof(DTYPE) % 16 == 0);

// What a block computes: BLOCK_ROWS of a row's queries, of one head.
struct Item {
    int first_token, length;  // the row's
    int first_query, head;
    int width;  // of all heads

    // Elements from a token's queries, keys or values (0, 1, 2) to the product's first element.
    __device__ __forceinline__ long long offset(int token, int which) const {
        return static_cast<long long>(first_token + token) * 3 * width + which * width + head * HEAD_SIZE;
    }
    __device__ __forceinline__ int num_queries() const { return min(BLOCK_ROWS, length - first_query); }
    __device__ __forceinline__ int num_tiles() const { return (length + BLOCK_KEYS - 1) / BLOCK_KEYS; }
};

// Keys that are none become zeros: what lies there may be no number, and a weight of 0 would not help.
__device__ __forceinline__ void copy_tile(const DTYPE* qkv, const Item& item, int tile, uint32_t to) {
    constexpr int SHARE = BLOCK_KEYS * CHUNKS, EACH = (SHARE + THREADS - 1) / THREADS;
    const int first_key = tile * BLOCK_KEYS, num_keys = item.length - first_key;
    const DTYPE *keys = qkv + item.offset(first_key, 1), *values = keys + item.width;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int chunk = i * THREADS + threadIdx.x, key = chunk / CHUNKS, column = (chunk - key * CHUNKS) * 16;
        if (SHARE % THREADS && chunk >= SHARE) break;
        const bool wanted = key < num_keys && column < REAL_CHUNKS * 16;
        const long long from = wanted ? static_cast<long long>(key) * 3 * item.width + column / sizeof(DTYPE) : 0;
        const uint32_t target = to + place_in_tile<BLOCK_KEYS>(key, column);
        copy_16_bytes(target, keys + from, wanted ? 16 : 0);
        copy_16_bytes(target + TILE_BYTES, values + from, wanted ? 16 : 0);
    }
    commit_copies();
}

// Queries and their bias; those that are none become zeros.
__device__ __forceinline__ void load_queries(const DTYPE* qkv, const DTYPE* bias, const Item& item,
                                             unsigned char* to) {
    constexpr int SHARE = BLOCK_ROWS * CHUNKS, EACH = SHARE / THREADS, N = FULL<DTYPE>;
    static_assert(SHARE % THREADS == 0);
    const DTYPE* queries = qkv + item.offset(item.first_query, 0);
    const int num_queries = item.num_queries();
    Vec<DTYPE, N> held[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int chunk = i * THREADS + threadIdx.x, row = chunk / CHUNKS, column = (chunk - row * CHUNKS) * N;
        held[i] = Vec<DTYPE, N>{};
        if (row < num_queries && column < HEAD_SIZE)
            held[i] = load<DTYPE, N>(queries + static_cast<long long>(row) * 3 * item.width + column);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int chunk = i * THREADS + threadIdx.x, row = chunk / CHUNKS, column = (chunk - row * CHUNKS) * N;
        if (bias && column < HEAD_SIZE) {
            const Vec<DTYPE, N> added = load<DTYPE, N>(bias + item.head * HEAD_SIZE + column);
            float sum[N];
#pragma unroll
            for (int e = 0; e < N; e++) sum[e] = held[i].get(e) + added.get(e);
            held[i] = pack<DTYPE, N>(sum);
        }
        store<DTYPE, N>(reinterpret_cast<DTYPE*>(to + place_in_tile<BLOCK_ROWS>(row, column * sizeof(DTYPE))), held[i]);
    }
}

}  // namespace headrace
