// Tokens attend to all tokens of their own row, before and behind them; rows of any lengths, packed without padding.
//
//   out [num_tokens, num_heads * HEAD_SIZE]; qkv [num_tokens, 3 * num_heads * HEAD_SIZE]: query heads, key heads, value
//   heads; bias [3 * num_heads * HEAD_SIZE] or none, the product's; items {row's first token, row's length, first query,
//   unused}, for BLOCK_ROWS queries each; an item of length 0 is none.
//
// A block computes one item for one head. It walks over the row's keys in tiles of BLOCK_KEYS, two of which are in
// shared memory: one is copied while the other is used. The softmax is [1]'s, one tile at a time.
//
// A token's result has the same bits whatever rows are beside its own.
//
// [1] T. Dao. FlashAttention-2: faster attention with better parallelism and work partitioning. ICLR 2024
//     (arXiv:2307.08691).
#if IS_FP32
#include "encoder_exact.cuh"
#else
#include "encoder_fragments.cuh"
#endif

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS)
    encoder_attention(DTYPE* out, const DTYPE* qkv, const DTYPE* bias, const int4* items, int num_heads,
                      float score_scale) {
    using namespace headrace;
    // queries, two stages of keys and values, weights on their way between lanes (fp32)
    extern __shared__ __align__(WARPGROUPS ? 1024 : 128) unsigned char memory[];
    let_next_kernel_start();
    wait_for_earlier_kernels();
    const int4 entry = items[blockIdx.x / num_heads];
    const Item item{entry.x, entry.y, entry.z, static_cast<int>(blockIdx.x % num_heads), num_heads * HEAD_SIZE};
    if (item.length == 0) return;
    const uint32_t queries = shared_address(memory), ring = queries + QUERY_BYTES;
    copy_tile(qkv, item, 0, ring);
    load_queries(qkv, bias, item, memory);
    Fragments fragments;
    const int num_tiles = item.num_tiles();
    for (int tile = 0; tile < num_tiles; tile++) {
        const int at = tile % 2 * 2 * TILE_BYTES, num_keys = item.length - tile * BLOCK_KEYS;
        wait_for_copies<0>();
        if (WARPGROUPS) show_to_products();
        // The tile has come, and the one before it is no longer needed.
        __syncthreads();
        if (tile + 1 < num_tiles) copy_tile(qkv, item, tile + 1, ring + (at ^ 2 * TILE_BYTES));
#if IS_FP32
        float* parts = reinterpret_cast<float*>(memory + QUERY_BYTES + 4 * TILE_BYTES);
        fragments.add(memory, memory + QUERY_BYTES + at, parts, num_keys, score_scale);
#else
        fragments.add(queries, ring + at, num_keys, score_scale);
#endif
    }
    const DTYPE* value_bias = bias ? bias + 2 * item.width + item.head * HEAD_SIZE : nullptr;
    const long long first = static_cast<long long>(item.first_token) + item.first_query;
    fragments.write(out + first * item.width + item.head * HEAD_SIZE, value_bias, item, memory);
}
