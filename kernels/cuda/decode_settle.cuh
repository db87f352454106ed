// A piece's end: the warps' sums meet, and the parts of an item that several blocks share are put together by the last.
#pragma once

#include "decode_walk.cuh"

namespace headrace {

// Four neighbouring sums of one head over some keys, those keys' greatest score, and the sum of their weights.
struct Part {
    float4 sums;
    float most, weight;

    __device__ __forceinline__ void scale(float factor) {
        sums.x *= factor, sums.y *= factor, sums.z *= factor, sums.w *= factor;
        weight *= factor;
    }

    __device__ __forceinline__ void add(const Part& other, float factor) {
        sums.x = fmaf(factor, other.sums.x, sums.x), sums.y = fmaf(factor, other.sums.y, sums.y);
        sums.z = fmaf(factor, other.sums.z, sums.z), sums.w = fmaf(factor, other.sums.w, sums.w);
        weight = fmaf(factor, other.weight, weight);
    }

    // All at once, so that only additions wait for each other. What has seen nothing has -inf for its greatest score.
    template <int COUNT>
    __device__ __forceinline__ void add(const Part (&others)[COUNT]) {
        float both = most;
#pragma unroll
        for (int j = 0; j < COUNT; j++) both = fmaxf(both, others[j].most);
        scale(exp2f(most - both));
        most = both;
#pragma unroll
        for (int j = 0; j < COUNT; j++) add(others[j], exp2f(others[j].most - both));
    }
};

__device__ __forceinline__ void write(DTYPE* out, const Part& part) {
    const float factor = 1 / part.weight;
    Vec<DTYPE, 4> result;
    result.set(0, part.sums.x * factor), result.set(1, part.sums.y * factor);
    result.set(2, part.sums.z * factor), result.set(3, part.sums.w * factor);
    store(out, result);
}

// From a slot that another block may have written: past the first-level cache.
__device__ __forceinline__ Part read_slot(const float* slot, int head, int dim) {
    return {__ldcg(reinterpret_cast<const float4*>(slot + head * HEAD_DIM + dim)),
            __ldcg(slot + GROUP * HEAD_DIM + head), __ldcg(slot + GROUP * (HEAD_DIM + 1) + head)};
}

// A piece's heads meet so many at a time: the memory that this saves is worth more to the rings.
constexpr int MEETING_HEADS = GROUP < 8 ? GROUP : 8, MEETINGS = (GROUP + 7) / 8;

struct alignas(16) Meeting {
    float sums[WARPS][MEETING_HEADS][SUM_PITCH], mosts[WARPS][MEETING_HEADS], weights[WARPS][MEETING_HEADS];
    int is_last;

    // All warps' together. Warp 0 has the piece's first tile, so that its greatest score is a number.
    __device__ __forceinline__ Part total(int head, int dim) const {
        float most = mosts[0][head], weight = 0, factor[WARPS];
#pragma unroll
        for (int w = 1; w < WARPS; w++) most = fmaxf(most, mosts[w][head]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) factor[w] = exp2f(mosts[w][head] - most);
        float4 all = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float4 own = *reinterpret_cast<const float4*>(&sums[w][head][dim]);
            all.x += factor[w] * own.x, all.y += factor[w] * own.y;
            all.z += factor[w] * own.z, all.w += factor[w] * own.w;
            weight += factor[w] * weights[w][head];
        }
        return {all, most, weight};
    }
};

// Where a piece's sums go: all of its item are the result, else they are a part of it, in a slot.
struct Settlement {
    static constexpr int QUADS = HEAD_DIM / 4;
    const Args& args;
    DTYPE* out;
    int item;
    bool whole;
    // Of a piece that is not: which part of the item it is, and which parts there are.
    int part = 0, first = 0, last = 0;
    bool apart = true, begun = false;  // begun: the item's first part ends a share that began before it

    __device__ __forceinline__ Settlement(const Args& args, const Walk& walk)
        : args(args), item(walk.row * args.num_kv_heads + walk.head), whole(walk.piece_units == walk.units) {
        out = args.out + static_cast<long long>(item) * GROUP * HEAD_DIM;
        if (whole) return;
        const int4 header = *args.plan;
        // Slots are a segment's each; or a share's each, if no share goes beyond an item; else a share writes at most
        // two, for its first piece and its last.
        apart = header.z || header.w;
        const int from = walk.at - walk.unit;
        part = header.z ? walk.at : blockIdx.x;
        if (header.w) first = blockIdx.x - walk.unit / header.x, last = first + (walk.units - 1) / header.x;
        else if (header.z) first = from, last = from + walk.units - 1;
        else first = from / header.x, last = (from + walk.units - 1) / header.x, begun = from % header.x != 0;
    }

    __device__ __forceinline__ int slot_number(int part) const {
        return apart ? part : 2 * part + (part == first && begun);
    }
    __device__ __forceinline__ float* slot_of(int part) const {
        return args.slots + static_cast<long long>(slot_number(part)) * SLOT;
    }

