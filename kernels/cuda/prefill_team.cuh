// A group of four warps of prefill_ring: the running softmax of its 64 rows of each item over the tiles of the ring.
//
// No group waits for another. While one weighs scores, the others multiply.
#pragma once

#include "attention_fragments.cuh"
#include "named_barrier.cuh"
#include "panel_products.cuh"
#include "prefill_item.cuh"
#include "quad.cuh"
#include "rotate_pair.cuh"

namespace headrace {

struct Team {
    const Args& args;
    const Shared shared;
    const int number;  // the same in all lanes
    Turn turn, query_turn;
    uint32_t held[HELD_STEPS + !HELD_STEPS][4];  // queries' first numbers, as the left side of products

    __device__ __forceinline__ void attend(const Item* items) {
        for (Turn slot;; slot.next<ITEMS>()) {
            barrier_wait(shared.item_full(slot.stage), slot.phase);
            const Item& item = items[slot.stage];
            if (item.row < 0) return;
            const int first_row = number * TEAM_ROWS;
            if (first_row < item.count) attend(item);
            else skip(item.last_tile() - item.first_tile());
            __syncwarp();
            tell(shared.item_empty(slot.stage));
        }
    }

    // A tile that a row does not see leaves that row's sums as they are, to the bit.
    __device__ __forceinline__ void attend(const Item& item) {
        const int first_row = number * TEAM_ROWS, last_row = min(first_row + TEAM_ROWS, item.count) - 1;
        const int least_limit = item.limit(args, first_row), greatest_limit = item.limit(args, last_row);
        const int least_begin = args.window > 0 ? max(least_limit - args.window, 0) : 0;
        const int greatest_begin = args.window > 0 ? greatest_limit - args.window : 0;
        const int first = max(least_begin / BLOCK_KEYS, item.first_tile());
        const int last = item.length > 0 ? (greatest_limit + BLOCK_KEYS - 1) / BLOCK_KEYS : first;
        take_queries(item);
        TileSoftmax softmax;
        skip(min(first, item.last_tile()) - item.first_tile());
        if (first < last) {
            TileSoftmax::Scores score;
            uint32_t weights[TileSoftmax::KEY_TILES][4];
            const auto weigh = [&](int tile, TileSoftmax::Factors& factor) {
                const int first_key = tile * BLOCK_KEYS;
                if (least_limit < first_key + BLOCK_KEYS || greatest_begin > first_key) mask(score, item, first_key);
                return softmax.weigh<true>(score, args.score_scale, factor);
            };
            auto& scores = reinterpret_cast<float(&)[32]>(score);
            auto& sums = reinterpret_cast<float(&)[8 * TileSoftmax::STEPS]>(softmax.sums);
            begin_scores(score, turn);
            wait_for_products(scores);
            tell(shared.keys_empty(turn.stage));
            TileSoftmax::Factors factor;
            if (weigh(first, factor)) softmax.rescale(factor);
            pack(weights, score);
#pragma unroll 1
            for (int tile = first + 1; tile < last; tile++) {
                const Turn before = turn;
                turn.next<STAGES>();
                begin_scores(score, turn);
                begin_sums(sums, weights, before);
                wait_for_products<1>();
                pin(scores);
                tell(shared.keys_empty(turn.stage));
                const bool rescaled = weigh(tile, factor);
                pin(scores);
                // Long there. But were there no branch in between, ptxas would wait for the sums before it weighs.
                barrier_wait(shared.values_full(before.stage), before.phase);
                wait_for_products(sums);
                keep(weights);
                tell(shared.values_empty(before.stage));
                if (rescaled) softmax.rescale(factor);
                pack(weights, score);
            }
            begin_sums(sums, weights, turn);
            wait_for_products(sums);
            keep(weights);
            tell(shared.values_empty(turn.stage));
            turn.next<STAGES>();
        }
        skip(item.last_tile() - max(last, min(first, item.last_tile())));
        write(softmax, item);
    }

    // Of tiles that are of no use here. The barriers count everybody, each time round.
    __device__ __forceinline__ void skip(int num_tiles) {
#pragma unroll 1
        for (int i = 0; i < num_tiles; i++, turn.next<STAGES>()) {
            barrier_wait(shared.keys_full(turn.stage), turn.phase);
            tell(shared.keys_empty(turn.stage));
            barrier_wait(shared.values_full(turn.stage), turn.phase);
            tell(shared.values_empty(turn.stage));
        }
    }

    static __device__ __forceinline__ void tell(uint32_t barrier) {
        if (thread_index() % WARP == 0) barrier_arrive(barrier);
    }

    __device__ __forceinline__ void begin_scores(TileSoftmax::Scores& score, const Turn& at) const {
        auto& results = reinterpret_cast<float(&)[32]>(score);
        barrier_wait(shared.keys_full(at.stage), at.phase);
        const Matrix b = rows_matrix(shared.keys(at.stage));
        begin_products();
#pragma unroll
        for (int s = 0; s < TileSoftmax::STEPS; s++) {
            const int panel = s * 32 / PANEL_BYTES * PANEL_BYTES, column = s * 32 % PANEL_BYTES;
            const Matrix right = moved(b, panel * BLOCK_KEYS + column);
            const Matrix a = rows_matrix(shared.queries(number));
            if (s < HELD_STEPS) multiply_held_rows<DTYPE>(results, held[s % (HELD_STEPS + !HELD_STEPS)], right, s > 0);
            else multiply_rows<DTYPE>(results, moved(a, panel * TEAM_ROWS + column), right, s > 0);
        }
        commit_products();
    }

