// What kernels share: element types, 16-byte vectors, batch reductions, dependent launch.
//
// Everything is computed in fp32; memory holds float, __half or __nv_bfloat16. A source is specialised by macros
// (build.py) and instantiated once, in an extern "C" kernel at its foot. Wrappers have checked all arguments.
//
// The reductions are TurboTransformers' batch reduction [1]: X values are reduced together, so that the latency of one
// value's shuffle hides behind the others', and X sums share one exchange through shared memory and one barrier.
//
// [1] J. Fang, Y. Yu, C. Zhao, J. Zhou. TurboTransformers: an efficient GPU serving system for transformer models.
//     PPoPP 2021, section 4.1 (arXiv:2010.05680).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include <type_traits>

namespace headrace {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// threadIdx.x, read anew: what follows from it is not kept in registers until here.
__device__ __forceinline__ int thread_index() {
    unsigned index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    __builtin_assume(index < 1024);
    return index;
}

// ---- element types ---------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// The value as memory will hold it: what torch's own operation would read back.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
    return to_float(from_float<T>(x));
}

// ---- vectors ---------------------------------------------------------------------------------------------------

// N elements that move by one instruction; N * sizeof(T) is 2, 4, 8 or 16, and addresses are multiples of that.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
    T at[N];

    // By words: of 16-bit elements, the compiler would take each out of its word before it widens it.
    __device__ __forceinline__ float get(int i) const {
        if constexpr (std::is_same_v<T, __nv_bfloat16> && N > 1) {
            const uint32_t word = reinterpret_cast<const uint32_t*>(at)[i / 2];
            return __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
        } else if constexpr (std::is_same_v<T, __half> && N > 1) {
            const __half2 word = reinterpret_cast<const __half2*>(at)[i / 2];
            return i % 2 ? __high2float(word) : __low2float(word);
        } else {
            return to_float(at[i]);
        }
    }
    __device__ __forceinline__ void set(int i, float x) { at[i] = from_float<T>(x); }
};

// Round N values; 16-bit ones in pairs, for which the hardware has one instruction.
template <typename T, int N>
__device__ __forceinline__ Vec<T, N> pack(const float (&x)[N]) {
    Vec<T, N> packed;
    if constexpr (sizeof(T) == 2 && N > 1) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            if constexpr (std::is_same_v<T, __half>)
                reinterpret_cast<__half2&>(packed.at[i]) = __floats2half2_rn(x[i], x[i + 1]);
            else
                reinterpret_cast<__nv_bfloat162&>(packed.at[i]) = __floats2bfloat162_rn(x[i], x[i + 1]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) packed.set(i, x[i]);
    }
    return packed;
}

// Change all signs.
template <typename T, int N>
__device__ __forceinline__ void negate(Vec<T, N>& of) {
#pragma unroll
    for (int i = 0; i < N; i++) of.at[i] = -of.at[i];
}

// Elements in 16 bytes.
template <typename T>
constexpr int FULL = 16 / sizeof(T);

template <int BYTES>
struct Word;
template <>
struct Word<1> {
    using type = unsigned char;
};
template <>
struct Word<2> {
    using type = unsigned short;
};
template <>
struct Word<4> {
    using type = unsigned int;
};
template <>
struct Word<8> {
    using type = uint2;
};
template <>
struct Word<16> {
    using type = uint4;
};

template <typename T, int N>
__device__ __forceinline__ Vec<T, N> load(const T* address) {
    return *reinterpret_cast<const Vec<T, N>*>(address);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* address, const Vec<T, N>& value) {
    *reinterpret_cast<Vec<T, N>*>(address) = value;
}

// n / d for n below 2^31 by one multiplication: factor = ceil(2^(31 + bits) / d), bits = ceil(log2 d).
struct Divisor {
    uint32_t factor;
    int shift;  // 31 + bits

    __device__ __forceinline__ int of(int n) const {
        return static_cast<int>(uint64_t(static_cast<uint32_t>(n)) * factor >> shift);
    }
};

// ---- the hardware's own approximations ---------------------------------------------------------------------------

// 2^x and 1 / x, relative error 2^-22; results below 2^-126 become 0, which spares the instructions for them.
__device__ __forceinline__ float exp2_roughly(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_roughly(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- reductions ------------------------------------------------------------------------------------------------

struct Sum {
    static constexpr float NEUTRAL = 0.f;
    static __device__ __forceinline__ float of(float a, float b) { return a + b; }
};
struct Max {
    static constexpr float NEUTRAL = -INFINITY;
    static __device__ __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

// Every lane of a group of SPAN neighbours ends with the group's X results.
template <typename Op, int X, int SPAN = WARP>
__device__ __forceinline__ void warp_reduce(float (&value)[X]) {
#pragma unroll
    for (int distance = SPAN / 2; distance > 0; distance /= 2) {
        float other[X];
#pragma unroll
        for (int i = 0; i < X; i++) other[i] = __shfl_xor_sync(ALL_LANES, value[i], distance);
#pragma unroll
        for (int i = 0; i < X; i++) value[i] = Op::of(value[i], other[i]);
    }
}

// The least power of two that is not less.
__host__ __device__ constexpr int power_of_two(int count) { return count <= 1 ? 1 : 2 * power_of_two((count + 1) / 2); }

// Every thread of a block of ``num_threads``, whole warps, ends with the block's X results. ``scratch`` is shared
// memory of [X][WARP] floats; a second call needs another scratch or a barrier in between.
template <typename Op, int X, int num_threads>
__device__ __forceinline__ void block_reduce(float (&value)[X], float (*scratch)[WARP]) {
    constexpr int num_warps = num_threads / WARP;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    warp_reduce<Op, X>(value);
    if (num_warps == 1) return;
    if (lane == 0) {
#pragma unroll
        for (int i = 0; i < X; i++) scratch[i][warp] = value[i];
    }
    __syncthreads();
    // Each warp reduces the partial results itself: no second barrier.
#pragma unroll
    for (int i = 0; i < X; i++) {
        const int from = lane % power_of_two(num_warps);
        value[i] = from < num_warps ? scratch[i][from] : Op::NEUTRAL;
    }
    warp_reduce<Op, X, power_of_two(num_warps)>(value);
}

// ---- dependent launch ------------------------------------------------------------------------------------------

// Every kernel waits before it touches what an earlier one wrote or may still read, so that a graph may turn an edge
// into a programmatic one; where the launch is a plain one, this is free.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks start; they wait for this one's end before they touch its results.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace headrace
