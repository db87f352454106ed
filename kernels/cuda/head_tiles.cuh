// Tiles of one head's rows in shared memory: BLOCK_ROWS of queries, BLOCK_KEYS of keys, and as many of values.
#pragma once

#include "copy_async.cuh"
#include "head_rows.cuh"
#include "warpgroup.cuh"

namespace headrace {

constexpr int THREADS = WARPS * WARP;
constexpr int TILE_PITCH = WARPGROUPS ? ROW_BYTES : PITCH;
constexpr int TILE_BYTES = BLOCK_KEYS * TILE_PITCH, QUERY_BYTES = BLOCK_ROWS * TILE_PITCH;
constexpr int CHUNKS = ROW_BYTES / 16;  // of a row

// Where a row's 16 bytes from ``column`` on lie in a tile of NUM_ROWS: in a whole row, or in panels for warpgroups.
template <int NUM_ROWS>
__device__ __forceinline__ int place_in_tile(int row, int column) {
    if (WARPGROUPS)
        return column / PANEL_BYTES * NUM_ROWS * PANEL_BYTES + row * PANEL_BYTES +
               swizzled_in_panel(row, column % PANEL_BYTES);
    return row * PITCH + swizzled(row, column);
}

}  // namespace headrace
