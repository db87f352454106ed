// One query token a row attends to its row's keys and values in pages: reads them once, at the memory's speed.
//
//   out, query [num_rows, num_kv_heads * GROUP, HEAD_DIM]; rows of query query_stride elements apart;
//   keys, values: a page's keys of one head are [page_tiles * 16, HEAD_DIM], contiguous; pages page_stride elements
//   apart, heads head_stride; page_table [num_rows, max_pages]; lengths [num_rows].
//
// A block takes its share from decode_plan.cu and walks over its pieces: runs of tiles of one (row, head). A tile is 16
// keys and values. Warp w takes each WARPS-th tile of a piece through a ring of its own of STAGES tiles, filled by
// asynchronous copies across the pieces' borders: no warp waits for another within a piece, and memory is busy while
// sums are put together. All GROUP query heads of a head of keys share each tile (decode_fragments.cuh computes, with
// the softmax of [1] one tile at a time). At a piece's end the warps' sums meet in shared memory. If the piece is all
// of its item the result is written; otherwise the sums go to a slot in the workspace, and the block that comes last to
// an item, by its ticket, puts its slots together [2], in the order of keys: the result does not depend on timing.
//
// [1] T. Dao et al. FlashAttention: fast and memory-efficient exact attention with IO-awareness. NeurIPS 2022.
// [2] T. Dao, D. Haziza, F. Massa, G. Sizov. Flash-Decoding for long-context inference. 2023.
#include "copy_async.cuh"
#include "decode_fragments.cuh"
#include "decode_tiles.cuh"

namespace headrace {

constexpr int THREADS = WARPS * WARP;
// Floats: sums [GROUP][HEAD_DIM], greatest scores [GROUP], weights [GROUP]; a multiple of 16 bytes.
constexpr int SLOT = (GROUP * (HEAD_DIM + 2) + 3) / 4 * 4;

struct Args {
    DTYPE* out;
    const DTYPE *query, *keys, *values;
    const int *page_table, *lengths;
    const int4* plan;
    float* slots;
    int* tickets;  // [num_rows * num_kv_heads], zeros before and after
    int num_rows, num_kv_heads, max_pages, page_tiles, window;
    long long query_stride, page_stride, head_stride;
    float score_scale;  // softmax's, times log2(e)
};

// A block's way through its share, a piece at a time.
struct Walk {
    int row, head, unit, left;  // of the piece, the latter two in units; left counts from this piece on
    int length, begin, end;     // of the row in keys; of the piece in tiles
    int at, units, piece_units; // unit among all, units of the item, units of the piece

    __device__ __forceinline__ explicit Walk(const Args& args) {
        // All the first piece needs comes by one round trip to memory.
        const int4 header = *args.plan, entry = args.plan[1 + 2 * blockIdx.x];
        length = args.plan[2 + 2 * blockIdx.x].x;
        row = entry.x, head = entry.y, unit = entry.z, left = entry.w;
        at = blockIdx.x * header.x;
        if (left > 0) look(args, header);
    }

    __device__ __forceinline__ void look(const Args& args, const int4& header) {
        const Tiles seen = tiles_seen(length, args.window);
        units = seen.units(header.y);
        piece_units = header.z ? 1 : min(units - unit, left);
        begin = seen.begin + unit * header.y;
        end = min(begin + piece_units * header.y, seen.end);
    }

    __device__ __forceinline__ void next(const Args& args) {
        left -= piece_units, at += piece_units, unit += piece_units;
        if (left == 0) return;
        if (unit == units) {
            unit = 0;
            if (++head == args.num_kv_heads) {
                head = 0;
                do length = args.lengths[++row];
                while (length == 0);
            }
        }
        look(args, *args.plan);
    }
};

// Issues a warp's copies, tile after tile.
struct Feeder {
    Walk walk;
    int tile, batch;     // next tile; tiles since the offsets were read
    uint64_t policy;
    long long offset;    // a lane's: where the batch's tile number ``lane`` lies in a head's pages, elements

