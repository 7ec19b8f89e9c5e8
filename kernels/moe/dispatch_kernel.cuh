// Push dispatch: one kernel. A rank's rows travel in one of two ways, which it chooses for itself and names in its count word: as
// packets, which the receiver's warps turn into rows of the planes; or stored into the planes, and counted there block by block.
// Of a few tokens every block routes all, and all blocks send and then receive. Of more packets half of the blocks send, each the
// rows of its share of the tokens, and the others receive meanwhile.
#pragma once

#include "common/packets.cuh"
#include "moe/dispatch_kernels.hpp"
#include "moe/routing.cuh"
#include "quant/block.cuh"

namespace moelink::kernels::cuda {

namespace {

struct Shared {
    unsigned char *peers[max_cuda_ranks];
    uint32_t counts[max_cuda_ranks];  // rows received from each rank, and packets_bit
    Filled filled[max_cuda_ranks];
    Routes routes;
    uint32_t epoch;
};

// Of blocks that send packets while others receive: those are the slower.
__device__ __forceinline__ int sending_part(int blocks) { return max(1, blocks / 3); }

// What the blocks do, for one rank's number of tokens. `few`: the launch knows that they are together.
template <bool few>
struct Blocks {
    bool packets;
    bool together;  // every block routes all tokens
    int senders;    // the first blocks
    int receiver;   // which of the receiving blocks this one is; -1: none
    int receivers;

    __device__ Blocks(const DispatchParams &params, int32_t tokens) {
        const int blocks = gridDim.x, block = blockIdx.x;
        packets = few || (params.packets != 0 && tokens <= params.workspace.dispatch_packet_rows);
        together = few || (packets && tokens <= batch_tokens);
        const bool apart = packets && !together && blocks > 1 && params.halves == both_halves;
        senders = (params.halves & half_send) == 0 ? 0 : apart ? sending_part(blocks) : blocks;
        receivers = apart ? blocks - senders : blocks;
        receiver = (params.halves & half_receive) == 0 ? -1 : apart ? block - senders : block;
    }

    __device__ __forceinline__ bool sends() const { return static_cast<int>(blockIdx.x) < senders; }
    __device__ __forceinline__ bool announces() const { return static_cast<int>(blockIdx.x) == senders - 1; }
    // This block marks and counts the rows of some sources.
    __device__ __forceinline__ bool looks_after(int32_t source) const { return source % receivers == receiver; }
};

__device__ __forceinline__ int64_t row_of(const Workspace &ws, int32_t source, int32_t slot) { return int64_t{source} * ws.capacity + slot; }

// What a lane knows of one token's routing: its own id, that id's rank, its weight.
struct RoutingLane {
    int64_t id = -1;
    float weight = 0.0f;
    int32_t owner;

    template <class Id, bool to_all>
    static __device__ __forceinline__ RoutingLane read(const DispatchParams &params, int64_t token, int lane) {
        RoutingLane routing;
        if (lane < params.workspace.top_k && spread_of<to_all>(params) != spread_no_routing) {
            routing.id = read_id<Id>(params, token, lane);
            if (params.weights != nullptr) routing.weight = params.weights[token * params.workspace.top_k + lane];
        }
        routing.owner = params.workspace.owners.rank_of(routing.id);
        return routing;
    }

