// kernels/cuda/common.cuh for fibers: what attention uses of it.
#pragma once

#include "emulated.h"

struct __nv_bfloat16 {
    uint16_t bits;
};
using __half = _Float16;

namespace headrace {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

inline int thread_index() { return threadIdx.x; }

inline float to_float(float x) { return x; }
inline float to_float(__half x) { return x; }
inline float to_float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

template <typename T>
T from_float(float x) {
    return x;
}
template <>
inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    // To the nearest, ties to even.
    return {static_cast<uint16_t>(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff)};
}

inline float exp2_roughly(float x) { return exp2f(x); }
inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_start() {}

}  // namespace headrace
