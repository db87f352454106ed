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
// an item, by its ticket, puts its slots together [2], in the order of keys: the result does not depend on timing. Many
// slots are put together by several blocks first (decode_settle.cuh).
//
// [1] T. Dao et al. FlashAttention: fast and memory-efficient exact attention with IO-awareness. NeurIPS 2022.
// [2] T. Dao, D. Haziza, F. Massa, G. Sizov. Flash-Decoding for long-context inference. 2023.
#include "copy_async.cuh"
#include "decode_settle.cuh"
#if FUSED
#include "decode_newest.cuh"
#endif

namespace headrace {

// A ring of one tile is two halves, keys and values, each of which is filled again as soon as it has been read.
constexpr bool APART = STAGES == 1;
static_assert(!APART || !FUSED);

// Issues a warp's copies, tile after tile.
struct Feeder {
    Walk walk;
    int tile, batch;     // next tile; tiles since the offsets were read
    uint64_t policy;
    long long offset;    // a lane's: where the batch's tile number ``lane`` lies in a head's pages, elements
    long long from;      // where the tile lies that was entered last
    int num_keys;        // how many of its keys lie there
    bool is_within;      // whether there was one

    // ``guessed``: the page that a lane would look up first if the share began with row ``guessed_row``.
    __device__ __forceinline__ Feeder(const Args& args, const Walk& walk, int guessed_row, int guessed)
        : walk(walk), policy(evict_first_policy()) {
        if (walk.left == 0 || walk.row != guessed_row || walk.begin > 0) enter(args);
        else tile = threadIdx.x / WARP, batch = 0, point_at(args, guessed);
    }

    __device__ __forceinline__ int wanted() const { return tile + threadIdx.x % WARP * WARPS; }

    __device__ __forceinline__ void point_at(const Args& args, int page) {
        offset = page * args.page_stride + wanted() % args.page_tiles * TILE_KEYS * HEAD_DIM;
    }

    __device__ __forceinline__ void look_up(const Args& args) {
        batch = 0;
        if (wanted() < walk.end)
            point_at(args, args.page_table[static_cast<long long>(walk.row) * args.max_pages +
                                           wanted() / args.page_tiles]);
    }

    __device__ __forceinline__ void enter(const Args& args) {
        tile = walk.begin + threadIdx.x / WARP;
        if (walk.left > 0 && tile < walk.end) look_up(args);
    }

    // The next tile's keys, its values, or first the ones and then the others; nothing if the share is at its end. FIRST:
    // before the kernels before this one are known to have ended.
    template <bool FIRST, bool KEYS, bool VALUES>
    __device__ __forceinline__ void feed(const Args& args, uint32_t stage) {
        if (KEYS) enter_tile<FIRST>(args);
        if (is_within && num_keys == TILE_KEYS) {
            if (KEYS) copy_tile<true>(stage, args.keys + from, num_keys);
            if (VALUES) copy_tile<true>(stage + TILE_BYTES, args.values + from, num_keys);
        } else if (is_within) {
            if (KEYS) copy_tile<false>(stage, args.keys + from, num_keys);
            if (VALUES) copy_tile<false>(stage + TILE_BYTES, args.values + from, num_keys);
        }
        commit_copies();
    }