    __device__ __forceinline__ int32_t id_for(int32_t rank, int32_t invalid_id) const { return owner == rank ? static_cast<int32_t>(id) : invalid_id; }
};

// Ids, weights and origin of one received row.
__device__ __forceinline__ void store_routing(const Workspace &ws, unsigned char *at, int64_t row, int lane, int32_t id, float weight, bool weights,
                                              const RowOrigin &origin) {
    if (lane < ws.top_k) {
        part<int32_t>(at, ws.layout.ids)[row * ws.top_k + lane] = id;
        if (weights) part<float>(at, ws.layout.weights)[row * ws.top_k + lane] = weight;
    }
    if (lane == 0) part<RowOrigin>(at, ws.layout.origins)[row] = origin;
}

// Every rank sends a row back for our token.
__device__ __noinline__ void keep_token_of_all(const Workspace &ws, int64_t token, int lane) {
    if (lane == 0) {
        part<int32_t>(ws.mine, ws.layout.distinct)[token] = ws.ranks;
        part<OwnRow>(ws.mine, ws.layout.own_rows)[token] = {static_cast<int32_t>(token), ws.rank};
    }
    for (int rank = lane; rank < ws.ranks; rank += 32) part<int32_t>(ws.mine, ws.layout.distinct_ranks)[token * ws.max_distinct + rank] = rank;
}

// What combine, and a dispatch that repeats the routing, must know of our own token.
template <bool to_all>
__device__ __forceinline__ void keep_token(const DispatchParams &params, int64_t token, int lane, const RoutingLane &routing, const Sendings &to) {
    const Workspace &ws = params.workspace;
    if (spread_of<to_all>(params) == spread_no_routing) {
        keep_token_of_all(ws, token, lane);
        return;
    }
    if (lane < ws.top_k) {
        part<int32_t>(ws.mine, ws.layout.own_ids)[token * ws.top_k + lane] = routing.owner < 0 ? -1 : static_cast<int32_t>(routing.id);
        if (params.weights != nullptr) part<float>(ws.mine, ws.layout.own_weights)[token * ws.top_k + lane] = routing.weight;
    }
    const int distinct = to.owners();
    const Destination mine = lane < distinct ? to.owner(lane) : Destination{-1, 0};
    const uint32_t own = __ballot_sync(all_lanes, mine.rank == ws.rank);
    const int place = __ffs(static_cast<int>(own)) - 1;
    const int32_t slot = __shfl_sync(all_lanes, mine.slot, max(place, 0));
    if (lane == 0) {
        part<int32_t>(ws.mine, ws.layout.distinct)[token] = distinct;
        part<OwnRow>(ws.mine, ws.layout.own_rows)[token] = {slot, place};
    }
    if (lane < distinct) part<int32_t>(ws.mine, ws.layout.distinct_ranks)[token * ws.max_distinct + lane] = mine.rank;
    if (params.weights == nullptr) return;
    float sum = 0.0f;
    for (int k = 0; k < ws.top_k; ++k) {
        const float other = __shfl_sync(all_lanes, routing.weight, k);
        if (__shfl_sync(all_lanes, routing.owner, k) == mine.rank) sum += other;
    }
    if (lane < distinct) part<float>(ws.mine, ws.layout.weight_sums)[token * ws.max_distinct + lane] = sum;
}

// --- rows into planes ---------------------------------------------------------------------------------------------------------

// One token a warp.
template <class Id, bool to_all>
__device__ void send_routing(const DispatchParams &params, int64_t begin, int tokens, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32;
    for (int local = threadIdx.x / 32; local < tokens; local += block_threads / 32) {
        const int64_t token = begin + local;
        const RoutingLane routing = RoutingLane::read<Id, to_all>(params, token, lane);
        const Sendings sendings(spread_of<to_all>(params), params, shared.routes, local, token);
        for (int j = 0; j < sendings.count(); ++j) {
            const Destination to = sendings.at(j);
            store_routing(ws, shared.peers[to.rank], row_of(ws, ws.rank, to.slot), lane, routing.id_for(to.rank, params.invalid_id), routing.weight,
                          params.weights != nullptr, {static_cast<int32_t>(token), sendings.distinct(j)});
        }
        keep_token<to_all>(params, token, lane, routing, sendings);
    }
}

// A team's first vectors of a payload, loaded while the routes are found.
struct FirstRows {
    Batch<uint4> batch;

