// What becomes of a drawn token.
#pragma once

#include "sampling.cuh"

namespace headrace {

// Write a row's token, also to where the next step reads it, and count it.
__device__ __forceinline__ void finish(int64_t* token_ids, bool* valid, int64_t row, int64_t place, uint64_t key, bool sound,
                                       const Parameters& of) {
    const int token = sound ? token_of(key) : 0;
    token_ids[row] = token;
    valid[row] = sound;
    if (of.last_token) of.last_token[place] = token;
#if PENALISED
    const int slot = of.slots[place];
    if (slot >= 0 && sound) {
        short& count = of.counts[slot * of.counts_stride + token];
        if ((count & (IN_PROMPT - 1)) != IN_PROMPT - 1) count++;
    }
#endif
}

}  // namespace headrace
