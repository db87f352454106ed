// The kernels of sampling, one after the other, as one function that Python calls.
#include "sampling.cu"
// They share a header, and nothing else.
#include "search.cu"

extern "C" void emulate_sampling(int num_rows, int search_blocks, int64_t* token_ids, bool* valid, const DTYPE* logits,
                                 long long stride, int vocab, float* workspace, const Parameters* given) {
    const Parameters of = *given;
    const unsigned rows = num_rows, segments = (vocab + SEGMENT - 1) / SEGMENT;
    const Index scan{(segments + SCAN_WARPS - 1) / SCAN_WARPS, rows};
    const int searches = search_blocks > 0;
    emulated::launch(scan, SCAN_WARPS * WARP, [=] { sample_scan(logits, stride, vocab, workspace, of); });
    emulated::launch(rows, THREADS, [=] { sample_pick(token_ids, valid, logits, stride, vocab, workspace, searches, of); });
    if (!searches) return;
    emulated::launch(Index{unsigned(search_blocks), rows}, THREADS, [=] { search_bins(logits, stride, vocab, workspace, of); });
    emulated::launch(scan, SCAN_WARPS * WARP, [=] { search_sums(logits, stride, vocab, workspace, of); });
    emulated::launch(rows, THREADS, [=] { search_pick(token_ids, valid, logits, stride, vocab, workspace, of); });
}
