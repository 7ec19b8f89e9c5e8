// Push dispatch: one kernel. A rank's rows travel in one of two ways, which it chooses for itself and names in its count word: as
// packets, which the receiver's warps turn into rows of the planes; or stored into the planes, and counted there block by block.
// Tokens that go as packets are few, and every block routes all; of others each block sends the rows of its share.
#pragma once

#include "moe/dispatch_packets.cuh"
#include "moe/dispatch_rows.cuh"

namespace moelink::kernels::cuda {

namespace {

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

// One thread's wait for a source's totals.
__device__ __forceinline__ bool await_totals(const DispatchParams &params, int32_t source, Shared &shared) {
    const Workspace &ws = params.workspace;
    const SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + source;
    Filled filled{};
    if (looks_after(source)) filled = part<Filled>(ws.mine, ws.layout.filled)[source];
    uint32_t count;
    if (!await_count(ws, &line->dispatch_count, &line->dispatch_shape, shared.epoch, params.shape, source, phase_dispatch, &count)) return false;
    shared.counts[source] = count;
    shared.filled[source] = filled;
    return true;
}

// One thread's wait for a source's rows in the planes.
__device__ __forceinline__ bool await_rows(const DispatchParams &params, int32_t source, const Shared &shared) {
    const uint32_t count = shared.counts[source];
    if ((count & packets_bit) != 0) return true;  // those are awaited where they are used
    const Workspace &ws = params.workspace;
    const SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + source;
    const uint64_t base = part<uint64_t>(ws.mine, ws.layout.dispatch_base)[source];
    const int block = blockIdx.x;
    touch(ws.mine + params.payloads[0].plane + static_cast<uint64_t>(row_of(ws, source, block)) * params.payloads[0].plane_stride,
          params.payload_count > 0 && block < rows_in(count) ? params.payloads[0].row_bytes : 0);
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

__device__ __noinline__ void copy_out(const DispatchParams &params, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int block = blockIdx.x, blocks = gridDim.x;
#pragma unroll 1
    for (int p = 0; p < params.payload_count; ++p) {
        const Payload &payload = params.payloads[p];
        if (payload.row_bytes == 0 || payload.output == nullptr) continue;
        const int32_t width = min(payload.width, payload.output_width);
        for (int32_t source = 0; source < ws.ranks; ++source) {
            if ((shared.counts[source] & packets_bit) != 0 || (source == ws.rank && own_rows_go_out(params, p))) continue;
            const int64_t rows = rows_in(shared.counts[source]);
            const Teams teams((rows + blocks - 1) / blocks);
            for (int64_t row = int64_t{block} * teams.count + teams.team; row < rows; row += int64_t{blocks} * teams.count) {
                const uint64_t index = static_cast<uint64_t>(source) * static_cast<uint64_t>(ws.capacity) + static_cast<uint64_t>(row);
                copy_row(teams.width, teams.lane, ws.mine + payload.plane + index * payload.plane_stride, payload.output + index * payload.output_stride,
                         payload.row_bytes, width);
            }
        }
    }
}

// Whether the slots of a block's rows follow from the tokens before its own.
template <bool to_all>
__device__ __forceinline__ bool counts_before(const DispatchParams &params, int64_t begin) {
    return begin > 0 && spread_of<to_all>(params) == spread_owners;
}

// Sends a block's tokens as rows, batch by batch. The first batch is found already.
template <class Id, int Words, bool quantized, bool to_all>
__device__ __forceinline__ void send_rows(const DispatchParams &params, int32_t all, int64_t begin, int64_t end, BulkRows<to_all> &bulk, Shared &shared) {
    const Workspace &ws = params.workspace;
    bool some_in_bulk = false;
    for (int p = 0; !quantized && p < params.payload_count; ++p) some_in_bulk = some_in_bulk || in_bulk(params, p);
    const int warps = some_in_bulk ? block_warps - bulk_warps : block_warps;  // for all else
    int64_t first = begin;
    do {
        const int count = static_cast<int>(min(int64_t{batch_tokens}, end - first));
        if (first > begin) {
            if (spread_of<to_all>(params) != spread_no_routing) find_batch<Id, Words>(params, first, count, shared.routes);
            __syncthreads();
        }
        number_batch<Words>(spread_of<to_all>(params), ws.ranks, first, count, shared.routes, first == begin && counts_before<to_all>(params, begin));
        __syncthreads();
        advance(ws.ranks, shared.routes);
        if (announces() && first + count == end) announce(params, all, false, shared);
        if (static_cast<int>(threadIdx.x / 32) >= warps) {
            if (threadIdx.x % 32 == 0) bulk.send(params, first, count, shared);
        } else {
            send_routing<Id, to_all>(params, first, count, warps, shared);  // first, because few warps have it to do
#pragma unroll 1
            for (int p = 0; p < params.payload_count; ++p) {
                if (quantized && p <= 1) {
                    if (p == 0) send_quantized<to_all>(params, first, count, shared);
                } else if (params.payloads[p].row_bytes > 0 && (quantized || !in_bulk(params, p))) {
                    send_payload<to_all>(params, p, first, count, warps, shared);
                }
            }
        }
        first += count;
        __syncthreads();
    } while (first < end);
    count_rows(ws, shared);
}

// `few`: this rank's tokens are so few that they go as packets, as the launch knows. A kernel of its own, because what a small batch takes
// is mostly fetching instructions.
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
    const bool sends = (params.halves & half_send) != 0;
    const bool packets = few || (params.packets != 0 && tokens <= ws.dispatch_packet_rows);
    int64_t begin = 0, end = tokens;
    if (!packets) {
        begin = share_begin(tokens, blockIdx.x, gridDim.x);
        end = share_begin(tokens, blockIdx.x + 1, gridDim.x);
    } else if (sends && item < tokens * static_cast<int>(params.row_tiles)) {
        first_tile.cargo.load(params, first_tile.at, first_tile.at.row, lane);
    }
    BulkRows<to_all> bulk;
    const bool copies_in_bulk = !few && !quantized && bulk_copies() && !packets && sends && bulk_warp() >= 0 && lane == 0;
    if (copies_in_bulk) bulk.start(params, begin, end);
    if (sends) {
        if (spread_of<to_all>(params) != spread_no_routing) {
            find_batch<Id, Words>(params, begin, static_cast<int>(min(int64_t{batch_tokens}, end - begin)), shared.routes);
        }
        if (!few && counts_before<to_all>(params, begin)) {
            count_before<Id, Words>(params, begin, shared.routes);
        } else if (threadIdx.x < ws.ranks) {
            shared.routes.before[threadIdx.x] = shared.routes.next[threadIdx.x] = static_cast<int32_t>(begin);
        }
    }
    if (threadIdx.x < ws.ranks && ws.ranks > near_ranks) shared.peers[threadIdx.x] = ws.peers[threadIdx.x];
    if (threadIdx.x == block_threads - 1) shared.epoch = epoch;
    if (__syncthreads_or(fault)) {
        if (copies_in_bulk) bulk.drop();
        return;
    }
    if (sends && packets) {
        number_batch<Words>(spread_of<to_all>(params), ws.ranks, 0, tokens, shared.routes);
        __syncthreads();
        advance(ws.ranks, shared.routes);
        if (announces()) announce(params, tokens, true, shared);
        send_packets<Id, quantized, to_all>(params, tokens, first_tile, shared);
    } else if (sends) {
        send_rows<Id, Words, quantized, to_all>(params, tokens, begin, end, bulk, shared);
    }
    if ((params.halves & half_receive) == 0) return;

    bool copies = false;
#pragma unroll 1
    for (int p = 0; p < params.payload_count; ++p) copies = copies || (params.payloads[p].row_bytes > 0 && params.payloads[p].output != nullptr);
    bool lost = threadIdx.x < ws.ranks && !await_totals(params, threadIdx.x, shared);
    if (__syncthreads_or(lost)) return;
    receive_packets<quantized>(params, shared);
    for (int32_t source = blockIdx.x; source < ws.ranks; source += gridDim.x) fill_ids(params, source, shared);
    if (threadIdx.x < ws.ranks && (copies || looks_after(threadIdx.x))) lost = !await_rows(params, threadIdx.x, shared);
    if (copies && !__syncthreads_or(lost)) copy_out(params, shared);
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
