// Rows of several query tokens attend to their keys and values in pages, which hold these tokens' own already: query i
// of a row with q queries and n keys sees keys 0 to n - q + i, and of these the last ``window`` (0: all).
//
//   out [num_tokens, num_kv_heads * group, HEAD_DIM]; query the same, tokens query_stride elements apart;
//   cosines, sines [num_tokens, HEAD_DIM / 2] fp32, with which queries are rotated on their way where ROTATES is 1, the
//   first half of a head against the second;
//   keys, values: a page's keys of one head are [page_units * 16, HEAD_DIM], contiguous; pages page_stride elements
//   apart, heads head_stride; page_table [num_rows, max_pages]; plan from prefill_plan.cu.
//
// A block computes an item of the plan for one head of keys: BLOCK_ROWS pairs of a token and one of the group heads
// that share it, so that keys and values are read once for all of a group. It walks over its keys in tiles of
// BLOCK_KEYS, two of which are in shared memory: one is copied while the other is used. The softmax is [1]'s, one tile
// at a time.
//
// Tiles begin at multiples of BLOCK_KEYS and come in their order, each row's arithmetic is its own, and a tile that a
// row does not see changes nothing of it: a token's result has the same bits whatever rows are beside it, and however
// its prompt was cut into steps.
//
// [1] T. Dao. FlashAttention-2: faster attention with better parallelism and work partitioning. ICLR 2024
//     (arXiv:2307.08691).
#if IS_FP32
#include "prefill_exact.cuh"
#else
#include "prefill_fragments.cuh"
#endif

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    prefill_attention(DTYPE* out, const DTYPE* query, const DTYPE* keys, const DTYPE* values, const int* page_table,
                      const int4* plan, int num_kv_heads, int group, int group_inverse, int max_pages, int page_units,
                      int window, long long query_stride, long long page_stride, long long head_stride,
                      float score_scale, const float* cosines, const float* sines) {
    using namespace headrace;
    // queries, two stages of keys and values, weights on their way between lanes (fp32)
    extern __shared__ __align__(WARPGROUPS ? 1024 : 128) unsigned char memory[];
    const Args args{out,           query,     keys,       values, page_table,   plan,        num_kv_heads, group,
                    group_inverse, max_pages, page_units, window, query_stride, page_stride, head_stride,  score_scale,
                    cosines,       sines};
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int4* item = plan + blockIdx.x / num_kv_heads * 2;
    const int4 entry = item[0];
    if (entry.x < 0) return;
    __shared__ Rows rows;
    if (threadIdx.x == 0) rows.set(args, entry, item[1].x);
    __syncthreads();
    const uint32_t queries = shared_address(memory), ring = queries + QUERY_BYTES;
    // Looked up again where registers are scarce.
    const auto last = [&, end = rows.last_tile()] { return WARPGROUPS ? rows.last_tile() : end; };
    int tile = rows.first_tile();
    if (tile < last()) {
        bring_queries(args, rows, memory);
        Feeder::feed(args, rows, tile, ring + tile % 2 * 2 * TILE_BYTES);
    }
    Fragments fragments(args, rows);
    for (; tile < last(); tile++) {
        const int at = tile % 2 * 2 * TILE_BYTES;
        wait_for_copies<0>();
        if (WARPGROUPS) show_to_products();
        // The tile has come, and the one before it is no longer needed.
        __syncthreads();
        if (tile + 1 < last()) Feeder::feed(args, rows, tile + 1, ring + (at ^ 2 * TILE_BYTES));
#if IS_FP32
        float* parts = reinterpret_cast<float*>(memory + QUERY_BYTES + 4 * TILE_BYTES);
        fragments.add(memory, memory + QUERY_BYTES + at, parts, tile * BLOCK_KEYS, args, rows);
#else
        fragments.add(queries, ring + at, tile * BLOCK_KEYS, args, rows);
#endif
    }
    fragments.write(args, rows, memory);
}