    __device__ __forceinline__ void load(const Payload &payload, int64_t begin, int tokens) {
        const Teams teams(tokens);
        if (payload.width != 16 || teams.team >= tokens) return;
        batch.load(payload.source + static_cast<uint64_t>(begin + teams.team) * payload.source_stride, teams.lane,
                   static_cast<int64_t>(payload.row_bytes / sizeof(uint4)), teams.width);
    }
};

// Whether rows that stay here go where the caller wants them at once, and not by way of the plane.
__device__ __forceinline__ bool own_rows_go_out(const DispatchParams &params, int p) {
    const Payload &payload = params.payloads[p];
    return payload.output != nullptr && payload.output_width >= payload.width && (params.quantize == quantize_none || p > 1);
}

// The rows of one payload: read once, stored once for every rank that they go to.
template <bool to_all>
__device__ __forceinline__ void send_payload(const DispatchParams &params, int p, int64_t begin, int tokens, const FirstRows *ready,
                                             const Shared &shared) {
    const Workspace &ws = params.workspace;
    const Payload &payload = params.payloads[p];
    const bool own_go_out = own_rows_go_out(params, p);
    const Teams teams(tokens);
    with_width(payload.width, [=, &params, &ws, &payload, &shared](auto vector) {
        using V = decltype(vector);
        const int64_t count = static_cast<int64_t>(payload.row_bytes / sizeof(V));
        for (int local = teams.team; local < tokens; local += teams.count) {
            const Sendings sendings(spread_of<to_all>(params), params, shared.routes, local, begin + local);
            if (sendings.count() == 0) continue;
            const unsigned char *from = payload.source + static_cast<uint64_t>(begin + local) * payload.source_stride;
            for (int64_t first = teams.lane; first < count; first += int64_t{teams.width} * unroll) {
                Batch<V> batch;
                bool loaded = false;
                if constexpr (sizeof(V) == sizeof(uint4)) {
                    loaded = ready != nullptr && local == teams.team && first == teams.lane;
                    if (loaded) batch = ready->batch;
                }
                if (!loaded) batch.load(from, first, count, teams.width);
                for (int j = 0; j < sendings.count(); ++j) {
                    const Destination to = sendings.at(j);
                    const auto row = static_cast<uint64_t>(row_of(ws, ws.rank, to.slot));
                    unsigned char *target = own_go_out && to.rank == ws.rank ? payload.output + row * payload.output_stride
                                                                             : shared.peers[to.rank] + payload.plane + row * payload.plane_stride;
                    batch.store(target, first, count, teams.width);
                }
            }
        }
    });
}

// Payload 0 as FP8, and its scales as payload 1.
template <bool to_all>
__device__ __forceinline__ void send_quantized(const DispatchParams &params, int64_t begin, int tokens, const Shared &shared) {
    constexpr int ahead = 2;
    const Workspace &ws = params.workspace;
    const Payload &values = params.payloads[0], &scales = params.payloads[1];
    const Teams teams(tokens);
    const int64_t count = static_cast<int64_t>(values.row_bytes / 16);
    for (int local = teams.team; local < tokens; local += teams.count) {
        const Sendings sendings(spread_of<to_all>(params), params, shared.routes, local, begin + local);
        const unsigned char *from = values.source + static_cast<uint64_t>(begin + local) * values.source_stride;
        for (int64_t first = teams.lane; first < count; first += int64_t{teams.width} * ahead) {
            BlockPart part[ahead];
#pragma unroll
            for (int u = 0; u < ahead; ++u) {
                if (first + u * teams.width < count) part[u].load(from, first + u * teams.width);
            }
#pragma unroll
            for (int u = 0; u < ahead; ++u) {
                const int64_t vector = first + u * teams.width;
                if (vector >= count) continue;
                float scale;
                const uint4 quantized = part[u].quantize(params.quantize == quantize_e8m0, &scale);
                for (int j = 0; j < sendings.count(); ++j) {
                    const Destination to = sendings.at(j);
                    const uint64_t row = static_cast<uint64_t>(row_of(ws, ws.rank, to.slot));
                    unsigned char *peer = shared.peers[to.rank];
                    reinterpret_cast<uint4 *>(peer + values.plane + row * values.plane_stride)[vector] = quantized;
                    if (holds_scale(teams.lane)) store_scale(peer + scales.plane + row * scales.plane_stride, params.quantize, vector, scale);
                }
            }
        }
    }
}

// --- packets ------------------------------------------------------------------------------------------------------------------

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
    int item;  // -1: none
    RowTile at;
    Cargo<quantized> cargo;
};

// The rows of a batch of tokens.
template <class Id, bool quantized, bool to_all>
__device__ __forceinline__ void send_packets(const DispatchParams &params, int64_t begin, int tokens, const FirstTile<quantized> &first, WarpShare share,
                                             const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32;
    share.each(tokens * static_cast<int>(params.row_tiles), [&](int item) {
        const RowTile at = item == first.item ? first.at : RowTile(params, item, lane);
        const int64_t token = begin + at.row;
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
                                  {static_cast<int32_t>(token), distinct});
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

// The order in which a source's rows come: its blocks send their shares side by side.
class Arrival {
public:
    __device__ Arrival(int rows, int shares) : rows_(rows), shares_(rows > batch_tokens ? shares : 1) {}

    __device__ __forceinline__ bool many() const { return shares_ > 1; }
    __device__ __forceinline__ int places() const { return (rows_ + shares_ - 1) / shares_ * shares_; }

    // -1: no row.
    __device__ __forceinline__ int slot(int place) const {
        if (shares_ == 1) return place;
        const int nth = place / shares_, share = place - nth * shares_;
        const int slot = static_cast<int>(share_begin(rows_, share, shares_)) + nth;
        return slot < share_begin(rows_, share + 1, shares_) ? slot : -1;
    }

private:
    int rows_, shares_;
};

template <bool few, bool quantized>
__device__ __forceinline__ void receive_packets(const DispatchParams &params, const Blocks<few> &blocks, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32, row_tiles = static_cast<int>(params.row_tiles);
    WarpShare share(blocks.receiver, blocks.receivers);
    for (int32_t source = 0; source < ws.ranks; ++source) {
        const uint32_t count = shared.counts[source];
        if (source == ws.rank || (count & packets_bit) == 0) continue;
        const Arrival arrival(rows_in(count), sending_part(gridDim.x));
        share.each(arrival.places() * row_tiles, [&](int item) {
            const RowTile at(params, item, lane);
            const int slot = arrival.slot(at.row);
            if (slot < 0) return;
            unsigned char *from = packets_of(ws, ws.mine, source, slot);
            const int64_t row = row_of(ws, source, slot);
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
            if (!await_piece(ws, source, phase_dispatch, tile, lane, at.valid, shared.epoch, arrival.many(), look, &cargo.piece)) return;
            const Target target(ws, payload, row);
            store_piece(target.row, at.tile, lane, at.valid, cargo.piece, target.width);
            if (cargo.await_scales(ws, source, at, tile, lane, shared.epoch)) cargo.store_scales(params, at, row, lane);
        });
    }
}

// --- announcement and reception -----------------------------------------------------------------------------------------------

// Totals to every rank, by the one block that knows them. Nothing needs to come before: rows have counters or tags of their own.
// Rows that go as packets are counted here, only so that the counter's start of the next round is known.
__device__ void announce(const DispatchParams &params, int32_t tokens, bool packets, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int rank = threadIdx.x;
    stagger();
    if (rank < ws.ranks) {
        SourceLine *line = part<SourceLine>(shared.peers[rank], ws.layout.lines) + ws.rank;
        const uint32_t rows = static_cast<uint32_t>(shared.routes.next[rank]);
        store_relaxed(&line->dispatch_shape, tagged(shared.epoch, params.shape));
        store_relaxed(&line->dispatch_count,
                      tagged(shared.epoch, rows | (packets ? packets_bit : 0u) | (tokens <= ws.combine_packet_rows ? packets_back_bit : 0u)));
        if (packets) add_relaxed(&line->dispatch_rows, uint64_t{rows});
        part<int32_t>(ws.mine, ws.layout.send_counts)[rank] = static_cast<int32_t>(rows);
    }
    if (threadIdx.x == 0) {
        SlotState *state = part<SlotState>(ws.mine, ws.layout.state);
        if (state->dispatch_epoch == shared.epoch) report(ws, fault_pairing, ws.rank, phase_dispatch);
        state->tokens = tokens;
        state->dispatch_epoch = shared.epoch;
    }
}

// This block's rows in the planes, counted at every rank. All stores of the block come before: block barrier, then each counting
// thread's fence.
__device__ void count_rows(const Workspace &ws, const Shared &shared) {
    const int rank = threadIdx.x;
    if (rank >= ws.ranks) return;
    const int32_t rows = shared.routes.next[rank] - shared.routes.before[rank];
    if (rows == 0) return;
    stagger();
    fence<Site::dispatch_count>();
    stagger();
    add_relaxed(&(part<SourceLine>(shared.peers[rank], ws.layout.lines) + ws.rank)->dispatch_rows, static_cast<uint64_t>(rows));
}

// `rows`: also until the rows in the planes have come; packets are awaited where they are used.
template <bool few>
__device__ __forceinline__ bool await_source(const DispatchParams &params, const Blocks<few> &blocks, int32_t source, bool rows, Shared &shared) {
    const Workspace &ws = params.workspace;
    const SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + source;
    const uint64_t base = part<uint64_t>(ws.mine, ws.layout.dispatch_base)[source];
    Filled filled{};
    if (blocks.looks_after(source)) filled = part<Filled>(ws.mine, ws.layout.filled)[source];
    uint32_t count;
    if (!await_count(ws, &line->dispatch_count, &line->dispatch_shape, shared.epoch, params.shape, source, phase_dispatch, &count)) return false;
    shared.counts[source] = count;
    shared.filled[source] = filled;
    if ((!rows && !blocks.looks_after(source)) || (count & packets_bit) != 0) return true;
    touch(ws.mine + params.payloads[0].plane + static_cast<uint64_t>(row_of(ws, source, blocks.receiver)) * params.payloads[0].plane_stride,
          params.payload_count > 0 && blocks.receiver < rows_in(count) ? params.payloads[0].row_bytes : 0);
    if (!await(ws, source, phase_dispatch, [&] { return load_relaxed(&line->dispatch_rows) - base == static_cast<uint64_t>(rows_in(count)); })) return false;
    stagger();
    acquire<Site::dispatch_await>(&line->dispatch_rows);
    return true;
}

// Marks the rows of topk_ids beyond those that came, once: rows already marked with the same id stay.
__device__ void fill_ids(const DispatchParams &params, int32_t source, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int32_t rows = rows_in(shared.counts[source]);
    const Filled filled = shared.filled[source];
    const int64_t end = filled.id == params.invalid_id ? filled.rows : ws.capacity;
    int32_t *ids = part<int32_t>(ws.mine, ws.layout.ids) + int64_t{source} * ws.capacity * ws.top_k;
    for (int64_t i = int64_t{rows} * ws.top_k + threadIdx.x; i < end * ws.top_k; i += block_threads) ids[i] = params.invalid_id;
    if (threadIdx.x == 0) {
        part<Filled>(ws.mine, ws.layout.filled)[source] = {rows, params.invalid_id};
        part<int32_t>(ws.mine, ws.layout.recv_counts)[source] = rows;
        part<uint32_t>(ws.mine, ws.layout.received)[source] = shared.counts[source];
    }
}

__device__ __noinline__ void copy_out(const DispatchParams &params, int receiver, int receivers, const Shared &shared) {
    const Workspace &ws = params.workspace;
#pragma unroll 1
    for (int p = 0; p < params.payload_count; ++p) {
        const Payload &payload = params.payloads[p];
        if (payload.row_bytes == 0 || payload.output == nullptr) continue;
        const int32_t width = min(payload.width, payload.output_width);
        for (int32_t source = 0; source < ws.ranks; ++source) {
            if ((shared.counts[source] & packets_bit) != 0 || (source == ws.rank && own_rows_go_out(params, p))) continue;
            const int64_t rows = rows_in(shared.counts[source]);
            const Teams teams((rows + receivers - 1) / receivers);
            for (int64_t row = int64_t{receiver} * teams.count + teams.team; row < rows; row += int64_t{receivers} * teams.count) {
                const uint64_t index = static_cast<uint64_t>(source) * static_cast<uint64_t>(ws.capacity) + static_cast<uint64_t>(row);
                copy_row(teams.width, teams.lane, ws.mine + payload.plane + index * payload.plane_stride, payload.output + index * payload.output_stride,
                         payload.row_bytes, width);
            }
        }
    }
}

// Sends the rows of a block's tokens, batch by batch. The first batch is found already.
template <class Id, int Words, bool quantized, bool to_all>
__device__ __forceinline__ void send(const DispatchParams &params, const Blocks<false> &blocks, int32_t all, int64_t begin, int64_t end, const FirstTile<quantized> &first_tile, const FirstRows &first_rows,
                                     Shared &shared) {
    const Workspace &ws = params.workspace;
    int64_t first = begin;
    do {
        const int count = static_cast<int>(min(int64_t{batch_tokens}, end - first));
        if (first > begin) {
            if (spread_of<to_all>(params) != spread_no_routing) find_batch<Id, Words>(params, first, count, shared.routes);
            __syncthreads();
        }
        number_batch<Words>(spread_of<to_all>(params), ws.ranks, first, count, shared.routes);
        __syncthreads();
        advance(ws.ranks, shared.routes);
        if (blocks.announces() && first + count == end) announce(params, all, blocks.packets, shared);
        if (blocks.packets) {
            send_packets<Id, quantized, to_all>(params, first, count, first_tile, blocks.together ? WarpShare(blockIdx.x, gridDim.x) : WarpShare(0, 1), shared);
        } else {
            send_routing<Id, to_all>(params, first, count, shared);  // first, because few warps have it to do
#pragma unroll 1
            for (int p = 0; p < params.payload_count; ++p) {
                if (quantized && p <= 1) {
                    if (p == 0) send_quantized<to_all>(params, first, count, shared);
                } else if (params.payloads[p].row_bytes > 0) {
                    send_payload<to_all>(params, p, first, count, p == 0 && first == begin ? &first_rows : nullptr, shared);
                }
            }
        }
        first += count;
        if (first < end || !blocks.packets) __syncthreads();
    } while (first < end);
    if (!blocks.packets) count_rows(ws, shared);
}

// The same of tokens that every block routes.
template <class Id, int Words, bool quantized, bool to_all>
__device__ __forceinline__ void send(const DispatchParams &params, const Blocks<true> &blocks, int32_t all, int64_t, int64_t, const FirstTile<quantized> &first_tile,
                                     const FirstRows &, Shared &shared) {
    number_batch<Words>(spread_of<to_all>(params), params.workspace.ranks, 0, all, shared.routes);
    __syncthreads();
    advance(params.workspace.ranks, shared.routes);
    if (blocks.announces()) announce(params, all, true, shared);
    send_packets<Id, quantized, to_all>(params, 0, all, first_tile, WarpShare(blockIdx.x, gridDim.x), shared);
}

// `few`: the tokens of this rank are so few that every block routes all, and go as packets. A kernel of its own, because what a small
// batch takes is mostly fetching instructions.
template <class Id, int Words, bool few, bool quantized, bool to_all>
__global__ void __launch_bounds__(block_threads, 1) dispatch_kernel(const __grid_constant__ DispatchParams params) {
    __shared__ Shared shared;
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32, item = WarpShare(blockIdx.x, gridDim.x).first();
    FirstTile<quantized> first_tile = {item, RowTile(params, item, lane), {}};
    if (threadIdx.x < ws.ranks && ws.ranks <= near_ranks) shared.peers[threadIdx.x] = ws.near[threadIdx.x];
    if (!enter(ws)) return;
    const bool fault = found_fault(ws);
    uint32_t epoch = 0;
    if (threadIdx.x == block_threads - 1) epoch = next_epoch(part<SlotState>(ws.mine, ws.layout.state)->combine_epoch);
    int32_t tokens = params.tokens;
    if (params.tokens_device != nullptr) tokens = max(0, min(tokens, *params.tokens_device));
    const Blocks<few> blocks(params, tokens);
    int64_t begin = 0, end = tokens;
    if (!blocks.together && blocks.sends()) {
        begin = share_begin(tokens, min(static_cast<int>(blockIdx.x), blocks.senders), blocks.senders);
        end = share_begin(tokens, min(static_cast<int>(blockIdx.x) + 1, blocks.senders), blocks.senders);
        first_tile.item = -1;
    } else if (blocks.sends() && item < tokens * static_cast<int>(params.row_tiles)) {
        first_tile.cargo.load(params, first_tile.at, first_tile.at.row, lane);
    }
    FirstRows first_rows;
    if (!few && !quantized && !blocks.packets && blocks.sends() && params.payload_count > 0) {
        first_rows.load(params.payloads[0], begin, static_cast<int>(min(int64_t{batch_tokens}, end - begin)));
    }
    if (blocks.sends()) {
        if (spread_of<to_all>(params) != spread_no_routing) {
            find_batch<Id, Words>(params, begin, static_cast<int>(min(int64_t{batch_tokens}, end - begin)), shared.routes);
        }
        if (!few && begin > 0 && spread_of<to_all>(params) == spread_owners) {
            count_before<Id, Words>(params, begin, shared.routes);
        } else if (threadIdx.x < ws.ranks) {
            shared.routes.before[threadIdx.x] = shared.routes.next[threadIdx.x] = static_cast<int32_t>(begin);
        }
    }
    if (threadIdx.x < ws.ranks && ws.ranks > near_ranks) shared.peers[threadIdx.x] = ws.peers[threadIdx.x];
    if (threadIdx.x == block_threads - 1) shared.epoch = epoch;
    if (__syncthreads_or(fault)) return;
    if (blocks.sends()) {
        if (!few && begin > 0 && spread_of<to_all>(params) == spread_owners) {
            sum_before(ws.ranks, shared.routes);
            __syncthreads();
        }
        send<Id, Words, quantized, to_all>(params, blocks, tokens, begin, end, first_tile, first_rows, shared);
    }
    if (blocks.receiver < 0) return;

    bool copies = false;
#pragma unroll 1
    for (int p = 0; p < params.payload_count; ++p) copies = copies || (params.payloads[p].row_bytes > 0 && params.payloads[p].output != nullptr);
    const bool lost = threadIdx.x < ws.ranks && !await_source(params, blocks, threadIdx.x, copies, shared);
    if (__syncthreads_or(lost)) return;
    receive_packets<few, quantized>(params, blocks, shared);
    for (int32_t source = blocks.receiver; source < ws.ranks; source += blocks.receivers) fill_ids(params, source, shared);
    if (copies) copy_out(params, blocks.receiver, blocks.receivers, shared);
}

template <class Id, bool quantized, bool to_all>
DispatchKernel choose_dispatch(int ranks, bool few) {
    if (few) return ranks <= 32 ? &dispatch_kernel<Id, 1, true, quantized, to_all> : &dispatch_kernel<Id, 4, true, quantized, to_all>;
    return ranks <= 32 ? &dispatch_kernel<Id, 1, false, quantized, to_all> : &dispatch_kernel<Id, 4, false, quantized, to_all>;
}

template <bool quantized, bool to_all>
DispatchKernel choose_dispatch(int ids_bytes, int ranks, bool few) {
    return ids_bytes == 8 ? choose_dispatch<int64_t, quantized, to_all>(ranks, few) : choose_dispatch<int32_t, quantized, to_all>(ranks, few);
}

}  // namespace

}  // namespace moelink::kernels::cuda
