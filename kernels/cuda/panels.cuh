// Rows of one head's numbers in shared memory as Hopper's products of four warps read them: in panels, one behind the
// other, whose rows are the most of 128, 64 and 32 bytes that divides a head's.
//
// The hardware exchanges bits 4 to 6 of an address (4 to 5, 4) by bits 7 to 9 (7 to 8, 7): a panel begins at a multiple
// of 1024 (512, 256) bytes.
#pragma once

#include "head_rows.cuh"

namespace headrace {

constexpr int PANEL_BYTES = ROW_BYTES % 128 == 0 ? 128 : ROW_BYTES % 64 == 0 ? 64 : 32;  // a row's

// Where a row's 16 bytes from ``column`` on lie in the panel's row; columns in bytes.
__device__ __forceinline__ int swizzled_in_panel(int row, int column) {
    return column ^ row / (128 / PANEL_BYTES) % (PANEL_BYTES / 16) * 16;
}

}  // namespace headrace
