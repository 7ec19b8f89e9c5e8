// Dispatch of rows that travel as packets, and their reception.
#pragma once

#include "moe/dispatch_tokens.cuh"
#include "quant/block.cuh"

namespace moelink::kernels::cuda {

namespace {

// Where a row of a payload ends up: the plane, or the caller's buffer.
struct Target {
    unsigned char *row;
    int32_t width;

    __device__ Target(const Workspace &ws, const Payload &payload, int64_t index) {
        if (payload.output != nullptr) {
            row = payload.output + static_cast<uint64_t>(index) * payload.output_stride;
            width = payload.output_width;
        } else {
            row = ws.mine + payload.plane + static_cast<uint64_t>(index) * payload.plane_stride;
            width = 16;  // as every source's: packets are whole vectors
        }
    }
};

// The payload that tile `*tile` of a row belongs to; *tile becomes the tile of the payload. The tile after the last is the routing.
__device__ __forceinline__ int payload_of(const DispatchParams &params, int *tile) {
    int p = 0;
#pragma unroll 1
    while (p < params.payload_count && *tile >= static_cast<int>(params.payloads[p].tiles)) *tile -= static_cast<int>(params.payloads[p++].tiles);
    return p;
}

__device__ __forceinline__ unsigned char *packets_of(const Workspace &ws, unsigned char *at, int32_t source, int32_t slot) {
    return at + ws.layout.dispatch_packets + (static_cast<uint64_t>(source) * static_cast<uint64_t>(ws.dispatch_packet_rows) + static_cast<uint64_t>(slot)) * ws.dispatch_packet_bytes;
}

// A warp's part of a row with its payloads: a tile of a payload, or the routing.
struct RowTile {
    int row;      // of a list
    int payload;  // payload_count: the routing
    int tile;
    int valid;    // vectors of this lane

    __device__ RowTile(const DispatchParams &params, int item, int lane) {
        row = item / static_cast<int>(params.row_tiles);
        tile = item - row * static_cast<int>(params.row_tiles);
        payload = payload_of(params, &tile);
        valid = payload < params.payload_count ? valid_vectors(static_cast<int>(params.payloads[payload].row_bytes / 16), tile, lane) : 0;
    }

    // `packets`: of the row.
    __device__ __forceinline__ TileAt at(const DispatchParams &params, unsigned char *packets) const {
        const Payload &to = params.payloads[payload];
        return {packets, to.packet_beside, to.packet_vectors, tile};
    }
};

// What a lane has of a tile before it travels, and what of it travels.
template <bool quantized>
struct Cargo;

template <>
struct Cargo<false> {
    Piece piece;

    __device__ __forceinline__ void load(const DispatchParams &params, const RowTile &at, int64_t token, int lane) {
        if (at.payload == params.payload_count) return;
        const Payload &from = params.payloads[at.payload];
        piece = load_piece(from.source + static_cast<uint64_t>(token) * from.source_stride, at.tile, lane, at.valid);
    }
    __device__ __forceinline__ void quantize(const DispatchParams &, const RowTile &) {}
    __device__ __forceinline__ void send_scales(const RowTile &, const TileAt &, int, uint32_t) const {}
    __device__ __forceinline__ void store_scales(const DispatchParams &, const RowTile &, int64_t, int) const {}
    __device__ __forceinline__ void look_for_scales(const RowTile &, const TileAt &, int) {}
    __device__ __forceinline__ bool await_scales(const Workspace &, int32_t, const RowTile &, const TileAt &, int, uint32_t) { return true; }
};

// Payload 0 is quantized. The scales of its tile travel in words of their own: one for the three blocks that eight lanes hold.
template <>
struct Cargo<true> {
    Piece piece;
    BlockPart part[piece_vectors];
    float scale[piece_vectors];
    Packet word;

    __device__ __forceinline__ void load(const DispatchParams &params, const RowTile &at, int64_t token, int lane) {
        if (at.payload == params.payload_count) return;
        const Payload &from = params.payloads[at.payload];
        const unsigned char *row = from.source + static_cast<uint64_t>(token) * from.source_stride;
        if (at.payload != 0) {
            piece = load_piece(row, at.tile, lane, at.valid);
            return;
        }
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) {
            if (i < at.valid) part[i].load(row, vector_at(at.tile, lane, i));
        }
    }
    __device__ __forceinline__ void quantize(const DispatchParams &params, const RowTile &at) {
        if (at.payload != 0) return;
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) {
            if (i < at.valid) piece.vector[i] = part[i].quantize(params.quantize == quantize_e8m0, &scale[i]);
        }
    }
    __device__ __forceinline__ void send_scales(const RowTile &at, const TileAt &to, int lane, uint32_t epoch) const {
        if (!has_scales(at, lane)) return;
        store_packet(word_at(to, lane), {{__float_as_uint(scale[0]), __float_as_uint(scale[1]), __float_as_uint(scale[2])}, epoch});
    }
    __device__ __forceinline__ void store_scales(const DispatchParams &params, const RowTile &at, int64_t row, int lane) const {
        if (!has_scales(at, lane)) return;
        const Target target(params.workspace, params.payloads[1], row);
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) {
            if (i < at.valid) store_scale(target.row, params.quantize, vector_at(at.tile, lane, i), scale[i]);
        }
    }
    __device__ __forceinline__ void look_for_scales(const RowTile &at, const TileAt &from, int lane) {
        if (has_scales(at, lane)) word = load_packet(word_at(from, lane));
    }
    __device__ __forceinline__ bool await_scales(const Workspace &ws, int32_t source, const RowTile &at, const TileAt &from, int lane, uint32_t epoch) {
        if (!has_scales(at, lane)) return true;
        if (word.tag != epoch && !await(ws, source, phase_dispatch, [&] {
                word = load_packet(word_at(from, lane));
                return word.tag == epoch;
            })) {
            return false;
        }
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) scale[i] = __uint_as_float(word.data[i]);
        return true;
    }

