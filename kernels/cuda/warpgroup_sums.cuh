// How inline assembly names the sums of a product of four warps: "%0, %1, ...", and c[i], c[i + 1], ... as operands.
#pragma once

#define HEADRACE_SUMS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define HEADRACE_SUMS_24 HEADRACE_SUMS_16 ", " \
    "%16, %17, %18, %19, %20, %21, %22, %23"
#define HEADRACE_SUMS_32 HEADRACE_SUMS_16 ", " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HEADRACE_SUMS_40 HEADRACE_SUMS_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39"
#define HEADRACE_SUMS_48 HEADRACE_SUMS_40 ", " \
    "%40, %41, %42, %43, %44, %45, %46, %47"
#define HEADRACE_SUMS_64 HEADRACE_SUMS_48 ", " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HEADRACE_SUMS_56 HEADRACE_SUMS_48 ", " \
    "%48, %49, %50, %51, %52, %53, %54, %55"
#define HEADRACE_SUMS_72 HEADRACE_SUMS_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71"
#define HEADRACE_SUMS_96 HEADRACE_SUMS_72 ", " \
    "%72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define HEADRACE_SUMS_112 HEADRACE_SUMS_96 ", " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define HEADRACE_SUMS_128 HEADRACE_SUMS_112 ", " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define HEADRACE_8_SUMS(c, i)                                                                                  \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), \
        "+f"(c[i + 7])
#define HEADRACE_16_SUMS(c) HEADRACE_8_SUMS(c, 0), HEADRACE_8_SUMS(c, 8)
#define HEADRACE_32_SUMS(c, i) \
    HEADRACE_8_SUMS(c, i), HEADRACE_8_SUMS(c, i + 8), HEADRACE_8_SUMS(c, i + 16), HEADRACE_8_SUMS(c, i + 24)
#define HEADRACE_40_SUMS(c) HEADRACE_32_SUMS(c, 0), HEADRACE_8_SUMS(c, 32)
#define HEADRACE_48_SUMS(c) HEADRACE_40_SUMS(c), HEADRACE_8_SUMS(c, 40)
#define HEADRACE_64_SUMS(c, i) HEADRACE_32_SUMS(c, i), HEADRACE_32_SUMS(c, i + 32)
#define HEADRACE_128_SUMS(c) HEADRACE_64_SUMS(c, 0), HEADRACE_64_SUMS(c, 64)
