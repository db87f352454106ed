// The ring of a wide product: stages of the weight's rows and of x, which one thread of each block of a cluster keeps
// filled, for the others, too.
//
// A cluster's blocks have the same rows of the weight, TOKEN_BLOCKS of them other tokens, SPLITS other columns. Those with
// the same columns need the same pieces of the weight: each asks for an equal share, and the copy engine gives it to all.
//
// Macros: TILE, GROUPS, TOKEN_BLOCKS, SPLITS; HEAD_DIM of panels.cuh.
#pragma once

#include "cluster.cuh"
#include "panels.cuh"
#include "tensor_copy.cuh"

namespace headrace {

constexpr int GROUP_TOKENS = 64, TOKENS = GROUPS * GROUP_TOKENS, STEP_COLUMNS = HEAD_DIM;
constexpr int CONSUMERS = GROUPS * 4 * WARP;
constexpr int X_BYTES = TOKENS * PANEL_BYTES, STAGE_BYTES = X_BYTES + TILE * PANEL_BYTES;
constexpr int WEIGHT_SHARE = TILE / TOKEN_BLOCKS;  // rows
constexpr int CLUSTER = TOKEN_BLOCKS * SPLITS;
static_assert(PANEL_BYTES == 128 && WEIGHT_SHARE % 8 == 0 && CLUSTER <= 8);

// A block's place in its cluster.
struct Place {
    int tokens, split;

    __device__ __forceinline__ explicit Place(int rank) : tokens(rank % TOKEN_BLOCKS), split(rank / TOKEN_BLOCKS) {}
    // The first of the blocks that share the weight's pieces and fill each other's rings.
    __device__ __forceinline__ int first() const { return split * TOKEN_BLOCKS; }
    __device__ __forceinline__ int mask() const { return ((1 << TOKEN_BLOCKS) - 1) << first(); }
};

struct Ring {
    uint32_t full, empty, stages;  // shared addresses, the same in all blocks
    int num_stages, x_rows;        // rows of x that come, and behind which whatever was there before lies

    __device__ __forceinline__ uint32_t x(int stage) const { return stages + stage * STAGE_BYTES; }
    __device__ __forceinline__ uint32_t weight(int stage) const { return x(stage) + X_BYTES; }
};

// What a launch's clusters walk over: tiles of the weight's rows, and of tokens, as many of these as a cluster has blocks
// for. What is computed at the same time should be about as many rows of x as of the weight, which the second-level
// cache then has: of ``band`` tiles of tokens, all tiles of rows are computed before the next ones.
struct Order {
    int num_steps, num_tiles, num_token_tiles, band;
};

// Where the block is on its way: at tiles, in each at its share of the steps over the columns.
struct Way {
    Order order;
    Place at;
    int first_step, last_step, place;
    int tile = 0, tokens = 0, step;  // of the weight's rows, and of x's, by TILE and x_rows

    __device__ __forceinline__ Way(const Order& order, const Place& at) : order(order), at(at) {
        first_step = at.split * order.num_steps / SPLITS, last_step = (at.split + 1) * order.num_steps / SPLITS;
        place = blockIdx.x / CLUSTER, step = first_step;
        look_up();
    }
    __device__ __forceinline__ bool ended() const { return place >= order.num_tiles * order.num_token_tiles; }
    __device__ __forceinline__ void next() {
        if (++step == last_step) next_tile();
    }
    __device__ __forceinline__ void next_tile() {
        place += gridDim.x / CLUSTER, step = first_step;
        look_up();
    }
    __device__ __forceinline__ void look_up() {
        tile = place, tokens = at.tokens;
        if (order.num_token_tiles == 1 || ended()) return;
        const int first = place / (order.band * order.num_tiles) * order.band;
        const int inner = place - first * order.num_tiles, height = min(order.band, order.num_token_tiles - first);
        tile = inner / height, tokens = (first + inner % height) * TOKEN_BLOCKS + at.tokens;
    }
};

__device__ __forceinline__ void copy_weight(const Ring& ring, int stage, const TensorMap& weight, const Way& way,
                                            uint64_t policy) {
    const int share = way.at.tokens * WEIGHT_SHARE;
    const uint32_t to = ring.weight(stage) + share * PANEL_BYTES, full = ring.full + stage * 8;
    const int row = way.tile * TILE + share, column = way.step * STEP_COLUMNS;
    barrier_arrive_expecting(full, (ring.x_rows + TILE) * PANEL_BYTES);
    if constexpr (TOKEN_BLOCKS == 1) copy_box(to, weight, row, column, full, policy);
    else copy_box_to_all(to, weight, row, column, full, policy, way.at.mask());
}

__device__ __forceinline__ void copy_x(const Ring& ring, int stage, const TensorMap& x, const Way& way,
                                       uint64_t policy) {
    const int row = way.tokens * ring.x_rows, column = way.step * STEP_COLUMNS;
    copy_box(ring.x(stage), x, row, column, ring.full + stage * 8, policy);
}

// Fills the ring, from the first tile's first step to the last tile's last one: one thread's work. The weight's first
// pieces, which no kernel writes, are asked for before earlier kernels have ended.
__device__ __forceinline__ void produce(const Ring& ring, const TensorMap& weight, const TensorMap& x, Way way) {
    const uint64_t again = evict_last_policy(), once = evict_first_policy();
    const uint64_t weight_policy = way.order.num_token_tiles > 1 ? again : once;
    Way x_way = way;
    for (int stage = 0; stage < ring.num_stages && !way.ended(); stage++, way.next())
        copy_weight(ring, stage, weight, way, weight_policy);
    wait_for_earlier_kernels();
    for (int stage = 0; stage < ring.num_stages && !x_way.ended(); stage++, x_way.next())
        copy_x(ring, stage, x, x_way, again);
    for (int stage = 0, phase = 0; !way.ended(); way.next()) {
        barrier_wait(ring.empty + stage * 8, phase);
        copy_weight(ring, stage, weight, way, weight_policy);
        copy_x(ring, stage, x, way, again);
        if (++stage == ring.num_stages) stage = 0, phase ^= 1;
    }
}

}  // namespace headrace
