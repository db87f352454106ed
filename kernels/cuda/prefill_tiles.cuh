// What a block of prefill_attention computes, which keys that sees, and how these come into shared memory.
#pragma once

#include "head_tiles.cuh"
#include "rotate_pair.cuh"

namespace headrace {

constexpr int UNIT_KEYS = 16;  // neighbours in memory, whatever the page size

struct Args {
    DTYPE* out;
    const DTYPE *query, *keys, *values;
    const int* page_table;
    const int4* plan;
    int num_kv_heads, group, group_inverse, max_pages, page_units, window;  // group_inverse: 65536 / group + 1
    long long query_stride, page_stride, head_stride;
    float score_scale;  // softmax's, times log2(e)
    const float *cosines, *sines;  // [num_tokens, HEAD_DIM / 2], where queries come as they were before rotation
};

// A block's rows: pairs of a query token and one of the ``group`` heads that share a head of keys, in this order; and
// the keys that any of them sees, in tiles of BLOCK_KEYS that begin at multiples of that.
//
// It lies in shared memory: sums and scores leave no registers for what a tile needs once.
struct Rows {
    int row, first_token, queries, length;  // of the page table; of the row in the step; the row's
    int token, before;                      // of the block's first pair; pairs of that token before it
    int begin, end;                         // keys seen
    long long offsets[WARPS][WARP];         // of each warp's keys of 32 tiles, elements; negative: nowhere

    __device__ __forceinline__ void set(const Args& args, const int4& entry, int row_length) {
        row = entry.x, first_token = entry.z, queries = entry.w, length = row_length;
        token = entry.y / args.group, before = entry.y - token * args.group;
        begin = args.window > 0 ? max(limit(args, 0) - args.window, 0) : 0;
        end = length > 0 ? limit(args, BLOCK_ROWS - 1) : 0;
    }

    // Of a block's row. Rows behind the last are the last token's.
    __device__ __forceinline__ int token_of(const Args& args, int i) const {
        return min(token + tokens_in(args, before + i), queries - 1);
    }
    __device__ __forceinline__ bool exists(const Args& args, int i) const {
        return token + tokens_in(args, before + i) < queries;
    }

    // pairs / group, which is exact for pairs * group < 65536.
    static __device__ __forceinline__ int tokens_in(const Args& args, int pairs) {
        return pairs * args.group_inverse >> 16;
    }

    // Where a block's row lies in a tensor [tokens, heads, HEAD_DIM] whose tokens are ``stride`` elements apart.
    __device__ __forceinline__ long long place(const Args& args, int i, long long stride) const {
        const int member = before + i - tokens_in(args, before + i) * args.group;
        return token_in_step(args, i) * stride + (head(args) * args.group + member) * HEAD_DIM;
    }
    __device__ __forceinline__ long long token_in_step(const Args& args, int i) const {
        return first_token + token_of(args, i);
    }

    static __device__ __forceinline__ int head(const Args& args) { return blockIdx.x % args.num_kv_heads; }

    // The first key behind those that a block's row sees; not above 0 if it sees none.
    __device__ __forceinline__ int limit(const Args& args, int i) const {
        return length - queries + token_of(args, i) + 1;
    }

    __device__ __forceinline__ int first_tile() const { return begin / BLOCK_KEYS; }
    __device__ __forceinline__ int last_tile() const { return (end + BLOCK_KEYS - 1) / BLOCK_KEYS; }
};

// Issues the copies of a warp's share of each tile: KEYS_A_WARP neighbouring keys and values.
struct Feeder {
    static constexpr int KEYS_A_WARP = BLOCK_KEYS / WARPS, SHARE = KEYS_A_WARP * CHUNKS;
    static constexpr int EACH = (SHARE + WARP - 1) / WARP;
    static_assert(BLOCK_KEYS % WARPS == 0 && UNIT_KEYS % KEYS_A_WARP == 0);

    // Where the warp's keys of the next 32 tiles lie.
    static __device__ __forceinline__ void look_up(const Args& args, Rows& rows, int tile) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
        const int key = (tile + lane) * BLOCK_KEYS + warp * KEYS_A_WARP, unit = key / UNIT_KEYS;
        long long offset = -1;
        // Pages before a window may be another row's by now.
        if (key < rows.end && (unit + 1) * UNIT_KEYS > rows.begin) {
            const int page = unit / args.page_units;
            offset = args.page_table[static_cast<long long>(rows.row) * args.max_pages + page] * args.page_stride +
                     Rows::head(args) * args.head_stride + (key - page * args.page_units * UNIT_KEYS) * HEAD_DIM;
        }
        __syncwarp();
        rows.offsets[warp][lane] = offset;
        __syncwarp();
    }

