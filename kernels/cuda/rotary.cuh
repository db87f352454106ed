// Heads of queries and keys on their way from a product to attention: norm and rotary position embedding.
//
// LANES neighbouring threads own a head, each VEC pairs of dimensions that rotate together, so that neither norm nor
// rotation leaves the group.
//
// Macros: HEAD_DIM, ROTARY_DIM (of the head's first dimensions; 0: none), INTERLEAVED (0: the first half rotates against
// the second, as in Llama's Hugging Face weights; 1: neighbours, as in GPT-J), VEC, LANES.
#pragma once

#include "rotate_pair.cuh"

namespace headrace {

constexpr int HALF = ROTARY_DIM / 2, TAIL = (HEAD_DIM - ROTARY_DIM) / 2;
static_assert(HALF % VEC == 0 && TAIL % VEC == 0 && HEAD_DIM / 2 <= LANES * VEC && WARP % LANES == 0, "impossible head");

struct Pairs {
    int first, second;  // where the thread's two vectors lie in a head
    bool rotates, held;

    __device__ __forceinline__ Pairs(int lane) {
        const int pair = lane * VEC;
        rotates = pair < HALF;
        held = pair < HEAD_DIM / 2;
        if (!rotates) {
            first = ROTARY_DIM + pair - HALF;
            second = first + TAIL;
        } else {
            first = INTERLEAVED ? 2 * pair : pair;
            second = first + (INTERLEAVED ? VEC : HALF);
        }
    }
};

// A thread's part of a head, as memory holds it: so several fit in registers while they are on their way.
template <typename T>
struct HeadPart {
    Vec<T, VEC> first, second;

    __device__ __forceinline__ void read(const T* head, const Pairs& pairs) {
        first = load<T, VEC>(head + pairs.first);
        second = load<T, VEC>(head + pairs.second);
    }
    __device__ __forceinline__ float get(int i) const { return i < VEC ? first.get(i) : second.get(i - VEC); }
};

template <typename T>
__device__ __forceinline__ void write(T* head, const float (&value)[2 * VEC], const Pairs& pairs) {
    store<T, VEC>(head + pairs.first, pack<T, VEC>(reinterpret_cast<const float(&)[VEC]>(value[0])));
    store<T, VEC>(head + pairs.second, pack<T, VEC>(reinterpret_cast<const float(&)[VEC]>(value[VEC])));
}

#if ROTARY_DIM
__device__ __forceinline__ void rotate(float (&value)[2 * VEC], const float (&cosine)[VEC], const float (&sine)[VEC]) {
#pragma unroll
    for (int e = 0; e < VEC; e++) {
        const int a = INTERLEAVED ? 2 * e : e, b = INTERLEAVED ? 2 * e + 1 : VEC + e;
        rotate_pair(value[a], value[b], cosine[e], sine[e]);
    }
}
#endif

}  // namespace headrace
