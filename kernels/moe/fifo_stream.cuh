// What travels from one rank to another in a call, as tiles in order: the statistics, then row by row its routing and all tensors. Routing
// and statistics travel only where the call prepares. A row's routing is one tile: its token, ids and weights.
#pragma once

#include "moe/fifo_rows.cuh"
#include "quant/block.cuh"

namespace moelink::kernels::cuda {

inline constexpr int statistics_part = -2, routing_part = -1;

__device__ __forceinline__ int routing_vectors(const Workspace &ws) { return (1 + 2 * ws.top_k + 3) / 4; }
static_assert((1 + 2 * max_top_k + 3) / 4 <= 32);

struct Stream {
    int32_t rows;
    uint32_t row_tiles;
    int64_t statistics;  // tiles
    int64_t total;

    __device__ Stream(const FifoCall &call, int32_t rows_)
        : rows(rows_), row_tiles(call.row_tiles + (call.prepares != 0 ? 1 : 0)),
          statistics(call.prepares != 0 ? static_cast<int64_t>(packet_tiles(static_cast<uint64_t>(call.statistics_count) * sizeof(int64_t))) : 0),
          total(statistics + int64_t{rows} * row_tiles) {}
};

// A place in a stream that has one.
struct Cursor {
    int64_t index;
    int32_t row;
    int part;  // a tensor, or statistics_part, routing_part
    int tile;

    Cursor() = default;
    __device__ Cursor(const FifoCall &call, const Stream &stream, int64_t at) : index(at), row(0) {
        if (at < stream.statistics) {
            part = statistics_part;
            tile = static_cast<int>(at);
            return;
        }
        const int64_t rest = at - stream.statistics;
        row = static_cast<int32_t>(rest <= UINT32_MAX ? static_cast<uint32_t>(rest) / stream.row_tiles : rest / stream.row_tiles);
        tile = static_cast<int>(rest - int64_t{row} * stream.row_tiles);
        part = 0;
        if (call.prepares != 0 && tile-- == 0) {
            part = routing_part;
            tile = 0;
            return;
        }
        while (tile >= static_cast<int>(call.tensors[part].tiles)) tile -= static_cast<int>(call.tensors[part++].tiles);
    }

    // Not beyond the end of the stream.
    __device__ __forceinline__ void next(const FifoCall &call, const Stream &stream) {
        ++index;
        ++tile;
        if (part == statistics_part) {
            if (index < stream.statistics) return;
            part = routing_part;
            tile = 0;
            return;
        }
        if (part >= 0 && tile < static_cast<int>(call.tensors[part].tiles)) return;
        tile = 0;
        do {
            if (++part < call.tensor_count) continue;
            ++row;
            part = call.prepares != 0 ? routing_part : 0;
            if (part == routing_part) return;
        } while (call.tensors[part].tiles == 0);
    }

    // Vectors of a lane.
    __device__ __forceinline__ int valid(const FifoCall &call, int lane) const {
        if (part == routing_part) return lane < routing_vectors(call.fifos.workspace) ? 1 : 0;
        const uint64_t bytes = part == statistics_part ? static_cast<uint64_t>(call.statistics_count) * sizeof(int64_t) : call.tensors[part].row_bytes;
        return valid_vectors(row_vectors(bytes), tile, lane);
    }
};

// --- routing ------------------------------------------------------------------------------------------------------------------

// Vector `lane` of a row's routing: the row's token here, then ids, of which other ranks' experts are not named, and weights.
__device__ __noinline__ inline uint4 make_routing(const FifoCall &call, int32_t to, int32_t token, int lane) {
    const Workspace &ws = call.fifos.workspace;
    uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const int field = lane * 4 + w - 1;  // -1: the token
        const int k = field < ws.top_k ? field : field - ws.top_k;
        const int64_t index = int64_t{token} * ws.top_k + k;
        word[w] = field < 0 ? static_cast<uint32_t>(token) : 0u;
        if (field < 0 || k >= ws.top_k) continue;
        if (field < ws.top_k) {
            const int64_t id = read_id(call, index);
            word[w] = static_cast<uint32_t>(ws.owners.rank_of(id) == to ? static_cast<int32_t>(id) : call.invalid_id);
        } else if (call.weights != nullptr) {
            word[w] = __float_as_uint(call.weights[index]);
        }
    }
    return {word[0], word[1], word[2], word[3]};
}

// Row `row` of a source's, which is row `place` of all here.
__device__ __noinline__ inline void store_routing(const FifoCall &call, int32_t source, int32_t row, int64_t place, int lane, uint4 vector) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    const uint32_t values[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        const int field = lane * 4 + w - 1;
        if (field < 0) {
            tables.origins[int64_t{source} * ws.capacity + row] = static_cast<int32_t>(values[w]);
        } else if (field < ws.top_k) {
            tables.ids[place * ws.top_k + field] = static_cast<int32_t>(values[w]);
        } else if (field < 2 * ws.top_k) {
            tables.weights[place * ws.top_k + field - ws.top_k] = __uint_as_float(values[w]);
        }
    }
}

