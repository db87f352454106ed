// The two kernels of prefill attention as functions that Python calls.
#include "prefill_attention.cu"
#include "prefill_plan.cu"

extern "C" void emulate_attention(int num_blocks, DTYPE* out, const DTYPE* query, const DTYPE* keys,
                                  const DTYPE* values, const int* page_table, const int4* plan, int num_kv_heads,
                                  int group, int group_inverse, int max_pages, int page_units, int window,
                                  long long query_stride, long long page_stride, long long head_stride,
                                  float score_scale, const float* cosines, const float* sines) {
    emulated::launch(num_blocks, WARPS * 32, [=] {
        prefill_attention(out, query, keys, values, page_table, plan, num_kv_heads, group, group_inverse, max_pages,
                          page_units, window, query_stride, page_stride, head_stride, score_scale, cosines, sines);
    });
}

extern "C" void emulate_plan(int4* plan, int* starts, const int* query_starts, const int* lengths, int num_rows,
                             int num_tokens, int group, int block_rows, int num_items, int only_last) {
    emulated::launch(1, 512, [=] {
        prefill_plan(plan, starts, query_starts, lengths, num_rows, num_tokens, group, block_rows, num_items,
                     only_last);
    });
}
