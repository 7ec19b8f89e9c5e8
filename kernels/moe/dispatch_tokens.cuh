// What blocks of dispatch do, and what travels with a token's rows: ids, weights and origin.
#pragma once

#include "common/packets.cuh"
#include "moe/dispatch_kernels.hpp"
#include "moe/routing.cuh"

namespace moelink::kernels::cuda {

namespace {

struct Shared {
    unsigned char *peers[max_cuda_ranks];
    uint32_t counts[max_cuda_ranks];  // rows received from each rank, and packets_bit
    Filled filled[max_cuda_ranks];
    Routes routes;
    uint32_t epoch;
};

static_assert(max_dispatch_packet_rows <= batch_tokens);  // what goes as packets is one batch

// The block that knows the totals, and tells them.
__device__ __forceinline__ bool announces() { return blockIdx.x == gridDim.x - 1; }

// This block marks and counts the rows of some sources.
__device__ __forceinline__ bool looks_after(int32_t source) { return source % static_cast<int>(gridDim.x) == static_cast<int>(blockIdx.x); }

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

}  // namespace

}  // namespace moelink::kernels::cuda