    static __device__ __forceinline__ void pack(uint32_t (&weights)[TileSoftmax::KEY_TILES][4],
                                                const TileSoftmax::Scores& score) {
#pragma unroll
        for (int k = 0; k < TileSoftmax::KEY_TILES; k++) TileSoftmax::pack_weights(weights[k], score[0], k);
    }

    __device__ __forceinline__ void begin_sums(float (&sums)[8 * TileSoftmax::STEPS],
                                               const uint32_t (&weights)[TileSoftmax::KEY_TILES][4],
                                               const Turn& at) const {
        barrier_wait(shared.values_full(at.stage), at.phase);
        const Matrix b = columns_matrix(shared.values(at.stage), BLOCK_KEYS * PANEL_BYTES);
        begin_products();
#pragma unroll
        for (int k = 0; k < TileSoftmax::KEY_TILES; k++)
            multiply_columns<DTYPE>(sums, weights[k], moved(b, k * 16 * PANEL_BYTES));
        commit_products();
    }

    __device__ __forceinline__ void mask(TileSoftmax::Scores& score, const Item& item, int first_key) const {
        const int lane = thread_index() % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int end = item.limit(args, TileSoftmax::first_row() + h * 8 + g) - first_key;
            const int begin = args.window > 0 ? end - args.window : 0;
#pragma unroll
            for (int n = 0; n < 2 * TileSoftmax::KEY_TILES; n++)
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int key = n * 8 + t * 2 + c;
                    if (key < begin || key >= end) score[0][n][h * 2 + c] = -INFINITY;
                }
        }
    }

    // Queries, rotated on their way where ROTATES is 1.
    __device__ __forceinline__ void take_queries(const Item& item) {
        constexpr int STEPS = TileSoftmax::STEPS;
        const int lane = thread_index() % WARP, warp_row = TileSoftmax::first_row() % TEAM_ROWS;
#if ROTATES
        Vec<float, 2> cosines[2][STEPS], sines[2][STEPS];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = TileSoftmax::first_row() + h * 8 + lane / 4;
            const long long angle = item.token_in_step(args, row) * (HEAD_DIM / 2) + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                cosines[h][i] = load<float, 2>(args.cosines + angle + i * 8);
                sines[h][i] = load<float, 2>(args.sines + angle + i * 8);
            }
        }
#endif
        barrier_wait(shared.query_full(number), query_turn.phase);
        query_turn.next<1>();
        uint32_t all[STEPS][4];
        const uint32_t from = shared.held(number) + (warp_row + lane % 16) * ROW_BYTES;
#pragma unroll
        for (int s = 0; s < STEPS; s++) load_matrices(all[s], from + swizzled(lane % 8, s * 32 + lane / 16 * 16));
        // Every lane for itself: racecheck does not see that a warp's first lane speaks for those it has met.
        barrier_arrive(shared.query_empty(number));
#if ROTATES
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                uint32_t &low = all[i / 2][i % 2 * 2 + h], &high = all[i / 2 + STEPS / 2][i % 2 * 2 + h];
                float first[2], second[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    first[e] = number_of(low, e), second[e] = number_of(high, e);
                    rotate_pair(first[e], second[e], cosines[h][i].get(e), sines[h][i].get(e));
                }
                low = headrace::pack<DTYPE>(first[0], first[1]), high = headrace::pack<DTYPE>(second[0], second[1]);
            }
#endif
#pragma unroll
        for (int s = 0; s < HELD_STEPS; s++)
#pragma unroll
            for (int i = 0; i < 4; i++) held[s][i] = all[s][i];
#if HELD_STEPS < HEAD_DIM / 16
        some_meet<TEAM_WARPS * WARP>(number + 1);  // nobody multiplies by those before any more
#pragma unroll
        for (int s = HELD_STEPS; s < STEPS; s++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = warp_row + lane / 4 + i % 2 * 8;
                const uint32_t to = shared.queries(number) + place_in_tile<TEAM_ROWS>(row, s * 32 + i / 2 * 16);
                write_shared(to + lane % 4 * 4, all[s][i]);
            }
        show_to_products();
        some_meet<TEAM_WARPS * WARP>(number + 1);
#endif
    }

    static __device__ __forceinline__ float number_of(uint32_t pair, int i) {
        Vec<DTYPE, 2> both;
        *reinterpret_cast<uint32_t*>(both.at) = pair;
        return both.get(i);
    }

    __device__ __forceinline__ void write(const TileSoftmax& softmax, const Item& item) const {
        const int lane = thread_index() % WARP;
        const long long stride = static_cast<long long>(args.num_kv_heads) * args.group * HEAD_DIM;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float total = softmax.whole_weight(0, h), factor = total > 0 ? 1 / total : 0;
            const int row = TileSoftmax::first_row() + h * 8 + lane / 4;
            DTYPE* to = args.out + item.place(args, row, stride) + lane % 4 * 8;
#pragma unroll
            for (int n = 0; n < 2 * TileSoftmax::STEPS; n += 4) {
                uint32_t word[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float(&sums)[4] = softmax.sums[0][n + i];
                    word[i] = headrace::pack<DTYPE>(sums[h * 2] * factor, sums[h * 2 + 1] * factor);
                }
                transpose_quad(word);
                if (row < item.count)
                    *reinterpret_cast<uint4*>(to + n * 8) = make_uint4(word[0], word[1], word[2], word[3]);
            }
        }
    }
};

}  // namespace headrace
