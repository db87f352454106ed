// An encoder's first layer's input as a function that Python calls.
#include "encoder_embedding.cu"

extern "C" void emulate_embedding(int num_blocks, DTYPE* out, const int64_t* token_ids, const int64_t* positions,
                                  const int64_t* type_ids, const DTYPE* words, const DTYPE* position_table,
                                  const DTYPE* types, const DTYPE* weight, const DTYPE* bias, long long num_tokens,
                                  int num_words, int num_positions, int num_types, int width, float eps) {
    emulated::launch(num_blocks, THREADS, [=] {
        encoder_embedding(out, token_ids, positions, type_ids, words, position_table, types, weight, bias, num_tokens,
                          num_words, num_positions, num_types, width, eps);
    });
}
