// kernels/cuda/tensor_copy.cuh for fibers; a map's encoding is the one of ``Map`` here.
#pragma once

#include "cluster.cuh"

namespace headrace {

struct TensorMap {
    uint64_t encoded[16];
};
struct Map {
    const unsigned char* from;
    long long rows, columns, pitch_bytes, box_rows;
};

inline void prefetch_map(const TensorMap&) {}

// Boxes are 128 bytes wide; the engine exchanges an address's bits 4 to 6 by bits 7 to 9.
inline void copy_box(uint32_t to, const TensorMap& map, int row, int column, uint32_t barrier, uint64_t = 0) {
    Map at;
    memcpy(&at, map.encoded, sizeof(at));
    memset(emulated::all_memory + to, 255, at.box_rows * 128);
    emulated::under_way.push_back([=] {
        for (long long r = 0; r < at.box_rows; r++)
            for (long long c = 0; c < 64; c++) {
                const uint32_t address = to + r * 128 + c * 2;
                const bool within = row + r < at.rows && column + c < at.columns;
                const unsigned char* from = at.from + (row + r) * at.pitch_bytes + (column + c) * 2;
                uint16_t number = 0;
                if (within) memcpy(&number, from, 2);
                memcpy(emulated::all_memory + (address ^ (address >> 7 & 7) << 4), &number, 2);
            }
        barrier_complete(barrier, at.box_rows * 128);
    });
}

// The blocks get it at different times.
inline void copy_box_to_all(uint32_t to, const TensorMap& map, int row, int column, uint32_t barrier, uint64_t policy,
                            int mask) {
    for (int rank = 0; mask >> rank; rank++)
        if (mask >> rank & 1)
            copy_box(to + distance_to(rank), map, row, column, barrier + distance_to(rank), policy);
}

}  // namespace headrace
