// Prefill attention by the bulk copy engine, and its plan, as functions that Python calls.
#include "prefill_ring.cu"
#include "prefill_plan.cu"

extern "C" int shared_bytes() { return headrace::Shared::BYTES; }

extern "C" void emulate_attention(int num_blocks, DTYPE* out, const DTYPE* query, const int* page_table, int4* plan,
                                  const float* cosines, const float* sines, const headrace::Map* keys,
                                  const headrace::Map* value_map, const DTYPE* values, int num_kv_heads, int group,
                                  int group_inverse, int max_pages, int page_units, int window, int num_items,
                                  int page_rows, int head_rows, long long query_stride, float score_scale,
                                  unsigned chance) {
    headrace::TensorMap key_map, other_map;
    memcpy(key_map.encoded, keys, sizeof(*keys)), memcpy(other_map.encoded, value_map, sizeof(*value_map));
    emulated::chance = chance;
    emulated::launch(num_blocks, (GROUPS + 1) * 128, [=] {
        prefill_ring(out, query, page_table, plan, cosines, sines, key_map, other_map, values, num_kv_heads, group,
                     group_inverse, max_pages, page_units, window, num_items, page_rows, head_rows, query_stride,
                     score_scale);
    });
}

extern "C" void emulate_plan(int4* plan, int* starts, const int* query_starts, const int* lengths, int num_rows,
                             int num_tokens, int group, int block_rows, int num_items, int only_last) {
    emulated::launch(1, 512, [=] {
        prefill_plan(plan, starts, query_starts, lengths, num_rows, num_tokens, group, block_rows, num_items,
                     only_last);
    });
}
