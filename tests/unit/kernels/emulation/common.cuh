// kernels/cuda/common.cuh for fibers: what attention, sampling and encoders' other kernels use of it.
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

template <typename T>
float rounded(float x) {
    return to_float(from_float<T>(x));
}

template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
    T at[N];

    float get(int i) const { return to_float(at[i]); }
    void set(int i, float x) { at[i] = from_float<T>(x); }
};
template <typename T, int N>
void store(T* address, const Vec<T, N>& value) {
    *reinterpret_cast<Vec<T, N>*>(address) = value;
}
template <typename T, int N>
Vec<T, N> pack(const float (&x)[N]) {
    Vec<T, N> packed;
    for (int i = 0; i < N; i++) packed.at[i] = from_float<T>(x[i]);
    return packed;
}
template <typename T>
constexpr int FULL = 16 / sizeof(T);
template <typename T, int N>
Vec<T, N> load(const T* address) {
    return *reinterpret_cast<const Vec<T, N>*>(address);
}

struct Sum {
    static constexpr float NEUTRAL = 0;
    static float of(float a, float b) { return a + b; }
};
struct Max {
    static constexpr float NEUTRAL = -INFINITY;
    static float of(float a, float b) { return fmaxf(a, b); }
};
template <typename Op, int X, int SPAN = WARP>
void warp_reduce(float (&value)[X]) {
    for (int distance = SPAN / 2; distance > 0; distance /= 2)
        for (float& own : value) own = Op::of(own, __shfl_xor_sync(ALL_LANES, own, distance));
}
template <typename Op, int X, int num_threads>
void block_reduce(float (&value)[X], float (*scratch)[WARP]) {
    warp_reduce<Op, X>(value);
    for (int i = 0; i < X; i++) scratch[i][threadIdx.x / WARP] = value[i];
    __syncthreads();
    for (int i = 0; i < X; i++) {
        value[i] = scratch[i][0];
        for (int warp = 1; warp < num_threads / WARP; warp++) value[i] = Op::of(value[i], scratch[i][warp]);
    }
}

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float exp2_roughly(float x) { return exp2f(x); }
inline float reciprocal_roughly(float x) { return 1 / x; }
inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_start() {}

}  // namespace headrace
