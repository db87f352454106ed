// The kernel that shares decode attention's work out, as a function that Python calls.
#include "decode_plan.cu"

extern "C" void emulate_decode_plan(int4* plan, int* starts, const int* lengths, int num_rows, int num_kv_heads,
                                    int window, int num_shares, int num_blocks, int least_units, int whole_units,
                                    int segment_tiles) {
    emulated::launch(num_rows <= FEW_ROWS ? (num_blocks + 511) / 512 : 1, 512, [=] {
        decode_plan(plan, starts, lengths, num_rows, num_kv_heads, window, num_shares, num_blocks, least_units,
                    whole_units, segment_tiles);
    });
}