    static __device__ __forceinline__ void feed(const Args& args, Rows& rows, int tile, uint32_t to) {
        const int warp = thread_index() / WARP, own = warp * KEYS_A_WARP, since = tile - rows.first_tile();
        if (since % WARP == 0) look_up(args, rows, tile);
        const long long from = rows.offsets[warp][since % WARP];
        const int num_keys = from < 0 ? 0 : rows.end - tile * BLOCK_KEYS - own;
        const DTYPE *keys = args.keys + max(from, 0ll), *values = args.values + max(from, 0ll);
        if (num_keys >= KEYS_A_WARP) copy<true>(keys, values, num_keys, to);
        else copy<false>(keys, values, num_keys, to);
        commit_copies();
    }

    // Keys that no row sees become zeros: what lies there may be no number, and its weight of 0 would not help.
    template <bool WHOLE>
    static __device__ __forceinline__ void copy(const DTYPE* keys, const DTYPE* values, int num_keys, uint32_t to) {
        const int index = thread_index(), lane = index % WARP, own = index / WARP * KEYS_A_WARP;
        const char* key = reinterpret_cast<const char*>(keys) + (WHOLE ? lane * 16 : 0);
        const char* value = reinterpret_cast<const char*>(values) + (WHOLE ? lane * 16 : 0);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int chunk = i * WARP + lane, at = chunk / CHUNKS;
            if ((i + 1) * WARP > SHARE && chunk >= SHARE) break;
            const uint32_t target = to + place_in_tile<BLOCK_KEYS>(own + at, (chunk - at * CHUNKS) * 16);
            const bool wanted = WHOLE || at < num_keys;
            const int distance = WHOLE ? i * WARP * 16 : wanted ? chunk * 16 : 0;
            copy_16_bytes(target, key + distance, wanted ? 16 : 0);
            copy_16_bytes(target + TILE_BYTES, value + distance, wanted ? 16 : 0);
        }
    }
};

#if ROTATES
// Queries, rotated on their way: written and read once more they would take longer than a step's norms.
__device__ __forceinline__ void bring_queries(const Args& args, const Rows& rows, unsigned char* to) {
    constexpr int N = FULL<DTYPE>, EACH = CHUNKS / 2, TOTAL = BLOCK_ROWS * EACH, HALF = HEAD_DIM / 2;
    static_assert(CHUNKS % 2 == 0);
#pragma unroll 2
    for (int pair = threadIdx.x; pair < TOTAL; pair += THREADS) {
        const int at = pair / EACH, column = (pair - at * EACH) * N;
        const DTYPE* from = args.query + rows.place(args, at, args.query_stride) + column;
        const long long angle = rows.token_in_step(args, at) * HALF + column;
        const Vec<DTYPE, N> held[2] = {load<DTYPE, N>(from), load<DTYPE, N>(from + HALF)};
        float first[N], second[N];
#pragma unroll
        for (int e = 0; e < N; e += 4) {
            const Vec<float, 4> cosine = load<float, 4>(args.cosines + angle + e);
            const Vec<float, 4> sine = load<float, 4>(args.sines + angle + e);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                first[e + i] = held[0].get(e + i), second[e + i] = held[1].get(e + i);
                rotate_pair(first[e + i], second[e + i], cosine.get(i), sine.get(i));
            }
        }
        const auto place = [&](int column) {
            return reinterpret_cast<DTYPE*>(to + place_in_tile<BLOCK_ROWS>(at, column * sizeof(DTYPE)));
        };
        store<DTYPE, N>(place(column), pack<DTYPE, N>(first));
        store<DTYPE, N>(place(column + HALF), pack<DTYPE, N>(second));
    }
}
#else
__device__ __forceinline__ void bring_queries(const Args& args, const Rows& rows, unsigned char* memory) {
    static_assert(BLOCK_ROWS * CHUNKS % THREADS == 0);
    const uint32_t to = shared_address(memory);
#pragma unroll 4
    for (int i = 0; i < BLOCK_ROWS * CHUNKS / THREADS; i++) {
        const int chunk = i * THREADS + threadIdx.x, at = chunk / CHUNKS, column = (chunk - at * CHUNKS) * 16;
        const char* from = reinterpret_cast<const char*>(args.query + rows.place(args, at, args.query_stride));
        copy_16_bytes(to + place_in_tile<BLOCK_ROWS>(at, column), from + column, 16);
    }
}
#endif

}  // namespace headrace
