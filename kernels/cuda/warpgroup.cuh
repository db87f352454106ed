// Hopper's matrix instructions (sm_90a): four warps multiply 64 rows, by 16 numbers at a time, with a matrix in shared
// memory, and go on before that is done.
//
// Matrices lie as panels.cuh says. Warp w of a group has rows 16 w to 16 w + 15, in registers as tensor_core.cuh
// describes A and C.
#pragma once

#include "panels.cuh"
#include "warpgroup_sums.cuh"

namespace headrace {

// What this thread has written to shared memory, products will see after the next barrier.
__device__ __forceinline__ void show_to_products() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#if WARPGROUPS

// The hardware's descriptor: address and panel distance, both over 16; the other half says how many bytes eight rows
// are and how they are swizzled. The same in all of a warp's lanes.
struct Matrix {
    uint32_t low;

    __device__ __forceinline__ uint64_t descriptor() const {
        constexpr uint32_t SWIZZLE = PANEL_BYTES == 128 ? 1 : PANEL_BYTES == 64 ? 2 : 3;
        return static_cast<uint64_t>(SWIZZLE << 30 | 8 * PANEL_BYTES >> 4) << 32 | low;
    }
};

// Rows that are multiplied number by number; the next 16 numbers lie 32 bytes on, or in the next panel.
__device__ __forceinline__ Matrix rows_matrix(uint32_t shared_address) {
    return {shared_address >> 4 | 1u << 16};
}
// Rows that are summed up, 16 at a time; panels are panel_bytes apart.
__device__ __forceinline__ Matrix columns_matrix(uint32_t shared_address, int panel_bytes) {
    return {shared_address >> 4 | static_cast<uint32_t>(panel_bytes >> 4) << 16};
}
// The same matrix, so many bytes on.
__device__ __forceinline__ Matrix moved(Matrix matrix, int num_bytes) { return {matrix.low + (num_bytes >> 4)}; }

// Before the first product after registers that it uses were written.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// After the last one; the compiler does not know that results are not there before.
template <int N>
__device__ __forceinline__ void finish_products(float (&results)[N]) {
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(results[i])::"memory");
}
// Until here, registers that products use are left as they are.
template <int N>
__device__ __forceinline__ void keep(const uint32_t (&used)[N][4]) {
#pragma unroll
    for (int i = 0; i < 4 * N; i++) asm volatile("" ::"r"(used[i / 4][i % 4]) : "memory");
}

#define HEADRACE_ROWS(TYPE)                                                                                          \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" HEADRACE_SUMS_32 "}, %32, %33, p, " \
                 "1, 1, 0, 0;\n}\n"                                                                                  \
                 : HEADRACE_32_SUMS(c, 0)                                                                            \
                 : "l"(a.descriptor()), "l"(b.descriptor()), "r"(add))
#define HEADRACE_HELD_ROWS(TYPE)                                                                                      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" HEADRACE_SUMS_32                    \
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"                                                    \
                 : HEADRACE_32_SUMS(c, 0)                                                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()), "r"(add))
#define HEADRACE_COLUMNS(SIZE, TYPE, NAMES, WEIGHTS, MATRIX, ...)                                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" SIZE "k16.f32." TYPE "." TYPE " {" NAMES "}, {" WEIGHTS "}, " \
                 MATRIX ", 1, 1, 1, 1;\n"                                                                     \
                 : __VA_ARGS__                                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()))
#define HEADRACE_MULTIPLY_COLUMNS(N, SIZE, NAMES, WEIGHTS, MATRIX, ...)                                       \
    template <typename T>                                                                                     \
    __device__ __forceinline__ void multiply_columns(float (&c)[N], const uint32_t (&a)[4], Matrix b) {       \
        if constexpr (std::is_same_v<T, __half>) HEADRACE_COLUMNS(SIZE, "f16", NAMES, WEIGHTS, MATRIX, __VA_ARGS__); \
        else HEADRACE_COLUMNS(SIZE, "bf16", NAMES, WEIGHTS, MATRIX, __VA_ARGS__);                             \
    }

// c [64 x 64] (+)= a [64 x 16] b^T, b [64 x 16], both of rows_matrix; ``add`` 0: c is overwritten.
template <typename T>
__device__ __forceinline__ void multiply_rows(float (&c)[32], Matrix a, Matrix b, int add) {
    if constexpr (std::is_same_v<T, __half>) HEADRACE_ROWS("f16");
    else HEADRACE_ROWS("bf16");
}

// The same with a in registers.
template <typename T>
__device__ __forceinline__ void multiply_held_rows(float (&c)[32], const uint32_t (&a)[4], Matrix b, int add) {
    if constexpr (std::is_same_v<T, __half>) HEADRACE_HELD_ROWS("f16");
    else HEADRACE_HELD_ROWS("bf16");
}

// c [64 x 2 N] += a [64 x 16] b, b [16 x 2 N] of columns_matrix.
HEADRACE_MULTIPLY_COLUMNS(16, "32", HEADRACE_SUMS_16, "%16, %17, %18, %19", "%20", HEADRACE_16_SUMS(c))
HEADRACE_MULTIPLY_COLUMNS(32, "64", HEADRACE_SUMS_32, "%32, %33, %34, %35", "%36", HEADRACE_32_SUMS(c, 0))
HEADRACE_MULTIPLY_COLUMNS(40, "80", HEADRACE_SUMS_40, "%40, %41, %42, %43", "%44", HEADRACE_40_SUMS(c))
HEADRACE_MULTIPLY_COLUMNS(48, "96", HEADRACE_SUMS_48, "%48, %49, %50, %51", "%52", HEADRACE_48_SUMS(c))
HEADRACE_MULTIPLY_COLUMNS(64, "128", HEADRACE_SUMS_64, "%64, %65, %66, %67", "%68", HEADRACE_64_SUMS(c, 0))
HEADRACE_MULTIPLY_COLUMNS(128, "256", HEADRACE_SUMS_128, "%128, %129, %130, %131", "%132", HEADRACE_128_SUMS(c))

#endif

}  // namespace headrace
