// Encoders' attention as a function that Python calls.
#include "encoder_attention.cu"

extern "C" void emulate_attention(int num_blocks, DTYPE* out, const DTYPE* qkv, const DTYPE* bias, const int4* items,
                                  int num_heads, float score_scale) {
    emulated::launch(num_blocks, WARPS * 32,
                     [=] { encoder_attention(out, qkv, bias, items, num_heads, score_scale); });
}
