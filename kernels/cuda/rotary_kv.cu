// Between the product that makes queries, keys and values and attention: RMSNorm of each head (optional), rotary
// position embedding [1], and the write of keys and values into pages. One read and one write of each. Queries of
// ``num_query_tokens`` tokens are normed and rotated, the others' stay as they are.
//
// LANES neighbouring threads own a head, each VEC pairs of dimensions that rotate together, so that neither norm nor
// rotation leaves the group. A group takes several heads of one token and loads the token's angles once.
//
// Macros: DTYPE, HEAD_DIM, ROTARY_DIM (of the head's first dimensions; 0: none), INTERLEAVED (0: the first half rotates
// against the second, as in Llama's Hugging Face weights; 1: neighbours, as in GPT-J), VEC, LANES, THREADS,
// POSITION (type of positions), NORMED (0 or 1), TURNS (heads of a group that are on their way together), BLOCKS (that
// registers shall leave room for on a multiprocessor).
//
// [1] J. Su et al. RoFormer: enhanced transformer with rotary position embedding. arXiv:2104.09864.
#include "copy_async.cuh"
#include "rotary.cuh"

using namespace headrace;

constexpr int GROUPS = THREADS / LANES;

struct Pages {
    DTYPE *keys, *values;
    int64_t page_stride, head_stride, slot_stride;  // elements; the same for keys and values
    const int* table;                               // [rows, max_pages]
    int max_pages, page_size;
    Divisor by_page_size;

    // Where a position's first head lies.
    __device__ __forceinline__ int64_t at(int64_t row, int position) const {
        const int turn = by_page_size.of(position);
        return table[row * max_pages + turn] * page_stride + (position - turn * page_size) * slot_stride;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    rotary_kv(DTYPE* query, int64_t query_stride, const DTYPE* qkv, int64_t qkv_stride, int num_heads, int num_kv_heads,
              int num_query_tokens, const float* cosines, const float* sines, const DTYPE* query_norm,
              const DTYPE* key_norm, float eps, const POSITION* positions, const int* rows, DTYPE* key_pages,
              DTYPE* value_pages, int64_t page_stride, int64_t head_stride, int64_t slot_stride, const int* page_table,
              int max_pages, int page_size, uint32_t page_factor, int page_shift) {
    using T = DTYPE;
    const Pages pages{key_pages,  value_pages, page_stride, head_stride,          slot_stride,
                      page_table, max_pages,   page_size,   {page_factor, page_shift}};
    const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int64_t token = blockIdx.x;
    const Pairs pairs(lane);
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int position = positions[token];
    const int64_t owner = rows ? rows[token] : token;
#if ROTARY_DIM
    constexpr int WIDE = VEC < 4 ? VEC : 4;  // 16 bytes of angles
    // A warp's own copy of the token's cosines and sines, so that no register waits for them.
    __shared__ __align__(16) float angles[THREADS / WARP][2][HALF];
    float(&own)[2][HALF] = angles[threadIdx.x / WARP];
    for (int at = threadIdx.x % WARP * WIDE; at < HALF; at += WARP * WIDE) {
        copy_shared<WIDE * 4>(shared_address(&own[0][at]), cosines + token * HALF + at);
        copy_shared<WIDE * 4>(shared_address(&own[1][at]), sines + token * HALF + at);
    }
    commit_copies();
#endif
    const int num_slots = num_heads + 2 * num_kv_heads, step = gridDim.y * GROUPS;
    const int first_slot = token < num_query_tokens ? 0 : num_heads;
    // Whole warps go round together, because the norm's reduction needs all lanes.
    for (int base = first_slot + blockIdx.y * GROUPS; base < num_slots; base += TURNS * step) {
        HeadPart<T> part[TURNS];
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const int slot = base + turn * step + group;
            part[turn] = HeadPart<T>{};
            if (slot < num_slots && pairs.held)
                part[turn].read(qkv + token * qkv_stride + int64_t(slot) * HEAD_DIM, pairs);
        }
        // Only now: to look for the place means to wait for the position and for the page table, one after the other.
        const bool kept = position >= 0;  // padding has no place in the pages
        const int64_t place = kept ? pages.at(owner, position) : 0;
#if NORMED
        float squares[TURNS] = {};
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++)
#pragma unroll
            for (int e = 0; e < 2 * VEC; e++) squares[turn] += part[turn].get(e) * part[turn].get(e);
        warp_reduce<Sum, TURNS, LANES>(squares);
#endif
#if ROTARY_DIM
        wait_for_copies<0>();
        __syncwarp();
#endif
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const int slot = base + turn * step + group;
            if (slot >= num_slots || !pairs.held) continue;
            float value[2 * VEC];
#pragma unroll
            for (int e = 0; e < 2 * VEC; e++) value[e] = part[turn].get(e);
#if NORMED
            if (slot < num_heads + num_kv_heads) {
                HeadPart<T> weight;
                weight.read(slot < num_heads ? query_norm : key_norm, pairs);
                const float scale = rsqrtf(squares[turn] / HEAD_DIM + eps);
#pragma unroll
                for (int e = 0; e < 2 * VEC; e++) value[e] *= scale * weight.get(e);
            }
#endif
#if ROTARY_DIM
            if (pairs.rotates && slot < num_heads + num_kv_heads) {
                alignas(16) float cosine[VEC], sine[VEC];
#pragma unroll
                for (int e = 0; e < VEC; e += WIDE) {
                    const int at = lane * VEC + e;
                    reinterpret_cast<Vec<float, WIDE>&>(cosine[e]) = load<float, WIDE>(own[0] + at);
                    reinterpret_cast<Vec<float, WIDE>&>(sine[e]) = load<float, WIDE>(own[1] + at);
                }
                rotate(value, cosine, sine);
            }
#endif
            if (slot < num_heads) {
                write<T>(query + token * query_stride + int64_t(slot) * HEAD_DIM, value, pairs);
            } else if (kept) {
                const bool is_key = slot < num_heads + num_kv_heads;
                const int head = slot - num_heads - (is_key ? 0 : num_kv_heads);
                write<T>((is_key ? pages.keys : pages.values) + place + head * head_stride, value, pairs);
            }
        }
    }
}

// cos and sin of position * frequency, fp32, once a step for all layers. ``scale`` multiplies both (YaRN).
extern "C" __global__ void __launch_bounds__(THREADS)
    rotary_table(float* cosines, float* sines, const POSITION* positions, const float* frequencies, int64_t count,
                 int half, float scale) {
    wait_for_earlier_kernels();
    let_next_kernel_start();
    const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at >= count) return;
    float sine, cosine;
    sincosf(float(positions[at / half]) * frequencies[at % half], &sine, &cosine);
    cosines[at] = cosine * scale;
    sines[at] = sine * scale;
}
