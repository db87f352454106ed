// x as a thin product wants it, normed on its way into shared memory: RMSNorm by the block that multiplies.
//
// Every block norms all of x for itself, while its first pieces of the weight are under way. A row of x is cut into
// runs of 32 vectors, a warp's each; sums are added in the order of rms_norm.cu's own (a tree over a run's vectors,
// a tree over the runs), so that up to 4,096 columns the normed x has the same bits as if it were made there.
//
// Macros: WARPS (of the multiplying threads), ROW_RUNS (of a row), HELD (runs that a warp holds, a power of two).
#pragma once

#include "copy_async.cuh"
#include "common.cuh"
#include "named_barrier.cuh"

namespace headrace {

// Sums each of X values, a power of two, over the warp; lane l ends with that of value l / (WARP / X). Lanes that have
// met share the values between them, so that all sums together take little more than X exchanges.
template <int X, int DISTANCE = WARP / 2>
__device__ __forceinline__ float warp_sums(const float (&value)[X]) {
    if constexpr (DISTANCE == 0) {
        return value[0];
    } else if constexpr (X == 1) {
        const float sum[1] = {value[0] + __shfl_xor_sync(ALL_LANES, value[0], DISTANCE)};
        return warp_sums<1, DISTANCE / 2>(sum);
    } else {
        const bool upper = threadIdx.x & DISTANCE;
        float half[X / 2];
#pragma unroll
        for (int i = 0; i < X / 2; i++) {
            const float kept = upper ? value[i + X / 2] : value[i], sent = upper ? value[i] : value[i + X / 2];
            half[i] = kept + __shfl_xor_sync(ALL_LANES, sent, DISTANCE);
        }
        return warp_sums<X / 2, DISTANCE / 2>(half);
    }
}

// Past the first-level cache: x is read once.
__device__ __forceinline__ uint4 read_x(const void* address) {
    return __ldcg(reinterpret_cast<const uint4*>(address));
}

class NormedX {
    // A warp's runs stand at the same columns in every token, or come round again after a few.
    static constexpr int WEIGHTS = ROW_RUNS % WARPS == 0 ? ROW_RUNS / WARPS : WARPS % ROW_RUNS == 0 ? 1 : HELD;
    static constexpr int TOKENS = 8;

    int m, num_vecs;  // rows; 16-byte vectors of a row
    Vec<DTYPE, 8> weights[WEIGHTS];

  public:
    // The norm's weight, which no kernel writes, is read before earlier kernels have ended.
    __device__ __forceinline__ NormedX(int m, int k, const DTYPE* weight) : m(m), num_vecs(k / 8) {
#pragma unroll
        for (int i = 0; i < WEIGHTS; i++) {
            const int vec = (i * WARPS + threadIdx.x / WARP) % ROW_RUNS * WARP + threadIdx.x % WARP;
            weights[i] = vec < num_vecs ? load<DTYPE, 8>(weight + vec * 8) : Vec<DTYPE, 8>{};
        }
    }

    // Writes the normed x to ``x_at``; ``scratch`` holds TOKENS * (ROW_RUNS + 1) floats. All multiplying threads take
    // part.
    __device__ __forceinline__ void make(const DTYPE* x, long long x_stride, float eps, uint32_t x_at, int x_pitch,
                                         float* scratch) const {
        for (int token = 0; token < m; token += TOKENS)
            make_some(min(m - token, TOKENS), x + token * x_stride, x_stride, eps, x_at + token * x_pitch, x_pitch,
                      scratch);
    }

  private:
    __device__ __forceinline__ void make_some(int tokens, const DTYPE* x, long long x_stride, float eps, uint32_t x_at,
                                              int x_pitch, float* scratch) const {
        const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, runs = tokens * ROW_RUNS;
        float* scales = scratch + TOKENS * ROW_RUNS;
        Vec<DTYPE, 8> held[HELD];
        float squares[HELD];
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int run = i * WARPS + warp, token = run / ROW_RUNS, vec = run % ROW_RUNS * WARP + lane;
            held[i] = Vec<DTYPE, 8>{};
            if (run < runs && vec < num_vecs)
                reinterpret_cast<uint4&>(held[i]) = read_x(x + token * x_stride + vec * 8);
        }
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            squares[i] = 0;
#pragma unroll
            for (int e = 0; e < 8; e++) squares[i] += held[i].get(e) * held[i].get(e);
        }
        const float sum = warp_sums<HELD>(squares);
        const int run = lane / (WARP / HELD) * WARPS + warp;
        if (lane % (WARP / HELD) == 0 && run < runs) scratch[run] = sum;
        some_meet<WARPS * WARP>();
        for (int token = warp; token < tokens; token += WARPS) {
            float total[1] = {lane < ROW_RUNS ? scratch[token * ROW_RUNS + lane] : 0.f};
            warp_reduce<Sum, 1>(total);
            if (lane == 0) scales[token] = rsqrtf(total[0] / (num_vecs * 8) + eps);
        }
        some_meet<WARPS * WARP>();
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const int run = i * WARPS + warp, token = run / ROW_RUNS, vec = run % ROW_RUNS * WARP + lane;
            if (run >= runs || vec >= num_vecs) continue;
            const Vec<DTYPE, 8>& w = weights[i % WEIGHTS];
            const float scale = scales[token];
            float y[8];
#pragma unroll
            for (int e = 0; e < 8; e++) y[e] = held[i].get(e) * scale * w.get(e);
            const Vec<DTYPE, 8> normed = pack<DTYPE, 8>(y);
            write_shared(x_at + token * x_pitch + vec * 16, reinterpret_cast<const uint4&>(normed));
        }
        some_meet<WARPS * WARP>();
    }
};

}  // namespace headrace
