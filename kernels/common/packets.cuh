// Rows as packets: 16-byte words that say themselves whether they have come, so that no fence and no flag stand between a row and its
// use. The field calls such protocols low-latency (LL). Every word is written and read as one access (scalar b128 accesses of
// system scope, PTX ISA 8.3), which the memory model keeps whole.
//
// A tile is a warp's work: 96 vectors of 16 bytes of a row, three a lane. The topmost bit of a vector on its way is 1: it has come.
// The bits that were there travel in one word for the whole tile, beside the round's epoch. Who has taken a vector writes zeros
// in its place, for the next round. Routing travels in words of 12 bytes and the epoch.
#pragma once

#include "common/signal.cuh"

namespace moelink::kernels::cuda {

struct Packet {
    uint32_t data[3];
    uint32_t tag;
};

__device__ __forceinline__ void store_packet(unsigned char *at, const Packet &packet) {
    const uint64_t low = uint64_t{packet.data[1]} << 32 | packet.data[0], high = uint64_t{packet.tag} << 32 | packet.data[2];
    asm volatile("{ .reg .b128 packet; mov.b128 packet, {%1, %2}; st.relaxed.sys.global.b128 [%0], packet; }" ::"l"(at), "l"(low), "l"(high)
                 : "memory");
}

__device__ __forceinline__ Packet load_packet(const unsigned char *at) {
    uint64_t low, high;
    asm volatile("{ .reg .b128 packet; ld.relaxed.sys.global.b128 packet, [%2]; mov.b128 {%0, %1}, packet; }"
                 : "=l"(low), "=l"(high)
                 : "l"(at)
                 : "memory");
    return {{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high)}, static_cast<uint32_t>(high >> 32)};
}

// The rows that a count word's value names.
__device__ __forceinline__ int32_t rows_in(uint32_t count) { return static_cast<int32_t>(count & ~(packets_bit | packets_back_bit)); }

inline constexpr int piece_vectors = 3;
inline constexpr int tile_vectors = 32 * piece_vectors;
static_assert(tile_vectors * 16 == packet_tile_data);

// One lane's part of a tile.
struct Piece {
    uint4 vector[piece_vectors];
};

// The vector of the row that is vector i of this lane in a tile.
__device__ __forceinline__ int vector_at(int tile, int lane, int i) { return tile * tile_vectors + i * 32 + lane; }

// How many of a lane's vectors lie in a row of `vectors`.
__device__ __forceinline__ int valid_vectors(int vectors, int tile, int lane) {
    return min(piece_vectors, max(0, (vectors - tile * tile_vectors - lane + 31) / 32));
}

__device__ __noinline__ inline uint4 load_bytes(const unsigned char *at) {
    uint32_t words[4] = {};
    for (int byte = 0; byte < 16; ++byte) words[byte / 4] |= uint32_t{at[byte]} << (byte % 4 * 8);
    return {words[0], words[1], words[2], words[3]};
}

// A vector from where only accesses of `width` bytes are allowed.
__device__ __forceinline__ uint4 load_vector(const unsigned char *at, int width) {
    return width == 16 ? *reinterpret_cast<const uint4 *>(at) : load_bytes(at);
}

__device__ __forceinline__ Piece load_piece(const unsigned char *row, int tile, int lane, int valid) {
    Piece piece{};
#pragma unroll
    for (int i = 0; i < piece_vectors; ++i) {
        if (i < valid) piece.vector[i] = reinterpret_cast<const uint4 *>(row)[vector_at(tile, lane, i)];
    }
    return piece;
}

__device__ __noinline__ inline void store_bytes(unsigned char *at, uint4 vector) {
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    for (int byte = 0; byte < 16; ++byte) at[byte] = static_cast<unsigned char>(words[byte / 4] >> (byte % 4 * 8));
}

// A vector to where only accesses of `width` bytes are allowed.
__device__ __forceinline__ void store_vector(unsigned char *at, const uint4 &vector, int width) {
    if (width == 16) {
        *reinterpret_cast<uint4 *>(at) = vector;
    } else {
        store_bytes(at, vector);
    }
}

__device__ __forceinline__ void store_piece(unsigned char *row, int tile, int lane, int valid, const Piece &piece, int width) {
#pragma unroll
    for (int i = 0; i < piece_vectors; ++i) {
        if (i < valid) store_vector(row + static_cast<size_t>(vector_at(tile, lane, i)) * 16, piece.vector[i], width);
    }
}

inline constexpr uint32_t come_bit = 1u << 31;

// Where a tile's words lie at the receiver.
struct TileAt {
    unsigned char *vectors;
    unsigned char *bits;

    __device__ TileAt(unsigned char *row, uint32_t beside, uint32_t vectors_at, int tile)
        : vectors(row + vectors_at + tile * packet_tile_data), bits(row + beside + tile * packet_tile_beside) {}
};

// All lanes of a warp.
__device__ __forceinline__ void send_piece(const TileAt &at, int lane, int valid, const Piece &piece, uint32_t epoch) {
    Packet bits{{}, epoch};
#pragma unroll
    for (int i = 0; i < piece_vectors; ++i) {
        const uint4 &vector = piece.vector[i];
        bits.data[i] = __ballot_sync(0xffffffffu, (vector.w & come_bit) != 0);
        if (i < valid) store_packet(at.vectors + (i * 32 + lane) * packet_word, {{vector.x, vector.y, vector.z}, vector.w | come_bit});
    }
    if (lane == 0) store_packet(at.bits, bits);
}

// What one look at a lane's vectors found.
struct Look {
    Packet vectors[piece_vectors];
    Packet bits;

    __device__ __forceinline__ void load(const TileAt &at, int lane, int valid) {
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) {
            if (i < valid) vectors[i] = load_packet(at.vectors + (i * 32 + lane) * packet_word);
        }
        bits = load_packet(at.bits);
    }

    // True when all had come; then they are taken.
    __device__ __forceinline__ bool take(const TileAt &at, int lane, int valid, uint32_t epoch, Piece *piece) const {
        bool all = left_out<Site::packet_bits> || bits.tag == epoch;
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) all = all && (left_out<Site::packet_come> || i >= valid || (vectors[i].tag & come_bit) != 0);
        if (!all) return false;
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) {
            if (i >= valid) continue;
            const uint32_t bit = bits.data[i] >> lane << 31;
            piece->vector[i] = {vectors[i].data[0], vectors[i].data[1], vectors[i].data[2], (vectors[i].tag & ~come_bit) | bit};
            if constexpr (!left_out<Site::packet_clear>) *reinterpret_cast<uint4 *>(at.vectors + (i * 32 + lane) * packet_word) = {};
        }
        return true;
    }
};

// Takes a lane's vectors when they have come. Where many warps wait (`many`), they look at one word a tile, so that they leave the
// memory to those who write.
__device__ __forceinline__ bool await_piece(const Workspace &ws, int32_t peer, Phase phase, const TileAt &at, int lane, int valid, uint32_t epoch,
                                            bool many, Look look, Piece *piece) {
    if (look.take(at, lane, valid, epoch, piece)) return true;
    if (many && !await(ws, peer, phase, [&] { return load_packet(at.bits).tag == epoch; })) return false;
    return await(ws, peer, phase, [&] {
        look.load(at, lane, valid);
        return look.take(at, lane, valid, epoch, piece);
    });
}

}  // namespace moelink::kernels::cuda