// --- tiles --------------------------------------------------------------------------------------------------------------------

// What a lane has of a tile: as it was read, then as it travels.
template <bool quantized>
struct Cargo {
    Piece piece;
    int valid;
    BlockPart half[quantized ? piece_vectors : 1];
    float scale[quantized ? piece_vectors : 1];

    template <class Rows>
    __device__ __forceinline__ void load(const FifoCall &call, const Rows &rows, const Cursor &at, int32_t to, int lane) {
        valid = at.valid(call, lane);
        if (at.part == statistics_part) {
            piece = load_row_piece(reinterpret_cast<const unsigned char *>(call.statistics), static_cast<uint64_t>(call.statistics_count) * 8, 8,
                                   at.tile, lane, valid);
            return;
        }
        const int32_t token = rows.token(to, at.row);
        if (at.part == routing_part) {
            piece = {};
            if (valid > 0) piece.vector[0] = make_routing(call, to, token, lane);
        } else {
            const FifoTensor &tensor = call.tensors[at.part];
            const unsigned char *row = tensor.source + static_cast<uint64_t>(token) * tensor.source_stride;
            if constexpr (quantized) {
                if (at.part == 0) {
#pragma unroll
                    for (int i = 0; i < piece_vectors; ++i) {
                        if (i < valid) half[i].load(row, vector_at(at.tile, lane, i));
                    }
                    return;
                }
            }
            piece = load_row_piece(row, tensor.row_bytes, tensor.source_width, at.tile, lane, valid);
        }
    }

    __device__ __forceinline__ void quantize(const FifoCall &call, const Cursor &at) {
        if constexpr (quantized) {
            if (at.part != 0) return;
#pragma unroll
            for (int i = 0; i < piece_vectors; ++i) {
                if (i < valid) piece.vector[i] = half[i].quantize(call.quantize == quantize_e8m0, &scale[i]);
            }
        }
    }

    // Scales travel beside the tile of what they scale: one word for the three blocks that eight lanes hold.
    __device__ __forceinline__ bool has_scales(const Cursor &at, int lane) const { return quantized && at.part == 0 && holds_scale(lane) && valid > 0; }

    __device__ __forceinline__ void send_scales(const Cursor &at, const TileAt &to, int lane, uint32_t tag) const {
        if constexpr (quantized) {
            if (!has_scales(at, lane)) return;
            store_packet(scales_at(to, lane),
                         {{__float_as_uint(scale[0]), valid > 1 ? __float_as_uint(scale[1]) : 0u, valid > 2 ? __float_as_uint(scale[2]) : 0u}, tag});
        }
    }

    __device__ __forceinline__ bool await_scales(const Workspace &ws, int32_t from, const Cursor &at, const TileAt &tile, int lane, uint32_t tag) {
        if constexpr (quantized) {
            if (!has_scales(at, lane)) return true;
            Packet word;
            if (!await(ws, from, phase_dispatch, [&] {
                    word = load_packet(scales_at(tile, lane));
                    return left_out<Site::packet_routing> || word.tag == tag;
                })) {
                return false;
            }
            for (int i = 0; i < piece_vectors; ++i) scale[i] = __uint_as_float(word.data[i]);
        }
        return true;
    }

    __device__ __forceinline__ void store(const FifoCall &call, const Cursor &at, int32_t source, int64_t first_row, int lane) const {
        if (at.part == routing_part) {
            if (valid > 0) store_routing(call, source, at.row, first_row + at.row, lane, piece.vector[0]);
            return;
        }
        if (at.part == statistics_part) {
            unsigned char *row = reinterpret_cast<unsigned char *>(call.fifos.tables.statistics + int64_t{source} * call.statistics_count);
            store_row_piece(row, static_cast<uint64_t>(call.statistics_count) * 8, 8, at.tile, lane, valid, piece);
            return;
        }
        const FifoTensor &tensor = call.tensors[at.part];
        const uint64_t row = static_cast<uint64_t>(first_row + at.row);
        store_row_piece(tensor.output + row * tensor.output_stride, tensor.row_bytes, tensor.output_width, at.tile, lane, valid, piece);
        if constexpr (quantized) {
            if (!has_scales(at, lane)) return;
            const FifoTensor &scales = call.tensors[1];
#pragma unroll
            for (int i = 0; i < piece_vectors; ++i) {
                if (i < valid) store_scale(scales.output + row * scales.output_stride, call.quantize, vector_at(at.tile, lane, i), scale[i]);
            }
        }
    }

private:
    static __device__ __forceinline__ unsigned char *scales_at(const TileAt &tile, int lane) { return tile.bits + (1 + lane / block_vectors) * packet_word; }
};

}  // namespace moelink::kernels::cuda
