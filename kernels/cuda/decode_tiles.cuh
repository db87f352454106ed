// Which keys a decoding row sees, in tiles of 16.
#pragma once

#include "common.cuh"

namespace headrace {

constexpr int TILE_KEYS = 16;

struct Tiles {
    int begin, end;  // begin == end for a row of length 0

    __device__ __forceinline__ int units(int unit_tiles) const { return (end - begin + unit_tiles - 1) / unit_tiles; }
};

// ``window`` keys at the row's end, or all for 0.
__device__ __forceinline__ Tiles tiles_seen(int length, int window) {
    return {window > 0 ? max(length - window, 0) / TILE_KEYS : 0, (length + TILE_KEYS - 1) / TILE_KEYS};
}

}  // namespace headrace
