// Hopper's matrix instructions (sm_90a): four warps multiply 64 rows, by 16 numbers at a time, with a matrix in shared
// memory, and go on before that is done.
//
// Matrices lie in panels of rows of 128 bytes, 16-byte group i of row r at place i ^ r % 8; a panel begins at a multiple
// of 1024 bytes. Warp w of a group has rows 16 w to 16 w + 15, in registers as tensor_core.cuh describes A and C.
#pragma once

#include "common.cuh"

namespace headrace {

constexpr int PANEL_BYTES = 128;  // a row's

// What this thread has written to shared memory, products will see after the next barrier.
__device__ __forceinline__ void show_to_products() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#if WARPGROUPS

// The hardware's descriptor: address and panel distance, both over 16; the other half says that eight rows are 1024
// bytes, and how they are swizzled. The same in all of a warp's lanes.
struct Matrix {
    uint32_t low;

    __device__ __forceinline__ uint64_t descriptor() const {
        return static_cast<uint64_t>(1u << 30 | 1024 >> 4) << 32 | low;
    }
};

// Rows that are multiplied number by number: eight of them are 1024 bytes, and the next 16 numbers lie 32 bytes on.
__device__ __forceinline__ Matrix rows_matrix(uint32_t shared_address) {
    return {shared_address >> 4 | 1u << 16};
}
// Rows that are summed up, 16 at a time, the next of which lie 2048 bytes on; panels are panel_bytes apart.
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

#define HEADRACE_8_SUMS(c, i)                                                                                  \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), \
        "+f"(c[i + 7])
#define HEADRACE_32_SUMS(c, i) \
    HEADRACE_8_SUMS(c, i), HEADRACE_8_SUMS(c, i + 8), HEADRACE_8_SUMS(c, i + 16), HEADRACE_8_SUMS(c, i + 24)
#define HEADRACE_FIRST_32                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, " \
    "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HEADRACE_NEXT_32                                                            \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HEADRACE_ROWS_64(TYPE)                                                                                 \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                   \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" HEADRACE_FIRST_32 "}, %32, %33, " \
                 "p, 1, 1, 0, 0;\n}\n"                                                                         \
                 : HEADRACE_32_SUMS(c, 0)                                                                      \
                 : "l"(a.descriptor()), "l"(b.descriptor()), "r"(add))
#define HEADRACE_COLUMNS_64(TYPE)                                                                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {" HEADRACE_FIRST_32 "}, " \
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                                               \
                 : HEADRACE_32_SUMS(c, 0)                                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()))
#define HEADRACE_COLUMNS_128(TYPE)                                                                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" HEADRACE_FIRST_32 ", "  \
                 HEADRACE_NEXT_32 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                            \
                 : HEADRACE_32_SUMS(c, 0), HEADRACE_32_SUMS(c, 32)                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor()))

// c [64 x 64] (+)= a [64 x 16] b^T, b [64 x 16], both of rows_matrix; ``add`` 0: c is overwritten.
template <typename T>
__device__ __forceinline__ void multiply_rows(float (&c)[32], Matrix a, Matrix b, int add) {
    if constexpr (std::is_same_v<T, __half>) HEADRACE_ROWS_64("f16");
    else HEADRACE_ROWS_64("bf16");
}

// c [64 x 2 N] += a [64 x 16] b, b [16 x 2 N] of columns_matrix.
template <typename T>
__device__ __forceinline__ void multiply_columns(float (&c)[32], const uint32_t (&a)[4], Matrix b) {
    if constexpr (std::is_same_v<T, __half>) HEADRACE_COLUMNS_64("f16");
    else HEADRACE_COLUMNS_64("bf16");
}
template <typename T>
__device__ __forceinline__ void multiply_columns(float (&c)[64], const uint32_t (&a)[4], Matrix b) {
    if constexpr (std::is_same_v<T, __half>) HEADRACE_COLUMNS_128("f16");
    else HEADRACE_COLUMNS_128("bf16");
}

#endif

}  // namespace headrace
