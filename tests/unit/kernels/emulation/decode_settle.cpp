// A piece's end in decode attention as a function that Python calls: each block has one piece, of which its warps' sums
// are given, [num_blocks] of Meeting's.
#include "decode_settle.cuh"

using namespace headrace;

extern "C" void emulate_settle(int num_blocks, DTYPE* out, const int4* plan, float* slots, int* tickets,
                               const float* sums, const float* mosts, const float* weights) {
    emulated::launch(num_blocks, THREADS, [=] {
        const Args args{out, nullptr, nullptr, nullptr, nullptr, nullptr, plan, slots, tickets, 1, 1, 1, 1, 0, 0, 0, 0, 0};
        Meeting& meeting = *reinterpret_cast<Meeting*>(emulated::memory);
        const Walk walk(args);
        const Settlement settlement(args, walk);
        for (int from = 0; from < GROUP; from += MEETING_HEADS) {
            __syncthreads();
            for (int i = threadIdx.x; i < WARPS * MEETING_HEADS; i += THREADS) {
                const int warp = i / MEETING_HEADS, place = i % MEETING_HEADS;
                const int given = (blockIdx.x * WARPS + warp) * GROUP + from + place;
                if (from + place >= GROUP) continue;
                for (int dim = 0; dim < HEAD_DIM; dim++)
                    meeting.sums[warp][place][dim] = sums[static_cast<long long>(given) * HEAD_DIM + dim];
                meeting.mosts[warp][place] = mosts[given], meeting.weights[warp][place] = weights[given];
            }
            __syncthreads();
            settlement.put(meeting, from);
        }
        settlement.finish(meeting);
    });
}
