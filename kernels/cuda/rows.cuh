// Where a thread finds its part of a row, and rows on their way while earlier ones are reduced.
//
// A row belongs to a warp (short rows: no barrier at all) or to a block. A thread holds VECS vectors of VEC elements of
// ROWS rows. With STAGES, a block goes from rows to rows, and each thread copies the vectors that itself will use into
// shared memory, STAGES - 1 turns ahead: no register and no barrier waits for them.
//
// Macros: DTYPE, VEC, VECS, ROWS, WARP_A_ROW (0 or 1), THREADS (of a block), EVEN (1: all threads hold as much, and they
// are a power of two), STAGES (0: a row's vectors are loaded when
// they are needed; else VEC elements are 16 bytes).
#pragma once

#include "common.cuh"
#include "copy_async.cuh"

namespace headrace {

struct Place {
    int thread;       // in the row's team
    int team;         // threads that share a row
    int64_t row;      // first of the ROWS
    int64_t step;     // from one turn's rows to the next turn's
    int num_vecs;     // of a row

    __device__ __forceinline__ Place(int width)
        : thread(WARP_A_ROW ? threadIdx.x % WARP : threadIdx.x),
          team(WARP_A_ROW ? WARP : THREADS),
          row((WARP_A_ROW ? int64_t(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP : int64_t(blockIdx.x)) * ROWS),
          step(int64_t(gridDim.x) * (WARP_A_ROW ? THREADS / WARP : 1) * ROWS),
          num_vecs(width / VEC) {}

    __device__ __forceinline__ int vec(int i) const { return thread + i * team; }

    // Whether the row has the thread's i-th vector.
    __device__ __forceinline__ bool holds(int i) const { return EVEN || vec(i) < num_vecs; }

    // Elements that a warp of the team holds, of a row in registers.
    __device__ __forceinline__ int held_by(int warp) const {
        int count = 0;
#pragma unroll
        for (int i = 0; i < VECS; i++) count += min(max(num_vecs - warp * WARP - i * team, 0), WARP);
        return count * VEC;
    }
};

#if STAGES
static_assert(STAGES > 1 && VEC * sizeof(DTYPE) == 16, "copies are of 16 bytes, and one stage is being read");

#if HINT_LOAD
#define STAGE_POLICY
#else
#define STAGE_POLICY , policy_
#endif
template <typename T>
class Ahead {
    static constexpr int VEC_BYTES = 16, TURN_BYTES = ROWS * VECS * THREADS * VEC_BYTES;
    const char* own_;  // the thread's vectors of the first stage
    const T* x_;
    int64_t row_, num_rows_, pitch_;
    uint64_t policy_ = evict_first_policy();
    int from_ = 0, to_ = 0;

    // Start the copies of a turn, of which rows that do not exist become zeros.
    __device__ __forceinline__ void start(const Place& place) {
        const uint32_t to = shared_address(own_) + to_ * TURN_BYTES;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int i = 0; i < VECS; i++) {
                const bool exists = row_ + r < num_rows_ && place.holds(i);
                const T* from = exists ? x_ + (row_ + r) * pitch_ + int64_t(place.vec(i)) * VEC : x_;
                copy_16_bytes(to + (r * VECS + i) * THREADS * VEC_BYTES, from, exists ? VEC_BYTES : 0 STAGE_POLICY);
            }
        }
        commit_copies();
        row_ += place.step;
        to_ = to_ + 1 == STAGES ? 0 : to_ + 1;
    }

  public:
    __device__ __forceinline__ Ahead(char* stages, const Place& place, const T* x, int64_t num_rows, int width)
        : own_(stages + threadIdx.x * VEC_BYTES), x_(x), row_(place.row), num_rows_(num_rows), pitch_(width) {
        for (int turn = 1; turn < STAGES; turn++) start(place);
    }

    // The next turn's vectors; what was read a turn ago makes room for those of STAGES - 1 turns on.
    __device__ __forceinline__ void next(Vec<T, VEC> (&at)[ROWS][VECS], const Place& place) {
        wait_for_copies<STAGES - 2>();
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int i = 0; i < VECS; i++)
                at[r][i] = load<T, VEC>(reinterpret_cast<const T*>(
                    own_ + from_ * TURN_BYTES + (r * VECS + i) * THREADS * VEC_BYTES));
        start(place);
        from_ = from_ + 1 == STAGES ? 0 : from_ + 1;
    }
};
#endif

}  // namespace headrace
