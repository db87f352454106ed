// What a block of decode_attention is given, and its way through its share, a piece of an item at a time.
#pragma once

#include "decode_fragments.cuh"
#include "decode_tiles.cuh"

namespace headrace {

constexpr int THREADS = WARPS * WARP;
// Floats: sums [GROUP][HEAD_DIM], greatest scores [GROUP], weights [GROUP]; a multiple of 16 bytes.
constexpr int SLOT = (GROUP * (HEAD_DIM + 2) + 3) / 4 * 4;

struct Args {
    DTYPE* out;
    const DTYPE *query, *keys, *values;
    const int *page_table, *lengths;
    const int4* plan;
    float* slots;
    int* tickets;  // one an item, then one a slot; zeros before and after
    int num_rows, num_kv_heads, max_pages, page_tiles, window;
    long long query_stride, page_stride, head_stride;
    float score_scale;  // softmax's, times log2(e)
};

// A block's way through its share, a piece at a time.
struct Walk {
    int row, head, unit, left;  // of the piece, the latter two in units; left counts from this piece on
    int length, begin, end;     // of the row in keys; of the piece in tiles
    int at, units, piece_units; // unit among all, units of the item, units of the piece

    __device__ __forceinline__ explicit Walk(const Args& args) {
        // All the first piece needs comes by one round trip to memory.
        const int4 header = *args.plan, entry = args.plan[1 + 2 * blockIdx.x];
        length = args.plan[2 + 2 * blockIdx.x].x;
        row = entry.x, head = entry.y, unit = entry.z, left = entry.w;
        at = blockIdx.x * header.x;
        if (left > 0) look(args, header);
    }

    __device__ __forceinline__ void look(const Args& args, const int4& header) {
        const Tiles seen = tiles_seen(length, args.window);
        units = seen.units(header.y);
        piece_units = header.z ? 1 : min(units - unit, left);
        begin = seen.begin + unit * header.y;
        end = min(begin + piece_units * header.y, seen.end);
    }

    __device__ __forceinline__ void next(const Args& args) {
        left -= piece_units, at += piece_units, unit += piece_units;
        if (left == 0) return;
        if (unit == units) {
            unit = 0;
            if (++head == args.num_kv_heads) {
                head = 0;
                do length = args.lengths[++row];
                while (length == 0);
            }
        }
        look(args, *args.plan);
    }
};

}  // namespace headrace
