// The warps of a block of prefill_ring that bring what its groups of four multiply: one takes items from the plan and
// fills the ring with their keys, one brings their values, one their queries.
#pragma once

#include "prefill_item.cuh"

namespace headrace {

// Where one warp is on its way through a block's tiles of keys, or of values.
struct Feeder {
    const Args& args;
    const TensorMap& map;
    const Shared shared;
    const int lane = threadIdx.x % WARP;
    Turn turn;
    int row = -1;  // in the memory of keys: this lane's of 32 neighbouring units; negative: nothing is looked up

    static constexpr int TILES_A_WARP = WARP / UNITS;

    __device__ __forceinline__ void look_up(const Item& item, int tile) {
        const int unit = tile * UNITS + lane, key = unit * UNIT_KEYS;
        row = -1;
        // Pages before a window may be another row's by now.
        if (key >= item.end || key + UNIT_KEYS <= item.begin) return;
        const int page = unit / args.page_units;
        row = args.page_table[static_cast<long long>(item.row) * args.max_pages + page] * args.page_rows +
              item.head * args.head_rows + key - page * args.page_units * UNIT_KEYS;
    }

    // ``near_end`` is called once, STAGES tiles before the item's last one is asked for.
    template <bool VALUES, typename Call>
    __device__ __forceinline__ void feed(const Item& item, const Call& near_end) {
        const int first = item.first_tile(), last = item.last_tile(), near = max(last - STAGES, first);
#pragma unroll 1
        for (int tile = first; tile < last; tile++) {
            const int since = (tile - first) % TILES_A_WARP;
            if (tile == near) near_end();
            if (since == 0) look_up(item, tile);
            feed_tile<VALUES>(item, tile, since);
            turn.next<STAGES>();
        }
        if (first >= last) near_end();
    }

    // Of values, the copy engine brings units that somebody sees as a whole; of keys, all that somebody sees of.
    template <bool VALUES>
    __device__ __forceinline__ void feed_tile(const Item& item, int tile, int since) {
        const int unit = lane / PANELS % UNITS, column = lane % PANELS * (PANEL_BYTES / int(sizeof(DTYPE)));
        const int from = __shfl_sync(ALL_LANES, row, since * UNITS + unit);
        const int key = tile * BLOCK_KEYS + unit * UNIT_KEYS;
        const bool wanted = lane < PANELS * UNITS && from >= 0 && (!VALUES || key + UNIT_KEYS <= item.end);
        const int num_boxes = __reduce_add_sync(ALL_LANES, wanted);
        const uint32_t full = VALUES ? shared.values_full(turn.stage) : shared.keys_full(turn.stage);
        const uint32_t tile_at = VALUES ? shared.values(turn.stage) : shared.keys(turn.stage);
        barrier_wait(VALUES ? shared.values_empty(turn.stage) : shared.keys_empty(turn.stage), turn.phase ^ 1);
        if (VALUES && num_boxes < PANELS * UNITS) fill_up(item, tile, since);
        if (lane == 0) barrier_arrive_expecting(full, num_boxes * UNIT_KEYS * PANEL_BYTES);
        __syncwarp();
        const int to = lane % PANELS * BLOCK_KEYS * PANEL_BYTES + unit * UNIT_KEYS * PANEL_BYTES;
        if (wanted) copy_box(tile_at + to, map, from, column, full);
    }

    // Values that no pair sees become zeros: what lies there may be no number, and its weight of 0 would not help.
    __device__ __forceinline__ void fill_up(const Item& item, int tile, int since) const {
#pragma unroll 1
        for (int unit = 0; unit < UNITS; unit++) {
            const int key = tile * BLOCK_KEYS + unit * UNIT_KEYS;
            const int from = __shfl_sync(ALL_LANES, row, since * UNITS + unit);
            if (from >= 0 && key + UNIT_KEYS <= item.end) continue;
#pragma unroll 1
            for (int chunk = lane; chunk < UNIT_KEYS * CHUNKS; chunk += WARP) {
                const int at = chunk / CHUNKS, column = (chunk - at * CHUNKS) * 16;
                const DTYPE* row_of_values = args.values + static_cast<long long>(from + at) * HEAD_DIM;
                uint4 value = make_uint4(0, 0, 0, 0);
                if (from >= 0 && key + at < item.end)
                    value = *reinterpret_cast<const uint4*>(row_of_values + column / sizeof(DTYPE));
                const int row_in_tile = unit * UNIT_KEYS + at;
                write_shared(shared.values(turn.stage) + place_in_tile<BLOCK_KEYS>(row_in_tile, column), value);
            }
        }
        show_to_products();
        __syncwarp();
    }
};

// Takes items in the plan's order, each the next one that no block has, and tells the other warps of them: some tiles
// before it is through with one, of the next, so that queries come in time, and no block has many before it. The plan
// counts what is taken. The last block to end counts anew, for the next launch.
struct Taker {
    const Args& args;
    const Shared shared;
    Item* const items;
    int taken = 0;

