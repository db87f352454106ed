// A piece's end: the warps' sums meet, and the parts of an item that several blocks share are put together by the last.
#pragma once

#include "decode_walk.cuh"

namespace headrace {

// Four neighbouring sums of one head over some keys, those keys' greatest score, and the sum of their weights.
struct Part {
    float4 sums;
    float most, weight;

    __device__ __forceinline__ void add(const Part& other) {
        const float both = fmaxf(most, other.most), a = exp2f(most - both), b = exp2f(other.most - both);
        sums.x = a * sums.x + b * other.sums.x, sums.y = a * sums.y + b * other.sums.y;
        sums.z = a * sums.z + b * other.sums.z, sums.w = a * sums.w + b * other.sums.w;
        most = both, weight = a * weight + b * other.weight;
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

struct alignas(16) Meeting {
    float sums[WARPS][GROUP][SUM_PITCH], mosts[WARPS][GROUP], weights[WARPS][GROUP];
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

// The block's piece is summed up in ``meeting``; write the item's result, or this piece's part of it.
__device__ __forceinline__ void settle(const Args& args, const Walk& walk, Meeting& meeting) {
    constexpr int QUADS = HEAD_DIM / 4;
    const int item = walk.row * args.num_kv_heads + walk.head;
    DTYPE* out = args.out + static_cast<long long>(item) * GROUP * HEAD_DIM;
    const bool whole = walk.piece_units == walk.units;
    const int4 header = *args.plan;
    // Slots are a segment's each; or a share's each, if no share goes beyond an item; else a share writes at most two, for
    // its first piece and its last.
    const bool apart = header.z || header.w;
    const int from = walk.at - walk.unit;
    int first, last;
    if (header.w) first = blockIdx.x - walk.unit / header.x, last = first + (walk.units - 1) / header.x;
    else if (header.z) first = from, last = from + walk.units - 1;
    else first = from / header.x, last = (from + walk.units - 1) / header.x;
    const auto slot_of = [&](int part) -> float* {
        const int slot = apart ? part : 2 * part + (part == first && from % header.x != 0);
        return args.slots + static_cast<long long>(slot) * SLOT;
    };
    float* slot = slot_of(header.z ? walk.at : blockIdx.x);
    for (int i = threadIdx.x; i < GROUP * QUADS; i += THREADS) {
        const int head = i / QUADS, dim = i % QUADS * 4;
        const Part total = meeting.total(head, dim);
        if (whole) {
            write(out + head * HEAD_DIM + dim, total);
        } else {
            *reinterpret_cast<float4*>(slot + head * HEAD_DIM + dim) = total.sums;
            if (dim == 0)
                slot[GROUP * HEAD_DIM + head] = total.most, slot[GROUP * (HEAD_DIM + 1) + head] = total.weight;
        }
    }
    if (whole) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        meeting.is_last = atomicAdd(args.tickets + item, 1) == last - first;
        if (meeting.is_last) args.tickets[item] = 0;
        __threadfence();
    }
    __syncthreads();
    if (!meeting.is_last) return;
    constexpr int AT_ONCE = 8;  // slots whose latencies overlap
    for (int i = threadIdx.x; i < GROUP * QUADS; i += THREADS) {
        const int head = i / QUADS, dim = i % QUADS * 4;
        Part total = read_slot(slot_of(first), head, dim);
        for (int part = first + 1; part <= last; part += AT_ONCE) {
            Part read[AT_ONCE];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) read[j] = read_slot(slot_of(min(part + j, last)), head, dim);
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
                if (part + j <= last) total.add(read[j]);
        }
        write(out + head * HEAD_DIM + dim, total);
    }
}

}  // namespace headrace
