// An expert's weights as strips of bytes: one a tensor, each some rows at a stride.
#pragma once

#include "moe/device_memory.hpp"

#include <cstdint>
#include <vector>

namespace moelink::eplb {

struct Strip {
    unsigned char *data = nullptr;
    uint64_t rows = 0;
    uint64_t row_bytes = 0;
    uint64_t row_stride = 0;
    uint64_t bytes() const { return rows * row_bytes; }
};
using Strips = std::vector<Strip>;

uint64_t total_bytes(const Strips &strips);
// The same rows without gaps between them from `at` on, each strip at a multiple of 16 bytes from there; and the bytes that they take.
Strips packed(const Strips &like, unsigned char *at);
uint64_t packed_bytes(const Strips &like);

// Copies strips of equal rows and row_bytes. Stream-ordered; on the host device done on return.
void copy_strips(const Device &device, const Strips &to, const Strips &from, moelink_stream stream);

// Copies `bytes` from `offset` on, of the strips' bytes as if packed, to or from contiguous memory of host or device. As above.
void gather_range(const Device &device, void *to, const Strips &from, uint64_t offset, uint64_t bytes, moelink_stream stream);
void scatter_range(const Device &device, const Strips &to, const void *from, uint64_t offset, uint64_t bytes, moelink_stream stream);

// A code of the strips' bytes in order; host-blocking. `room` is host memory that a CUDA device's bytes pass through.
uint64_t code_of(const Device &device, const Strips &strips, std::vector<unsigned char> &room, moelink_stream stream);

}  // namespace moelink::eplb
