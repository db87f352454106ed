// The ring of a thin product, which one warp keeps filled, and the block's way over the weight's rows.
//
// Blocks walk over whole tiles side by side. What is left at the end they share in one of two ways: row by row, less
// than a tile a block, or (DEALT) tile by tile, each to whichever block comes first. Some multiprocessors get a tenth more
// from memory than others, and the fast ones would wait for the slow ones; a counter in memory costs less where there
// are tiles enough. The counter comes to nought again with the last block, so that launches need not clear it: those
// with one counter must follow each other.
//
// Macros: DTYPE, TILE, PIECE, STAGES, DEALT.
#pragma once

#include "copy_async.cuh"
#include "common.cuh"

namespace headrace {

constexpr int PITCH = PIECE * 2 + 64;  // bytes
constexpr int STAGE_BYTES = TILE * PITCH;

struct Tile {
    int row, num_rows;  // its first row; none behind the last tile
};

// The host has divided: a division would stand before the first copy.
struct Rows {
    int n, num_tiles;  // the weight's rows; whole tiles a block
    int last_rows;     // rows a block of what is left, at most, if they are not dealt
    unsigned* counter;
    unsigned last_ticket;

    // The block's tile of such a number; ``ticket`` counts where tiles are dealt.
    __device__ __forceinline__ Tile tile(int number, unsigned ticket = 0) const {
        if (number < num_tiles) return Tile{static_cast<int>(number * gridDim.x + blockIdx.x) * TILE, TILE};
        const int left = num_tiles * gridDim.x * TILE;
        if (DEALT) {
            const int row = left + ticket * TILE;
            return Tile{row, max(min(TILE, n - row), 0)};
        }
        const int row = left + blockIdx.x * last_rows;
        return Tile{row, number == num_tiles ? max(min(last_rows, n - row), 0) : 0};
    }
    // Launches before this one have taken all of theirs.
    __device__ __forceinline__ unsigned take() const {
        wait_for_earlier_kernels();
        return threadIdx.x % WARP == 0 ? atomicInc(counter, last_ticket) : 0;
    }
};

struct Ring {
    uint32_t full, empty, stages;  // shared addresses
    Tile* tiles;                   // [STAGES]: of the stages with which dealt tiles begin

    __device__ __forceinline__ Ring(unsigned char* memory, uint32_t stages)
        : full(shared_address(memory)), empty(full + STAGES * 8), stages(stages),
          tiles(reinterpret_cast<Tile*>(memory + 2 * STAGES * 8)) {}
    // The tile that begins with a stage, once it is there.
    __device__ __forceinline__ Tile tile(const Rows& rows, int number, int stage, int phase) const {
        if (!DEALT) return rows.tile(number);
        barrier_wait(full + stage * 8, phase);
        return tiles[stage];
    }
};

// Fills the ring, from the first tile's first piece to the last tile's last one.
__device__ __forceinline__ void produce(const Ring& ring, const DTYPE* weight, const Rows& rows, int k,
                                        long long weight_stride) {
    const int lane = threadIdx.x % WARP;
    const uint64_t policy = evict_first_policy();
    int stage = 0, phase = 1;
    unsigned ticket = DEALT && rows.num_tiles == 0 ? rows.take() : 0;
    for (int number = 0;; number++) {
        const Tile tile = rows.tile(number, DEALT ? __shfl_sync(ALL_LANES, ticket, 0) : 0);
        if (!DEALT && tile.num_rows == 0) return;
        // Asked for a tile ahead: the answer comes as late as a piece of the weight.
        if (DEALT && tile.num_rows > 0 && number + 1 >= rows.num_tiles) ticket = rows.take();
        const DTYPE* from = weight + static_cast<long long>(tile.row + lane) * weight_stride;
        for (int column = 0; column < k; column += PIECE) {
            const uint32_t num_bytes = min(PIECE, k - column) * 2;
            barrier_wait(ring.empty + stage * 8, phase);
            if (lane == 0) {
                if (DEALT && column == 0) ring.tiles[stage] = tile;
                barrier_arrive_expecting(ring.full + stage * 8, tile.num_rows * num_bytes);
            }
            __syncwarp();
            if (tile.num_rows == 0) return;
            if (lane < tile.num_rows)
                copy_bulk(ring.stages + stage * STAGE_BYTES + lane * PITCH, from + column, num_bytes,
                          ring.full + stage * 8, policy);
            if (++stage == STAGES) stage = 0, phase ^= 1;
        }
    }
}

}  // namespace headrace
