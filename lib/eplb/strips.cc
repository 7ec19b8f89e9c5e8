#include "eplb/strips.hpp"

#include <algorithm>
#include <cstring>

#include <sodium.h>

namespace moelink::eplb {

namespace {

uint64_t aligned(uint64_t bytes) { return (bytes + 15) / 16 * 16; }

// Calls piece(address, flat offset, rows, row bytes, stride) for each part of a range: whole rows at once, broken ones alone.
template <class Piece>
void for_range(const Strips &strips, uint64_t offset, uint64_t bytes, Piece &&piece) {
    uint64_t done = 0;
    for (const Strip &strip : strips) {
        if (offset >= strip.bytes()) {
            offset -= strip.bytes();
            continue;
        }
        while (done < bytes && offset < strip.bytes()) {
            const uint64_t row = offset / strip.row_bytes;
            const uint64_t in_row = offset % strip.row_bytes;
            unsigned char *at = strip.data + row * strip.row_stride + in_row;
            const uint64_t left = bytes - done;
            uint64_t rows = 1;
            uint64_t width = std::min(left, strip.row_bytes - in_row);
            if (in_row == 0 && left >= strip.row_bytes) rows = std::min(left / strip.row_bytes, strip.rows - row);
            piece(at, done, rows, width, strip.row_stride);
            done += rows * width;
            offset += rows * width;
        }
        if (done == bytes) return;
        offset = 0;
    }
}

}  // namespace

uint64_t total_bytes(const Strips &strips) {
    uint64_t bytes = 0;
    for (const Strip &strip : strips) bytes += strip.bytes();
    return bytes;
}

Strips packed(const Strips &like, unsigned char *at) {
    Strips result;
    for (const Strip &strip : like) {
        result.push_back(Strip{at, strip.rows, strip.row_bytes, strip.row_bytes});
        at += aligned(strip.bytes());
    }
    return result;
}

uint64_t packed_bytes(const Strips &like) {
    uint64_t bytes = 0;
    for (const Strip &strip : like) bytes += aligned(strip.bytes());
    return bytes;
}

void copy_strips(const Device &device, const Strips &to, const Strips &from, moelink_stream stream) {
    for (size_t i = 0; i < to.size(); ++i) {
        device.copy_rows_async(to[i].data, to[i].row_stride, from[i].data, from[i].row_stride, to[i].row_bytes, to[i].rows, stream);
    }
}

void gather_range(const Device &device, void *to, const Strips &from, uint64_t offset, uint64_t bytes, moelink_stream stream) {
    for_range(from, offset, bytes, [&](unsigned char *at, uint64_t flat, uint64_t rows, uint64_t width, uint64_t stride) {
        device.copy_rows_async(static_cast<unsigned char *>(to) + flat, width, at, stride, width, rows, stream);
    });
}

void scatter_range(const Device &device, const Strips &to, const void *from, uint64_t offset, uint64_t bytes, moelink_stream stream) {
    for_range(to, offset, bytes, [&](unsigned char *at, uint64_t flat, uint64_t rows, uint64_t width, uint64_t stride) {
        device.copy_rows_async(at, stride, static_cast<const unsigned char *>(from) + flat, width, width, rows, stream);
    });
}

uint64_t code_of(const Device &device, const Strips &strips, std::vector<unsigned char> &room, moelink_stream stream) {
    crypto_generichash_state state;
    crypto_generichash_init(&state, nullptr, 0, crypto_generichash_BYTES_MIN);
    if (device.on_cuda()) {
        constexpr uint64_t piece = 1 << 20;
        room.resize(piece);
        const uint64_t bytes = total_bytes(strips);
        for (uint64_t at = 0; at < bytes; at += piece) {
            const uint64_t size = std::min(piece, bytes - at);
            gather_range(device, room.data(), strips, at, size, stream);
            device.synchronize(stream);
            crypto_generichash_update(&state, room.data(), size);
        }
    } else {
        for (const Strip &strip : strips) {
            for (uint64_t row = 0; row < strip.rows; ++row) {
                crypto_generichash_update(&state, strip.data + row * strip.row_stride, strip.row_bytes);
            }
        }
    }
    unsigned char hash[crypto_generichash_BYTES_MIN];
    crypto_generichash_final(&state, hash, sizeof hash);
    uint64_t code = 0;
    std::memcpy(&code, hash, sizeof code);
    return code;
}

}  // namespace moelink::eplb
