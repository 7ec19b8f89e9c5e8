// Copies of strips of rows, many a launch: what a caller names, and the form in which a kernel gets it.
#pragma once

#include "launch.hpp"

#include <algorithm>

namespace moelink::kernels {

// Rows of bytes, and where they go. Addresses, strides and bytes may be anything; copies of one call must not overlap.
struct StripCopy {
    unsigned char *to;
    const unsigned char *from;
    uint64_t rows;
    uint64_t row_bytes;
    uint64_t to_stride;
    uint64_t from_stride;
};

// Rows of whole vectors: addresses, and strides where there is more than one row, are multiples of a vector's width.
struct StripPart {
    unsigned char *to;
    const unsigned char *from;
    uint64_t to_stride;
    uint64_t from_stride;
    uint64_t row_vectors;
    uint64_t vectors;    // of all rows
    uint64_t end_piece;  // pieces of the launch up to this part's end
};

// What a warp copies at once. Pieces are what is shared out, so warps have equal numbers of accesses whatever the strips are.
inline constexpr int piece_vectors = 256;

// The parameters of a launch.
struct StripBatch {
    static constexpr int most_parts = 71;
    StripPart parts[most_parts];
    uint8_t widths[most_parts];  // [bytes] of a vector: 16, 8, 4, 2, 1
    int32_t count;

    uint64_t pieces() const { return count == 0 ? 0 : parts[count - 1].end_piece; }
};
static_assert(sizeof(StripBatch) <= 4096);  // [bytes] of parameters that every driver takes

// Calls part(copy, width) for what a strip is made of: rows of whole vectors of one width, and the ends of rows that are long enough to be
// worth it.
template <class Part>
void for_strip_parts(StripCopy copy, Part &&part) {
    if (copy.rows == 0 || copy.row_bytes == 0) return;
    if (copy.to_stride == copy.row_bytes && copy.from_stride == copy.row_bytes) {
        copy.row_bytes *= copy.rows;
        copy.rows = 1;
    }
    constexpr uint64_t long_row = 16;  // vectors
    const auto to = reinterpret_cast<uint64_t>(copy.to), from = reinterpret_cast<uint64_t>(copy.from);
    const uint64_t strides = copy.rows > 1 ? copy.to_stride | copy.from_stride : 0;
    const int32_t exact = access_width(to | from | strides | copy.row_bytes);
    const int32_t width = access_width((to - from) | strides);
    const auto bytes = static_cast<uint64_t>(width);
    if (width == exact || copy.row_bytes < long_row * bytes) return part(copy, exact);
    const uint64_t head = (bytes - to % bytes) % bytes;
    const uint64_t body = (copy.row_bytes - head) / bytes * bytes;
    auto columns = [&](uint64_t first, uint64_t count) {
        StripCopy some = copy;
        some.to += first;
        some.from += first;
        some.row_bytes = count;
        const uint64_t bits = (to + first) | (from + first) | strides | count;
        if (count != 0) part(some, access_width(bits));
    };
    columns(0, head);
    columns(head, body);
    columns(head + body, copy.row_bytes - head - body);
}

// Calls launch(batch) for batches that together hold all the copies.
template <class Launch>
void for_strip_batches(const StripCopy *copies, size_t count, Launch &&launch) {
    StripBatch batch;
    batch.count = 0;
    for (size_t i = 0; i < count; ++i) {
        for_strip_parts(copies[i], [&](const StripCopy &copy, int32_t width) {
            if (batch.count == StripBatch::most_parts) {
                launch(batch);
                batch.count = 0;
            }
            const uint64_t row_vectors = copy.row_bytes / static_cast<uint64_t>(width);
            const uint64_t vectors = copy.rows * row_vectors;
            const uint64_t end = batch.pieces() + (vectors + piece_vectors - 1) / piece_vectors;
            batch.parts[batch.count] = {copy.to, copy.from, copy.to_stride, copy.from_stride, row_vectors, vectors, end};
            batch.widths[batch.count++] = static_cast<uint8_t>(width);
        });
    }
    if (batch.count != 0) launch(batch);
}

namespace cuda {

// Stream-ordered, by at most so many multiprocessors; from memory of this device or of peers that it maps, to its own. A kernel that
// waits for nobody.
Result copy_strips(const StripCopy *copies, size_t count, int multiprocessors, CUstream_st *stream);

}  // namespace cuda

}  // namespace moelink::kernels