    static __device__ __forceinline__ void put_part(float* slot, int head, int dim, const Part& part) {
        *reinterpret_cast<float4*>(slot + head * HEAD_DIM + dim) = part.sums;
        if (dim == 0) put_head(slot, head, part.most, part.weight);
    }
    static __device__ __forceinline__ void put_head(float* slot, int head, float most, float weight) {
        slot[GROUP * HEAD_DIM + head] = most, slot[GROUP * (HEAD_DIM + 1) + head] = weight;
    }

    // Heads from ``from`` on, which have met.
    __device__ __forceinline__ void put(const Meeting& meeting, int from) const {
        for (int i = threadIdx.x; i < min(MEETING_HEADS, GROUP - from) * QUADS; i += THREADS) {
            const int head = from + i / QUADS, dim = i % QUADS * 4;
            const Part total = meeting.total(i / QUADS, dim);
            if (whole) write(out + head * HEAD_DIM + dim, total);
            else put_part(slot_of(part), head, dim, total);
        }
    }

    // Whether all others of ``count`` blocks have put their parts down.
    static __device__ __forceinline__ bool comes_last(int* ticket, int count, Meeting& meeting) {
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            meeting.is_last = atomicAdd(ticket, 1) == count - 1;
            if (meeting.is_last) *ticket = 0;
            __threadfence();
        }
        __syncthreads();
        return meeting.is_last;
    }

    // What each ``step``-th part from ``begin`` to ``end`` comes to, in order: the result, or a part, at ``slot``, which
    // is that of part ``begin``.
    __device__ __forceinline__ void add_up(int begin, int end, int step, float* slot, Meeting& meeting) const {
        // Reads whose latencies overlap, as many as registers allow: of some of a thread's quads, and of some parts.
        constexpr int EACH = (GROUP * QUADS + THREADS - 1) / THREADS;
        constexpr int QUADS_AT_ONCE = EACH > 1 && !Fragments::STARTS_EARLY ? 2 : 1;
        constexpr int PARTS_AT_ONCE = QUADS_AT_ONCE == 1 ? (GROUP > 8 ? 6 : 8) : EACH > 2 ? 2 : GROUP > 8 ? 3 : 4;
        static_assert(2 * GROUP <= sizeof(meeting.sums) / 4 && GROUP <= THREADS);
        // Of what the parts come to, on their way: nobody needs the warps' sums any more.
        float *mosts = meeting.sums[0][0], *weights = mosts + GROUP;
        for (int base = threadIdx.x; base < GROUP * QUADS; base += QUADS_AT_ONCE * THREADS) {
            const auto read = [&](int part, int quad) {
                const int i = min(base + quad * THREADS, GROUP * QUADS - 1);
                return read_slot(slot_of(part <= end ? part : begin), i / QUADS, i % QUADS * 4);
            };
            Part total[QUADS_AT_ONCE];
#pragma unroll
            for (int q = 0; q < QUADS_AT_ONCE; q++) total[q] = read(begin, q);
            for (int part = begin + step; part <= end; part += PARTS_AT_ONCE * step) {
                Part more[QUADS_AT_ONCE][PARTS_AT_ONCE];
#pragma unroll
                for (int j = 0; j < PARTS_AT_ONCE; j++)
#pragma unroll
                    for (int q = 0; q < QUADS_AT_ONCE; q++) more[q][j] = read(part + j * step, q);
#pragma unroll
                for (int q = 0; q < QUADS_AT_ONCE; q++) {
#pragma unroll
                    for (int j = 0; j < PARTS_AT_ONCE; j++)
                        if (part + j * step > end) more[q][j].most = -INFINITY;
                    total[q].add(more[q]);
                }
            }
#pragma unroll
            for (int q = 0; q < QUADS_AT_ONCE; q++)
                if (const int i = base + q * THREADS; i < GROUP * QUADS) {
                    if (slot) *reinterpret_cast<float4*>(slot + i * 4) = total[q].sums;
                    else write(out + i * 4, total[q]);
                    if (slot && i % QUADS == 0) mosts[i / QUADS] = total[q].most, weights[i / QUADS] = total[q].weight;
                }
        }
        if (!slot) return;
        // Not before every thread has read those of part ``begin``: a head is several warps', or of several rounds.
        __syncthreads();
        const int head = threadIdx.x;
        if (head < GROUP) put_head(slot, head, mosts[head], weights[head]);
    }

    // After all heads: whoever comes last to the item puts its parts together. Of many parts, whoever comes last to
    // each CHUNK of them does so first, and then there are fewer.
    __device__ __forceinline__ void finish(Meeting& meeting) const {
        if (whole) return;
        constexpr int CHUNK = 8;
        int step = 1;
#pragma unroll 1
        for (bool final = last - first < 2 * CHUNK;; final = true) {
            const int begin = final ? first : part - (part - first) % CHUNK;
            const int end = final ? last : min(begin + CHUNK - 1, last);
            const int count = (step == 1 ? end - begin : (end - begin) / CHUNK) + 1;
            int* ticket = args.tickets + (final ? item : args.num_rows * args.num_kv_heads + slot_number(begin));
            if (!comes_last(ticket, count, meeting)) return;
            add_up(begin, end, step, final ? nullptr : slot_of(begin), meeting);
            if (final) return;
            step = CHUNK;
        }
    }
};

}  // namespace headrace