private:
    static __device__ __forceinline__ bool has_scales(const RowTile &at, int lane) { return at.payload == 0 && at.valid > 0 && holds_scale(lane); }
    static __device__ __forceinline__ unsigned char *word_at(const TileAt &at, int lane) { return at.bits + (1 + lane / block_vectors) * packet_word; }
};

// A warp's first tile, loaded while the routes are found.
template <bool quantized>
struct FirstTile {
    int item;
    RowTile at;
    Cargo<quantized> cargo;
};

// The rows of all tokens.
template <class Id, bool quantized, bool to_all>
__device__ __forceinline__ void send_packets(const DispatchParams &params, int tokens, const FirstTile<quantized> &first, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32;
    WarpShare(blockIdx.x, gridDim.x).each(tokens * static_cast<int>(params.row_tiles), [&](int item) {
        const RowTile at = item == first.item ? first.at : RowTile(params, item, lane);
        const int token = at.row;
        Cargo<quantized> cargo;
        if (item == first.item) {
            cargo = first.cargo;
        } else {
            cargo.load(params, at, token, lane);
        }
        const Sendings sendings(spread_of<to_all>(params), params, shared.routes, at.row, token);
        if (at.payload == params.payload_count) {
            const RoutingLane routing = RoutingLane::read<Id, to_all>(params, token, lane);
            for (int j = 0; j < sendings.count(); ++j) {
                const Destination to = sendings.at(j);
                const int32_t id = routing.id_for(to.rank, params.invalid_id), distinct = sendings.distinct(j);
                if (to.rank == ws.rank) {
                    store_routing(ws, ws.mine, row_of(ws, ws.rank, to.slot), lane, id, routing.weight, params.weights != nullptr,
                                  {token, distinct});
                } else if (lane < max(ws.top_k, 2)) {
                    const uint32_t origin = lane == 0 ? static_cast<uint32_t>(token) : static_cast<uint32_t>(distinct);
                    store_packet(packets_of(ws, shared.peers[to.rank], ws.rank, to.slot) + lane * packet_word,
                                 {{static_cast<uint32_t>(id), __float_as_uint(routing.weight), origin}, shared.epoch});
                }
            }
            keep_token<to_all>(params, token, lane, routing, sendings);
            return;
        }
        cargo.quantize(params, at);
        const Payload &payload = params.payloads[at.payload];
        stagger();
        for (int j = 0; j < sendings.count(); ++j) {
            const Destination to = sendings.at(j);
            if (to.rank == ws.rank) {
                const int64_t row = row_of(ws, ws.rank, to.slot);
                const Target target(ws, payload, row);
                store_piece(target.row, at.tile, lane, at.valid, cargo.piece, target.width);
                cargo.store_scales(params, at, row, lane);
            } else {
                const TileAt tile = at.at(params, packets_of(ws, shared.peers[to.rank], ws.rank, to.slot));
                send_piece(tile, lane, at.valid, cargo.piece, shared.epoch);
                cargo.send_scales(at, tile, lane, shared.epoch);
            }
        }
    });
}

template <bool quantized>
__device__ __forceinline__ void receive_packets(const DispatchParams &params, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32, row_tiles = static_cast<int>(params.row_tiles);
    WarpShare share(blockIdx.x, gridDim.x);
    for (int32_t source = 0; source < ws.ranks; ++source) {
        const uint32_t count = shared.counts[source];
        if (source == ws.rank || (count & packets_bit) == 0) continue;
        share.each(rows_in(count) * row_tiles, [&](int item) {
            const RowTile at(params, item, lane);
            unsigned char *from = packets_of(ws, ws.mine, source, at.row);
            const int64_t row = row_of(ws, source, at.row);
            if (at.payload == params.payload_count) {
                Packet packet{};
                const bool came = lane >= max(ws.top_k, 2) || await(ws, source, phase_dispatch, [&] {
                    packet = load_packet(from + lane * packet_word);
                    return left_out<Site::packet_routing> || packet.tag == shared.epoch;
                });
                const RowOrigin origin = {static_cast<int32_t>(__shfl_sync(all_lanes, packet.data[2], 0)),
                                          static_cast<int32_t>(__shfl_sync(all_lanes, packet.data[2], 1))};
                if (__all_sync(all_lanes, came)) {
                    store_routing(ws, ws.mine, row, lane, static_cast<int32_t>(packet.data[0]), __uint_as_float(packet.data[1]), true, origin);
                }
                return;
            }
            const Payload &payload = params.payloads[at.payload];
            const TileAt tile = at.at(params, from);
            Look look;
            Cargo<quantized> cargo;
            stagger();
            look.load(tile, lane, at.valid);
            cargo.look_for_scales(at, tile, lane);
            if (!await_piece(ws, source, phase_dispatch, tile, lane, at.valid, shared.epoch, false, look, &cargo.piece)) return;
            const Target target(ws, payload, row);
            store_piece(target.row, at.tile, lane, at.valid, cargo.piece, target.width);
            if (cargo.await_scales(ws, source, at, tile, lane, shared.epoch)) cargo.store_scales(params, at, row, lane);
        });
    }
}

}  // namespace

}  // namespace moelink::kernels::cuda
