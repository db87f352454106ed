// Rows of one head's numbers in shared memory, in an order in which eight rows' equal columns are read at once.
#pragma once

#include "common.cuh"

namespace headrace {

constexpr int ROW_BYTES = HEAD_DIM * sizeof(DTYPE);
// Eight rows' equal columns are served together and must lie in different banks. Rows of a multiple of 128 bytes are
// swizzled; others are one 16-byte group longer, which makes their own number of groups odd.
constexpr bool SWIZZLED = ROW_BYTES % 128 == 0;
constexpr int PITCH = SWIZZLED ? ROW_BYTES : ROW_BYTES + 16;

// Where a row's 16 bytes from ``column`` on lie in the row; columns in bytes.
__device__ __forceinline__ int swizzled(int row, int column) { return SWIZZLED ? column ^ (row % 8 * 16) : column; }

}  // namespace headrace
