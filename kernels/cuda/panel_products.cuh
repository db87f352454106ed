// Four warps' products of 64 rows with any multiple of 8 rows, both in shared memory (sm_90a), several under way at once.
//
// Macros: WIDEST_PANEL (rows of one instruction, whose sums and 26 registers more a launch has to give; 256).
#pragma once

#include "warpgroup.cuh"

#ifndef WIDEST_PANEL
#define WIDEST_PANEL 256
#endif

namespace headrace {

#define HEADRACE_SUMS_4 "%0, %1, %2, %3"
#define HEADRACE_SUMS_8 HEADRACE_SUMS_4 ", %4, %5, %6, %7"
#define HEADRACE_4_SUMS(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define HEADRACE_ALL_16_SUMS(c, i) HEADRACE_8_SUMS(c, i), HEADRACE_8_SUMS(c, i + 8)
#define HEADRACE_ALL_24_SUMS(c, i) HEADRACE_ALL_16_SUMS(c, i), HEADRACE_8_SUMS(c, i + 16)
#define HEADRACE_ALL_48_SUMS(c, i) HEADRACE_32_SUMS(c, i), HEADRACE_ALL_16_SUMS(c, i + 32)
#define HEADRACE_ALL_56_SUMS(c, i) HEADRACE_ALL_48_SUMS(c, i), HEADRACE_8_SUMS(c, i + 48)
#define HEADRACE_ALL_72_SUMS(c, i) HEADRACE_64_SUMS(c, i), HEADRACE_8_SUMS(c, i + 64)
#define HEADRACE_ALL_96_SUMS(c, i) HEADRACE_64_SUMS(c, i), HEADRACE_32_SUMS(c, i + 64)
#define HEADRACE_ALL_128_SUMS(c, i) HEADRACE_64_SUMS(c, i), HEADRACE_64_SUMS(c, i + 64)
#define HEADRACE_ALL_112_SUMS(c, i) HEADRACE_ALL_96_SUMS(c, i), HEADRACE_ALL_16_SUMS(c, i + 96)

// Products of one width: c[AT], c[AT + 1], ... (+)= a [64 x 16] b^T, b [WIDTH x 16]; unless ADD, they are overwritten.
template <int WIDTH>
struct PanelProduct;

#define HEADRACE_PANEL(WIDTH, TYPE, NAMES, MATRICES, ADDED, SUMS)                                              \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #WIDTH "k16.f32." TYPE "." TYPE " {" NAMES "}, " MATRICES \
                 ", " ADDED ", 1, 1, 0, 0;\n"                                                                  \
                 : SUMS(c, AT)                                                                                 \
                 : "l"(a.descriptor()), "l"(b.descriptor()), "n"(ADD))
#define HEADRACE_PANEL_PRODUCT(WIDTH, NAMES, MATRICES, ADDED, SUMS)                                         \
    template <>                                                                                             \
    struct PanelProduct<WIDTH> {                                                                            \
        template <typename T, int ADD, int AT, int N>                                                       \
        static __device__ __forceinline__ void of(float (&c)[N], Matrix a, Matrix b) {                      \
            if constexpr (std::is_same_v<T, __half>) HEADRACE_PANEL(WIDTH, "f16", NAMES, MATRICES, ADDED, SUMS); \
            else HEADRACE_PANEL(WIDTH, "bf16", NAMES, MATRICES, ADDED, SUMS);                               \
        }                                                                                                   \
    };

HEADRACE_PANEL_PRODUCT(8, HEADRACE_SUMS_4, "%4, %5", "%6", HEADRACE_4_SUMS)
HEADRACE_PANEL_PRODUCT(16, HEADRACE_SUMS_8, "%8, %9", "%10", HEADRACE_8_SUMS)
HEADRACE_PANEL_PRODUCT(32, HEADRACE_SUMS_16, "%16, %17", "%18", HEADRACE_ALL_16_SUMS)
HEADRACE_PANEL_PRODUCT(48, HEADRACE_SUMS_24, "%24, %25", "%26", HEADRACE_ALL_24_SUMS)
HEADRACE_PANEL_PRODUCT(64, HEADRACE_SUMS_32, "%32, %33", "%34", HEADRACE_32_SUMS)
HEADRACE_PANEL_PRODUCT(96, HEADRACE_SUMS_48, "%48, %49", "%50", HEADRACE_ALL_48_SUMS)
HEADRACE_PANEL_PRODUCT(112, HEADRACE_SUMS_56, "%56, %57", "%58", HEADRACE_ALL_56_SUMS)
HEADRACE_PANEL_PRODUCT(128, HEADRACE_SUMS_64, "%64, %65", "%66", HEADRACE_64_SUMS)
HEADRACE_PANEL_PRODUCT(144, HEADRACE_SUMS_72, "%72, %73", "%74", HEADRACE_ALL_72_SUMS)
HEADRACE_PANEL_PRODUCT(224, HEADRACE_SUMS_112, "%112, %113", "%114", HEADRACE_ALL_112_SUMS)
HEADRACE_PANEL_PRODUCT(256, HEADRACE_SUMS_128, "%128, %129", "%130", HEADRACE_ALL_128_SUMS)

// What has been asked for since the last call can be waited for.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all but the newest PENDING commits are done with what they read.
template <int PENDING>
__device__ __forceinline__ void wait_for_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// What computes these is not moved behind here, and what uses them not before.
template <int N>
__device__ __forceinline__ void pin(float (&results)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(results[i])::"memory");
}

// Until all are done that have been committed; the compiler does not know that results are not there before.
template <int N>
__device__ __forceinline__ void wait_for_products(float (&results)[N]) {
    wait_for_products<0>();
    pin(results);
}

// The widest product there is of no more than ``left`` rows. One wide one reads a less often than two narrow ones.
__host__ __device__ constexpr int panel_width(int left) {
    constexpr int WIDTHS[] = {256, 224, 144, 128, 112, 96, 64, 48, 32, 16};
    for (int width : WIDTHS)
        if (left >= width && width <= WIDEST_PANEL) return width;
    return 8;
}

// c [64 x ROWS] (+)= a [64 x 16] b^T, b [ROWS x 16], both of rows_matrix, by as few products as make up ROWS.
template <typename T, int ADD, int ROWS, int FIRST = 0>
__device__ __forceinline__ void multiply_panel(float (&c)[ROWS / 2], Matrix a, Matrix b) {
    constexpr int LEFT = ROWS - FIRST;
    if constexpr (LEFT > 0) {
        constexpr int WIDTH = panel_width(LEFT);
        PanelProduct<WIDTH>::template of<T, ADD, FIRST / 2>(c, a, moved(b, FIRST * PANEL_BYTES));
        multiply_panel<T, ADD, ROWS, FIRST + WIDTH>(c, a, b);
    }
}

}  // namespace headrace