    __device__ __forceinline__ Feeder(const Args& args, const Walk& walk) : walk(walk), policy(evict_first_policy()) {
        enter(args);
    }

    __device__ __forceinline__ void look_up(const Args& args) {
        const int lane = threadIdx.x % WARP, wanted = tile + lane * WARPS;
        batch = 0;
        if (wanted < walk.end) {
            const int page = wanted / args.page_tiles;
            offset = args.page_table[static_cast<long long>(walk.row) * args.max_pages + page] * args.page_stride +
                     (wanted - page * args.page_tiles) * TILE_KEYS * HEAD_DIM;
        }
    }

    __device__ __forceinline__ void enter(const Args& args) {
        tile = walk.begin + threadIdx.x / WARP;
        if (walk.left > 0 && tile < walk.end) look_up(args);
    }

    // One tile, or nothing if the share is at its end. FIRST: before the kernels before this one are known to have ended.
    template <bool FIRST>
    __device__ __forceinline__ void feed(const Args& args, uint32_t stage) {
        while (walk.left > 0 && tile >= walk.end) walk.next(args), enter(args);
        if (walk.left > 0) {
            // The row's newest key and value are the previous kernel's work.
            if (FIRST && (tile + 1) * TILE_KEYS >= walk.length) wait_for_earlier_kernels();
            if (batch == WARP) look_up(args);
            const long long from = __shfl_sync(ALL_LANES, offset, batch++) + walk.head * args.head_stride;
            const int num_keys = min(walk.length - tile * TILE_KEYS, TILE_KEYS);
            if (num_keys == TILE_KEYS) {
                copy_tile<true>(stage, args.keys + from, num_keys);
                copy_tile<true>(stage + TILE_BYTES, args.values + from, num_keys);
            } else {
                copy_tile<false>(stage, args.keys + from, num_keys);
                copy_tile<false>(stage + TILE_BYTES, args.values + from, num_keys);
            }
            tile += WARPS;
        }
        commit_copies();
    }

    // Rows behind the row's last key become zeros: what lies there in the page may be no number.
    template <bool WHOLE>
    __device__ __forceinline__ void copy_tile(uint32_t to, const DTYPE* from, int num_keys) const {
        constexpr int CHUNKS = ROW_BYTES / 16, EACH = TILE_KEYS * CHUNKS / WARP;
        const int lane = threadIdx.x % WARP;
        const char* source = reinterpret_cast<const char*>(from);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int chunk = i * WARP + lane, key = chunk / CHUNKS;
            const bool wanted = WHOLE || key < num_keys;
            copy_16_bytes(to + key * PITCH + swizzled(key, (chunk - key * CHUNKS) * 16),
                          wanted ? source + chunk * 16 : source, wanted ? 16 : 0, policy);
        }
    }
};

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

    __device__ __forceinline__ Part part(int warp, int head, int dim) const {
        return {*reinterpret_cast<const float4*>(&sums[warp][head][dim]), mosts[warp][head], weights[warp][head]};
    }
};

