// Dispatch of rows that are stored into planes, as they are or quantized.
#pragma once

#include "common/bulk.cuh"
#include "moe/dispatch_tokens.cuh"
#include "quant/block.cuh"

namespace moelink::kernels::cuda {

namespace {

// One token a warp.
template <class Id, bool to_all>
__device__ void send_routing(const DispatchParams &params, int64_t begin, int tokens, int warps, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32;
    for (int local = threadIdx.x / 32; local < tokens; local += warps) {
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

// Whether rows that stay here go where the caller wants them at once, and not by way of the plane.
__device__ __forceinline__ bool own_rows_go_out(const DispatchParams &params, int p) {
    const Payload &payload = params.payloads[p];
    return payload.output != nullptr && payload.output_width >= payload.width && (params.quantize == quantize_none || p > 1);
}

// Where a row of a payload goes: the plane there, or the caller's buffer here.
__device__ __forceinline__ unsigned char *destination_row(const DispatchParams &params, int p, const Destination &to, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const Payload &payload = params.payloads[p];
    const auto row = static_cast<uint64_t>(row_of(ws, ws.rank, to.slot));
    if (to.rank == ws.rank && own_rows_go_out(params, p)) return payload.output + row * payload.output_stride;
    return shared.peers[to.rank] + payload.plane + row * payload.plane_stride;
}

// The rows of one payload: read once, stored once for every rank that they go to.
template <bool to_all>
__device__ __forceinline__ void send_payload(const DispatchParams &params, int p, int64_t begin, int tokens, int warps, const Shared &shared) {
    const Payload &payload = params.payloads[p];
    const Teams teams(tokens, warps);
    with_width(payload.width, [=, &params, &payload, &shared](auto vector) {
        using V = decltype(vector);
        const int64_t count = static_cast<int64_t>(payload.row_bytes / sizeof(V));
        for (int local = teams.team; local < tokens; local += teams.count) {
            const Sendings sendings(spread_of<to_all>(params), params, shared.routes, local, begin + local);
            if (sendings.count() == 0) continue;
            const unsigned char *from = payload.source + static_cast<uint64_t>(begin + local) * payload.source_stride;
            for (int64_t first = teams.lane; first < count; first += int64_t{teams.width} * unroll) {
                Batch<V> batch;
                batch.load(from, first, count, teams.width);
                for (int j = 0; j < sendings.count(); ++j) batch.store(destination_row(params, p, sendings.at(j), shared), first, count, teams.width);
            }
        }
    });
}

// Payloads of which bulk copies take the rows, by a few threads beside the others.
__device__ __forceinline__ bool in_bulk(const DispatchParams &params, int p) {
    return bulk_copies() && goes_in_bulk(params.payloads[p].row_bytes, params.payloads[p].width);
}

// A part of a token's rows: token by token of a warp, of each all payloads that go in bulk.
struct Chunk {
    int64_t token;
    int payload;  // payload_count: there is none
    uint64_t at;
    uint32_t most;

    static __device__ Chunk first(const DispatchParams &params, int64_t token) { return {token, next_payload(params, 0), 0, bulk_first_chunk}; }

    __device__ __forceinline__ uint32_t bytes(const DispatchParams &params) const {
        return static_cast<uint32_t>(min(uint64_t{most}, params.payloads[payload].row_bytes - at));
    }

    __device__ __forceinline__ void advance(const DispatchParams &params) {
        at += most;
        if (at < params.payloads[payload].row_bytes) return;
        at = 0;
        payload = next_payload(params, payload + 1);
        if (payload < params.payload_count) return;
        payload = next_payload(params, 0);
        token += bulk_warps;
        most = bulk_chunk;
    }

private:
    static __device__ __forceinline__ int next_payload(const DispatchParams &params, int p) {
#pragma unroll 1
        while (p < params.payload_count && !in_bulk(params, p)) ++p;
        return p;
    }
};

// The rows of a block's tokens in bulk. Little is read before the first is routed, since ids would wait behind it.
template <bool to_all>
class BulkRows {
public:
    __device__ void start(const DispatchParams &params, int64_t begin, int64_t end) {
        ring_.open();
        coming_ = going_ = Chunk::first(params, begin + bulk_warp());
        end_ = going_.payload < params.payload_count ? end : begin;
        read_ahead(params);
    }

    // Of a batch that is routed.
    __device__ void send(const DispatchParams &params, int64_t begin, int tokens, const Shared &shared) {
        const int64_t last = min(begin + tokens, end_);
        while (going_.token < last) {
            const Sendings sendings(spread_of<to_all>(params), params, shared.routes, static_cast<int>(going_.token - begin), going_.token);
            ring_.await();
            stagger();
            int at = sendings.first(params.workspace.rank);
            for (int j = 0; j < sendings.count(); ++j) {
                ring_.store(destination_row(params, going_.payload, sendings.at(at), shared) + going_.at, going_.bytes(params));
                if (++at == sendings.count()) at = 0;
            }
            ring_.stored();
            going_.advance(params);
            read_ahead(params);
        }
        if (last == end_) ring_.written<0>();
    }

    __device__ void drop() { ring_.drop(); }

private:
    __device__ __forceinline__ void read_ahead(const DispatchParams &params) {
        while (coming_.token < end_ && ring_.has_room()) {
            const Payload &payload = params.payloads[coming_.payload];
            ring_.read(payload.source + static_cast<uint64_t>(coming_.token) * payload.source_stride + coming_.at, coming_.bytes(params));
            coming_.advance(params);
        }
    }

    Ring ring_;
    Chunk coming_;
    Chunk going_;
    int64_t end_;
};

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

}  // namespace

}  // namespace moelink::kernels::cuda
