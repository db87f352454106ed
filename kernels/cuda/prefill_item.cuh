// What a block of prefill_ring computes at a time, and where in shared memory its warps hand things on.
//
// Macros: DTYPE, HEAD_DIM, GROUPS, STAGES, BLOCK_ROWS, BLOCK_KEYS.
#pragma once

#include "head_tiles.cuh"
#include "tensor_copy.cuh"

namespace headrace {

constexpr int UNIT_KEYS = 16;  // neighbours in memory, whatever the page size
constexpr int UNITS = BLOCK_KEYS / UNIT_KEYS, PANELS = ROW_BYTES / PANEL_BYTES;
constexpr int TEAM_ROWS = 64, TEAM_WARPS = 4, QUERY_WARPS = 2, ITEMS = 4;
constexpr int HELD_BYTES = TEAM_ROWS * ROW_BYTES;
static_assert(PANEL_BYTES == 128 && SWIZZLED && BLOCK_ROWS == GROUPS * TEAM_ROWS);

struct Args {
    DTYPE* out;
    const DTYPE *query, *values;
    const int* page_table;
    int4* plan;
    const float *cosines, *sines;  // [num_tokens, HEAD_DIM / 2], where queries come as they were before rotation
    int num_kv_heads, group, group_inverse;  // group_inverse: 65536 / group + 1
    int max_pages, page_units, window, num_items;
    int page_rows, head_rows;  // of HEAD_DIM numbers, from a page to the next, and from a head
    long long query_stride;
    float score_scale;  // softmax's, times log2(e)
};

// Pairs of a query token and one of the ``group`` heads that share a head of keys, in this order, up to BLOCK_ROWS of
// them; and the keys that any of them sees, in tiles of BLOCK_KEYS that begin at multiples of that.
struct Item {
    int row, first_token, queries, length;  // of the page table, -1: no more items; of the row in the step; the row's
    int token, before, count, head;         // of the first pair; pairs of that token before it; pairs; of keys
    int begin, end;                         // keys seen

    // What an item of the plan lacks of BLOCK_ROWS pairs, a row's first item lacks here instead of its last one, which
    // sees the most keys.
    __device__ __forceinline__ void set(const Args& args, const int4& entry, int row_length, int kv_head) {
        const int pairs = entry.w * args.group, rest = pairs % BLOCK_ROWS;
        const int past = entry.y + (rest ? rest : BLOCK_ROWS), first = max(past - BLOCK_ROWS, 0);
        row = entry.x, first_token = entry.z, queries = entry.w, length = row_length;
        token = first / args.group, before = first - token * args.group, count = past - first, head = kv_head;
        begin = args.window > 0 ? max(limit(args, 0) - args.window, 0) : 0;
        end = length > 0 ? limit(args, count - 1) : 0;
    }

    // pairs / group, which is exact for pairs * group < 65536.
    static __device__ __forceinline__ int tokens_in(const Args& args, int pairs) {
        return pairs * args.group_inverse >> 16;
    }
    // Of an item's pair. Pairs behind the row's last are the last token's.
    __device__ __forceinline__ int token_of(const Args& args, int i) const {
        return min(token + tokens_in(args, before + i), queries - 1);
    }
    __device__ __forceinline__ long long token_in_step(const Args& args, int i) const {
        return first_token + token_of(args, i);
    }
    // Where a pair lies in a tensor [tokens, heads, HEAD_DIM] whose tokens are ``stride`` elements apart.
    __device__ __forceinline__ long long place(const Args& args, int i, long long stride) const {
        const int member = before + i - tokens_in(args, before + i) * args.group;
        return token_in_step(args, i) * stride + (head * args.group + member) * HEAD_DIM;
    }
    // The first key behind those that a pair sees; not above 0 if it sees none.
    __device__ __forceinline__ int limit(const Args& args, int i) const {
        return length - queries + token_of(args, i) + 1;
    }
    __device__ __forceinline__ int first_tile() const { return begin / BLOCK_KEYS; }
    __device__ __forceinline__ int last_tile() const { return (end + BLOCK_KEYS - 1) / BLOCK_KEYS; }
};

// A stage of the ring, and how often it has been gone round, by its last bit.
struct Turn {
    int stage = 0, phase = 0;

    template <int NUM_STAGES>
    __device__ __forceinline__ void next() {
        if (++stage == NUM_STAGES) stage = 0, phase ^= 1;
    }
};

// Shared memory: tiles of keys and values; queries where products read them from there, and on their way to the groups;
// barriers; items.
struct Shared {
    uint32_t base;

    static constexpr int QUERIES = 2 * STAGES * TILE_BYTES;
    static constexpr int HELD = QUERIES + (HELD_STEPS == HEAD_DIM / 16 ? 0 : GROUPS * TEAM_ROWS * ROW_BYTES);
    static constexpr int BARRIERS = HELD + GROUPS * HELD_BYTES;
    static constexpr int NUM_BARRIERS = 4 * STAGES + 2 * GROUPS + 2 * ITEMS;
    static constexpr int FIRST_ITEM = BARRIERS + NUM_BARRIERS * 8;
    static constexpr int BYTES = FIRST_ITEM + ITEMS * sizeof(Item);

    __device__ __forceinline__ uint32_t keys(int stage) const { return base + 2 * stage * TILE_BYTES; }
    __device__ __forceinline__ uint32_t values(int stage) const { return keys(stage) + TILE_BYTES; }
    __device__ __forceinline__ uint32_t queries(int team) const { return base + QUERIES + team * HELD_BYTES; }
    __device__ __forceinline__ uint32_t held(int team) const { return base + HELD + team * HELD_BYTES; }
    __device__ __forceinline__ uint32_t barrier(int i) const { return base + BARRIERS + i * 8; }
    __device__ __forceinline__ uint32_t keys_full(int stage) const { return barrier(stage); }
    __device__ __forceinline__ uint32_t keys_empty(int stage) const { return barrier(STAGES + stage); }
    __device__ __forceinline__ uint32_t values_full(int stage) const { return barrier(2 * STAGES + stage); }
    __device__ __forceinline__ uint32_t values_empty(int stage) const { return barrier(3 * STAGES + stage); }
    __device__ __forceinline__ uint32_t query_full(int team) const { return barrier(4 * STAGES + team); }
    __device__ __forceinline__ uint32_t query_empty(int team) const { return barrier(4 * STAGES + GROUPS + team); }
    __device__ __forceinline__ uint32_t item_full(int slot) const { return barrier(4 * STAGES + 2 * GROUPS + slot); }
    __device__ __forceinline__ uint32_t item_empty(int slot) const { return item_full(ITEMS + slot); }

    // By all warps: an initialisation takes long.
    __device__ __forceinline__ void init_barriers() const {
        const int warp = threadIdx.x / WARP, num_warps = TEAM_WARPS * (GROUPS + 1);
        for (int i = warp; threadIdx.x % WARP == 0 && i < NUM_BARRIERS; i += num_warps) {
            const int other = i - 4 * STAGES;
            int arrivals = 1;  // a stage's, or an item's, when it is full
            if (i < 4 * STAGES) arrivals = i / STAGES % 2 ? TEAM_WARPS * GROUPS : 1;
            else if (other < 2 * GROUPS) arrivals = (other < GROUPS ? QUERY_WARPS : TEAM_WARPS) * WARP;
            else if (other >= 2 * GROUPS + ITEMS) arrivals = TEAM_WARPS * GROUPS + 1 + QUERY_WARPS;
            barrier_init(barrier(i), arrivals);
        }
    }
};

}  // namespace headrace