// The block's piece is summed up in ``meeting``; write the item's result, or this piece's part of it.
__device__ __forceinline__ void settle(const Args& args, const Walk& walk, Meeting& meeting) {
    constexpr int QUADS = HEAD_DIM / 4;
    const int item = walk.row * args.num_kv_heads + walk.head;
    DTYPE* out = args.out + static_cast<long long>(item) * GROUP * HEAD_DIM;
    const bool whole = walk.piece_units == walk.units;
    const int4 header = *args.plan;
    // Blocks write at most two slots, for the first piece and the last; segments have one each.
    const int from = walk.at - walk.unit, first = header.z ? from : from / header.x,
              last = header.z ? from + walk.units - 1 : (from + walk.units - 1) / header.x;
    const auto slot_of = [&](int part) -> float* {
        const int slot = header.z ? part : 2 * part + (part == first && from % header.x != 0);
        return args.slots + static_cast<long long>(slot) * SLOT;
    };
    float* slot = slot_of(header.z ? walk.at : blockIdx.x);
    for (int i = threadIdx.x; i < GROUP * QUADS; i += THREADS) {
        const int head = i / QUADS, dim = i % QUADS * 4;
        // Warp 0 has the piece's first tile, so its greatest score is a number.
        Part total = meeting.part(0, head, dim);
#pragma unroll
        for (int w = 1; w < WARPS; w++) total.add(meeting.part(w, head, dim));
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

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
    decode_attention(DTYPE* out, const DTYPE* query, const DTYPE* keys, const DTYPE* values, const int* page_table,
                     const int* lengths, const int4* plan, float* slots, int* tickets, int num_rows, int num_kv_heads,
                     int max_pages, int page_tiles, int window, long long query_stride, long long page_stride,
                     long long head_stride, float score_scale, int old_is_settled) {
    using namespace headrace;
    extern __shared__ __align__(128) unsigned char memory[];
    // the warps' rings, what fragments keep there, the meeting
    const int warp = threadIdx.x / WARP;
    const uint32_t ring = shared_address(memory) + warp * STAGES * 2 * TILE_BYTES;
    Private& own = reinterpret_cast<Private*>(memory + WARPS * STAGES * 2 * TILE_BYTES)[warp];
    Meeting& meeting = *reinterpret_cast<Meeting*>(memory + WARPS * (STAGES * 2 * TILE_BYTES + sizeof(Private)));
    const Args args{out,      query,        keys,      values,     page_table, lengths,      plan,        slots,       tickets,
                    num_rows, num_kv_heads, max_pages, page_tiles, window,     query_stride, page_stride, head_stride, score_scale};
    let_next_kernel_start();
    if (!old_is_settled) wait_for_earlier_kernels();
    Walk walk(args);
    Feeder feeder(args, walk);
    for (int i = 0; i < STAGES; i++) feeder.feed<true>(args, ring + i * 2 * TILE_BYTES);
    wait_for_earlier_kernels();
    for (int row = blockIdx.x; row < num_rows; row += gridDim.x)
        if (lengths[row] == 0)
            for (int i = threadIdx.x; i < num_kv_heads * GROUP * HEAD_DIM; i += THREADS)
                out[static_cast<long long>(row) * num_kv_heads * GROUP * HEAD_DIM + i] = from_float<DTYPE>(0.f);
    int stage = 0;
    Fragments fragments;
    const auto start = [&] { fragments.start(query + walk.row * query_stride + walk.head * GROUP * HEAD_DIM, own); };
    if (walk.left > 0) start();
    while (walk.left > 0) {
        for (int tile = walk.begin + warp; tile < walk.end; tile += WARPS) {
            wait_for_copies<STAGES - 1>();
            __syncwarp();
            const uint32_t at = ring + stage * 2 * TILE_BYTES;
            const int first_key = tile * TILE_KEYS;
            fragments.add(at, at + TILE_BYTES, window > 0 ? max(walk.length - window - first_key, 0) : 0,
                          min(walk.length - first_key, TILE_KEYS), score_scale, own);
            __syncwarp();
            feeder.feed<false>(args, at);
            if (++stage == STAGES) stage = 0;
        }
        // Whoever is late with the last piece's sums is done with them.
        __syncthreads();
        fragments.give(meeting.sums[warp], meeting.mosts[warp], meeting.weights[warp]);
        __syncthreads();
        const Walk done = walk;
        walk.next(args);
        // If registers suffice, the next queries are under way while the sums are settled.
        if (Fragments::STARTS_EARLY && walk.left > 0) start();
        settle(args, done, meeting);
        if (!Fragments::STARTS_EARLY && walk.left > 0) start();
    }
}