    template <bool FIRST>
    __device__ __forceinline__ void enter_tile(const Args& args) {
        while (walk.left > 0 && tile >= walk.end) walk.next(args), enter(args);
        is_within = walk.left > 0;
        if (!is_within) return;
        // The row's newest key and value are the previous kernel's work.
        if (FIRST && !FUSED && (tile + 1) * TILE_KEYS >= walk.length) wait_for_earlier_kernels();
        if (batch == WARP) look_up(args);
        from = __shfl_sync(ALL_LANES, offset, batch++) + walk.head * args.head_stride;
        num_keys = min(walk.length - FUSED - tile * TILE_KEYS, TILE_KEYS);
        tile += WARPS;
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

}  // namespace headrace

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    decode_attention(DTYPE* out, const DTYPE* query, const DTYPE* keys, const DTYPE* values, const int* page_table,
                     const int* lengths, const int4* plan, float* slots, int* tickets, int num_rows, int num_kv_heads,
                     int max_pages, int page_tiles, int window, long long query_stride, long long page_stride,
                     long long head_stride, float score_scale, int old_is_settled
#if FUSED
                     ,
                     DTYPE* new_keys, DTYPE* new_values, const float* cosines, const float* sines,
                     const DTYPE* query_norm, const DTYPE* key_norm, float eps
#endif
    ) {
    using namespace headrace;
    extern __shared__ __align__(128) unsigned char memory[];
    // the warps' rings, what fragments keep there, the meeting, the newest token
    constexpr int RINGS = WARPS * STAGES * 2 * TILE_BYTES, PRIVATE = WARPS * sizeof(Private);
    const int warp = threadIdx.x / WARP;
    unsigned char* ring = memory + warp * STAGES * 2 * TILE_BYTES;
    Private& own = reinterpret_cast<Private*>(memory + RINGS)[warp];
    Meeting& meeting = *reinterpret_cast<Meeting*>(memory + RINGS + PRIVATE);
    const Args args{out,      query,        keys,      values,     page_table, lengths,      plan,        slots,       tickets,
                    num_rows, num_kv_heads, max_pages, page_tiles, window,     query_stride, page_stride, head_stride, score_scale};
    if (!old_is_settled) wait_for_earlier_kernels();
    // Most often, a step of few rows gives each (row, head) to a block, in order: then pages come together with the plan.
    const int guessed_row = blockIdx.x / num_kv_heads, turn = (warp + threadIdx.x % WARP * WARPS) / page_tiles;
    const bool guesses = guessed_row < num_rows && turn < max_pages;
    const int guessed = guesses ? page_table[static_cast<long long>(guessed_row) * max_pages + turn] : 0;
    Walk walk(args);
    Feeder feeder(args, walk, guessed_row, guessed);
    for (int i = 0; i < STAGES; i++) {
        const uint32_t to = shared_address(ring) + i * 2 * TILE_BYTES;
        if (APART) feeder.feed<true, true, false>(args, to), feeder.feed<true, false, true>(args, to);
        else feeder.feed<true, true, true>(args, to);
    }
    Fragments fragments;
#if FUSED
    Newest& newest = *reinterpret_cast<Newest*>(memory + RINGS + PRIVATE + sizeof(Meeting));
    const NewestArgs more{new_keys, new_values, cosines, sines, query_norm, key_norm, eps};
    NewestHeads heads(args, more, walk);
    constexpr bool STARTS_EARLY = false;
    const auto start = [&] {
        heads.make(newest, args, more, walk);
        __syncthreads();
        fragments.start(newest.query[0], NEWEST_PITCH, own);
    };
#else
    constexpr bool STARTS_EARLY = Fragments::STARTS_EARLY;
    const auto start = [&] {
        fragments.start(query + walk.row * query_stride + walk.head * GROUP * HEAD_DIM, HEAD_DIM, own);
    };
#endif
    wait_for_earlier_kernels();
    // Only now: then whatever starts early after this one may count on all that was before it.
    let_next_kernel_start();
    if (walk.left > 0) start();
    int stage = 0;
    while (walk.left > 0) {
        for (int tile = walk.begin + warp; tile < walk.end; tile += WARPS) {
            wait_for_copies<APART ? 1 : STAGES - 1>();
            __syncwarp();
            unsigned char* at = ring + stage * 2 * TILE_BYTES;
            const int first_key = tile * TILE_KEYS, num_keys = min(walk.length - first_key, TILE_KEYS);
#if FUSED
            if (first_key + TILE_KEYS >= walk.length) newest.join(at, num_keys - 1);
#endif
            const uint32_t address = shared_address(at);
            fragments.add(address, address + TILE_BYTES, window > 0 ? max(walk.length - window - first_key, 0) : 0,
                          num_keys, score_scale, own, [&] {
                              if (!APART) return;
                              __syncwarp();
                              feeder.feed<false, true, false>(args, address);
                              wait_for_copies<1>();
                              __syncwarp();
                          });
            __syncwarp();
            feeder.feed<false, !APART, true>(args, address);
            if (++stage == STAGES) stage = 0;
        }
        const auto meet = [&](int c) {
            // Whoever is late with the sums before is done with them.
            __syncthreads();
            fragments.give(c, meeting.sums[warp], meeting.mosts[warp], meeting.weights[warp]);
            __syncthreads();
        };
        meet(0);
        const Settlement settlement(args, walk);
        if (MEETINGS > 1) settlement.put(meeting, 0), meet(MEETINGS - 1);
        walk.next(args);
        // If registers suffice, the next queries are under way while the sums are settled.
        if (STARTS_EARLY && walk.left > 0) start();
        settlement.put(meeting, MEETINGS > 1 ? MEETING_HEADS : 0);
        settlement.finish(meeting);
        if (!STARTS_EARLY && walk.left > 0) {
#if FUSED
            heads = NewestHeads(args, more, walk);
#endif
            start();
        }
    }
    // Padding, last and from the last block on: those have least to do.
    for (int row = gridDim.x - 1 - blockIdx.x; row < num_rows; row += gridDim.x)
        if (lengths[row] == 0)
            for (int i = threadIdx.x; i < num_kv_heads * GROUP * HEAD_DIM; i += THREADS)
                out[static_cast<long long>(row) * num_kv_heads * GROUP * HEAD_DIM + i] = from_float<DTYPE>(0.f);
}