    __device__ __forceinline__ const Item& newest() const { return items[(taken - 1) % ITEMS]; }

    // The block's first item is its own; others are as many behind as there are blocks and were taken before.
    __device__ __forceinline__ void take() {
        const int slot = taken % ITEMS;
        barrier_wait(shared.item_empty(slot), taken / ITEMS % 2 ^ 1);
        if (threadIdx.x % WARP == 0) {
            const int work = taken ? gridDim.x + atomicAdd(&args.plan[1].y, 1) : blockIdx.x;
            const int4* entry = args.plan + work / args.num_kv_heads * 2;
            Item& item = items[slot];
            item.row = -1;
            if (work < args.num_items * args.num_kv_heads && entry->x >= 0)
                item.set(args, entry[0], entry[1].x, work % args.num_kv_heads);
            barrier_arrive(shared.item_full(slot));
        }
        __syncwarp();
        taken++;
    }
    __device__ __forceinline__ void end() const {
        if (threadIdx.x % WARP > 0) return;
        __threadfence();
        if (atomicAdd(&args.plan[1].z, 1) == static_cast<int>(gridDim.x) - 1) args.plan[1].y = args.plan[1].z = 0;
    }
};

// Keys of all items, by one warp.
__device__ __forceinline__ void feed_keys(const Args& args, const Shared& shared, Item* items, const TensorMap& keys) {
    Feeder feeder{args, keys, shared};
    Taker taker{args, shared, items};
    taker.take();
    while (taker.newest().row >= 0) feeder.feed<false>(taker.newest(), [&] { taker.take(); });
    taker.end();
}

// Their values, by another warp.
__device__ __forceinline__ void feed_values(const Args& args, const Shared& shared, const Item* items,
                                            const TensorMap& values) {
    Feeder feeder{args, values, shared};
    for (Turn slot;; slot.next<ITEMS>()) {
        barrier_wait(shared.item_full(slot.stage), slot.phase);
        const Item& item = items[slot.stage];
        if (item.row < 0) return;
        feeder.feed<true>(item, [] {});
        __syncwarp();
        if (feeder.lane == 0) barrier_arrive(shared.item_empty(slot.stage));
    }
}

// Queries of a block's items, as soon as a group has those before: the work of QUERY_WARPS warps, each a row a
// lane. One by one by the copy engine, a block's rows would take longer than most of its keys.
__device__ __forceinline__ void bring_queries(const Args& args, const Shared& shared, const Item* items, int part) {
    const int lane = threadIdx.x % WARP;
    const uint64_t policy = evict_first_policy();
    const uint32_t held = shared.held(0) + part * WARP * ROW_BYTES;
    static_assert(TEAM_ROWS == QUERY_WARPS * WARP && WARP % CHUNKS == 0);
    uint32_t phases = ~0u;  // of each team's queries
    for (Turn slot;; slot.next<ITEMS>()) {
        barrier_wait(shared.item_full(slot.stage), slot.phase);
        const Item& item = items[slot.stage];
        if (item.row < 0) return;
#pragma unroll 1
        for (int team = 0; team * TEAM_ROWS < item.count; team++, phases ^= 1u << team - 1) {
            barrier_wait(shared.query_empty(team), phases >> team & 1);
            // In 16 bytes, of this lane's row; each is copied by as many lanes as it has of them.
            const int own = item.place(args, team * TEAM_ROWS + part * WARP + lane, args.query_stride) / FULL<DTYPE>;
#pragma unroll 4
            for (int i = 0; i < CHUNKS; i++) {
                const int row = i * (WARP / CHUNKS) + lane / CHUNKS, column = lane % CHUNKS * 16;
                const long long from = static_cast<long long>(__shfl_sync(ALL_LANES, own, row)) * 16 + column;
                const uint32_t to = held + team * HELD_BYTES + row * ROW_BYTES + swizzled(row, column);
                copy_16_bytes(to, reinterpret_cast<const char*>(args.query) + from, 16, policy);
            }
            barrier_arrive_when_copied(shared.query_full(team));
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(shared.item_empty(slot.stage));
    }
}

}  // namespace headrace
