// Push dispatch: one kernel. Each block routes its share of the tokens, stores their rows into the planes of the distinct
// ranks, and adds the number of rows to a counter at each of them. Slots are numbered in token order without atomics: a block
// counts the tokens before its own by reading their ids again, which costs less than waiting for other blocks.
#include "common/rows.cuh"
#include "common/signal.cuh"

#include <algorithm>

namespace moelink::kernels::cuda {

namespace {

constexpr int batch_tokens = 64;
constexpr unsigned all_lanes = 0xffffffffu;

struct Destination {
    int32_t rank;
    int32_t slot;
};

struct Shared {
    unsigned char *peers[max_cuda_ranks];
    int32_t before[max_cuda_ranks];  // rows of earlier blocks to each rank
    int32_t next[max_cuda_ranks];    // slot of the next row to each rank
    int32_t counts[max_cuda_ranks];  // rows received from each rank
    Destination to[batch_tokens][max_top_k];
    int32_t distinct[batch_tokens];
    uint32_t epoch;
};

// The distinct ranks of one token as bits; Words 32-bit words.
template <int Words>
struct RankSet {
    uint32_t bits[Words] = {};

    __device__ __forceinline__ void add(int32_t rank) {
#pragma unroll
        for (int w = 0; w < Words; ++w) bits[w] |= rank >> 5 == w ? 1u << (rank & 31) : 0u;
    }
};

template <class Id>
__device__ __forceinline__ int64_t read_id(const DispatchParams &params, int64_t token, int k) {
    return __ldg(static_cast<const Id *>(params.ids) + token * params.workspace.top_k + k);
}

template <class Id, int Words>
__device__ __forceinline__ RankSet<Words> ranks_of(const DispatchParams &params, const ExpertRanks &owners, int64_t token) {
    RankSet<Words> set;
    for (int k = 0; k < params.workspace.top_k; ++k) {
        int32_t rank = owners.rank_of(read_id<Id>(params, token, k));
        if (rank >= 0) set.add(rank);
    }
    return set;
}

// How many of the tokens [0, end) go to each rank, into shared.before.
template <class Id, int Words>
__device__ void count_before(const DispatchParams &params, const ExpertRanks &owners, int64_t end, Shared &shared) {
    const int lane = threadIdx.x % 32;
    int32_t count[Words] = {};
    for (int64_t group = threadIdx.x / 32; group * 32 < end; group += block_threads / 32) {
        const int64_t token = group * 32 + lane;
        RankSet<Words> set;
        if (token < end) set = ranks_of<Id, Words>(params, owners, token);
#pragma unroll
        for (int w = 0; w < Words; ++w) {
            const int bits = min(32, params.workspace.ranks - w * 32);
            for (int bit = 0; bit < bits; ++bit) {
                const int32_t tokens = __popc(__ballot_sync(all_lanes, set.bits[w] >> bit & 1u));
                if (lane == bit) count[w] += tokens;
            }
        }
    }
#pragma unroll
    for (int w = 0; w < Words; ++w) {
        const int rank = w * 32 + lane;
        if (rank < params.workspace.ranks && count[w] > 0) atomicAdd(&shared.before[rank], count[w]);
    }
}

// One warp gives every token of a batch its destinations, in rank order, with their slots.
template <class Id, int Words>
__device__ void route_batch(const DispatchParams &params, const ExpertRanks &owners, int64_t begin, int tokens, Shared &shared) {
    const int lane = threadIdx.x;
    for (int group = 0; group < tokens; group += 32) {
        const int local = group + lane;
        RankSet<Words> set;
        if (local < tokens) set = ranks_of<Id, Words>(params, owners, begin + local);
        int distinct = 0;
#pragma unroll
        for (int w = 0; w < Words; ++w) {
            const int bits = min(32, params.workspace.ranks - w * 32);
            int32_t next = lane < bits ? shared.next[w * 32 + lane] : 0;
            for (int bit = 0; bit < bits; ++bit) {
                const bool goes = set.bits[w] >> bit & 1u;
                const uint32_t going = __ballot_sync(all_lanes, goes);
                const int32_t first = __shfl_sync(all_lanes, next, bit);
                if (goes) shared.to[local][distinct++] = {w * 32 + bit, first + __popc(going & ((1u << lane) - 1u))};
                if (lane == bit) next += __popc(going);
            }
            if (lane < bits) shared.next[w * 32 + lane] = next;
        }
        if (local < tokens) shared.distinct[local] = distinct;
    }
}

__device__ __forceinline__ int64_t row_of(const Workspace &ws, const Destination &to) { return int64_t{ws.rank} * ws.capacity + to.slot; }

// Ids, weights and origin of a batch's rows, one token a warp; and what combine must know of our own tokens.
template <class Id>
__device__ void send_routing(const DispatchParams &params, const ExpertRanks &owners, int64_t begin, int tokens, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32;
    for (int local = threadIdx.x / 32; local < tokens; local += block_threads / 32) {
        const int64_t token = begin + local;
        const int distinct = shared.distinct[local];
        int64_t id = -1;
        float weight = 0.0f;
        if (lane < ws.top_k) {
            id = read_id<Id>(params, token, lane);
            if (params.weights != nullptr) weight = __ldg(params.weights + token * ws.top_k + lane);
        }
        const int32_t owner = owners.rank_of(id);
        for (int j = 0; j < distinct; ++j) {
            const Destination to = shared.to[local][j];
            unsigned char *peer = shared.peers[to.rank];
            const int64_t row = row_of(ws, to);
            if (lane < ws.top_k) {
                part<int32_t>(peer, ws.layout.ids)[row * ws.top_k + lane] = owner == to.rank ? static_cast<int32_t>(id) : params.invalid_id;
                if (params.weights != nullptr) part<float>(peer, ws.layout.weights)[row * ws.top_k + lane] = weight;
            }
            if (lane == 0) part<RowOrigin>(peer, ws.layout.origins)[row] = {static_cast<int32_t>(token), j};
        }
        if (lane == 0) part<int32_t>(ws.mine, ws.layout.distinct)[token] = distinct;
        if (params.weights != nullptr) {
            const int32_t rank = lane < distinct ? shared.to[local][lane].rank : -1;
            float sum = 0.0f;
            for (int k = 0; k < ws.top_k; ++k) {
                const float other = __shfl_sync(all_lanes, weight, k);
                if (__shfl_sync(all_lanes, owner, k) == rank) sum += other;
            }
            if (lane < distinct) part<float>(ws.mine, ws.layout.weight_sums)[token * ws.max_distinct + lane] = sum;
        }
    }
}

// The rows of one payload: read once, stored once for every distinct rank.
__device__ void send_payload(const Workspace &ws, const Payload &payload, int64_t begin, int tokens, const Shared &shared) {
    const Teams teams(tokens);
    with_width(payload.width, [&](auto vector) {
        using V = decltype(vector);
        const int64_t count = static_cast<int64_t>(payload.row_bytes / sizeof(V));
        for (int local = teams.team; local < tokens; local += teams.count) {
            const int distinct = shared.distinct[local];
            if (distinct == 0) continue;
            const unsigned char *from = payload.source + static_cast<uint64_t>(begin + local) * payload.source_stride;
            for (int64_t first = teams.lane; first < count; first += int64_t{teams.width} * unroll) {
                Batch<V> batch;
                batch.load(from, first, count, teams.width);
                for (int j = 0; j < distinct; ++j) {
                    const Destination to = shared.to[local][j];
                    batch.store(shared.peers[to.rank] + payload.plane + static_cast<uint64_t>(row_of(ws, to)) * payload.plane_stride, first,
                                count, teams.width);
                }
            }
        }
    });
}

// Rows of this block to every rank; the block with the last tokens knows the totals and announces them. All stores of the
// block come before: block barrier, then each signalling thread's fence.
__device__ void signal(const DispatchParams &params, bool last_tokens, int32_t tokens, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int rank = threadIdx.x;
    if (rank < ws.ranks) {
        SourceLine *line = part<SourceLine>(shared.peers[rank], ws.layout.lines) + ws.rank;
        const int32_t rows = shared.next[rank] - shared.before[rank];
        if (last_tokens) store_relaxed(&line->dispatch_shape, tagged(shared.epoch, params.shape));
        if (last_tokens || rows > 0) fence();
        if (rows > 0) add_relaxed(&line->dispatch_rows, static_cast<uint64_t>(rows));
        if (last_tokens) {
            store_relaxed(&line->dispatch_count, tagged(shared.epoch, static_cast<uint32_t>(shared.next[rank])));
            int32_t *sent = part<int32_t>(ws.mine, ws.layout.send_counts) + rank;
            part<uint64_t>(ws.mine, ws.layout.combine_base)[rank] += static_cast<uint64_t>(*sent);  // the round before, now summed
            *sent = shared.next[rank];
        }
    }
    if (last_tokens && threadIdx.x == 0) {
        SlotState *state = part<SlotState>(ws.mine, ws.layout.state);
        if (state->dispatch_epoch == shared.epoch) report(ws, fault_pairing, ws.rank, phase_dispatch);
        state->tokens = tokens;
        state->dispatch_epoch = shared.epoch;
    }
}

__device__ bool await_source(const DispatchParams &params, int32_t source, Shared &shared) {
    const Workspace &ws = params.workspace;
    const SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + source;
    const uint64_t base = part<uint64_t>(ws.mine, ws.layout.dispatch_base)[source];
    shared.counts[source] = 0;
    return await_rows(ws, &line->dispatch_count, &line->dispatch_shape, &line->dispatch_rows, base, shared.epoch, params.shape, -1, source,
                      phase_dispatch, &shared.counts[source]);
}

// Marks the rows of topk_ids beyond those that came, once: rows already marked with the same id stay.
__device__ void fill_ids(const DispatchParams &params, int32_t source, int32_t rows) {
    const Workspace &ws = params.workspace;
    Filled *filled = part<Filled>(ws.mine, ws.layout.filled) + source;
    const int64_t end = filled->id == params.invalid_id ? filled->rows : ws.capacity;
    int32_t *ids = part<int32_t>(ws.mine, ws.layout.ids) + int64_t{source} * ws.capacity * ws.top_k;
    for (int64_t i = int64_t{rows} * ws.top_k + threadIdx.x; i < end * ws.top_k; i += block_threads) ids[i] = params.invalid_id;
    __syncthreads();
    if (threadIdx.x == 0) {
        *filled = {rows, params.invalid_id};
        part<int32_t>(ws.mine, ws.layout.recv_counts)[source] = rows;
    }
}

__device__ void copy_out(const DispatchParams &params, const Shared &shared) {
    const Workspace &ws = params.workspace;
    for (int p = 0; p < params.payload_count; ++p) {
        const Payload &payload = params.payloads[p];
        if (payload.row_bytes == 0 || payload.output == nullptr) continue;
        const int32_t width = min(payload.width, payload.output_width);
        for (int32_t source = 0; source < ws.ranks; ++source) {
            const int64_t rows = shared.counts[source];
            const Teams teams((rows + gridDim.x - 1) / gridDim.x);
            for (int64_t row = int64_t{blockIdx.x} * teams.count + teams.team; row < rows; row += int64_t{gridDim.x} * teams.count) {
                const uint64_t index = static_cast<uint64_t>(source) * static_cast<uint64_t>(ws.capacity) + static_cast<uint64_t>(row);
                copy_row(teams, ws.mine + payload.plane + index * payload.plane_stride, payload.output + index * payload.output_stride,
                         payload.row_bytes, width);
            }
        }
    }
}

template <class Id, int Words>
__global__ void __launch_bounds__(block_threads, 1) dispatch_kernel(const __grid_constant__ DispatchParams params) {
    __shared__ Shared shared;
    const Workspace &ws = params.workspace;
    if (!may_run(ws)) return;
    const ExpertRanks owners(ws.num_experts, ws.ranks);
    int32_t tokens = params.tokens;
    if (params.tokens_device != nullptr) tokens = max(0, min(tokens, __ldg(params.tokens_device)));
    const int64_t begin = share_begin(tokens, blockIdx.x), end = share_begin(tokens, blockIdx.x + 1);
    if (threadIdx.x == block_threads - 1) shared.epoch = part<SlotState>(ws.mine, ws.layout.state)->combine_epoch + 1;
    if (threadIdx.x < ws.ranks) {
        shared.peers[threadIdx.x] = ws.peers[threadIdx.x];
        shared.before[threadIdx.x] = 0;
        shared.next[threadIdx.x] = 0;
    }
    __syncthreads();
    if (begin > 0) {
        count_before<Id, Words>(params, owners, begin, shared);
        __syncthreads();
        if (threadIdx.x < ws.ranks) shared.next[threadIdx.x] = shared.before[threadIdx.x];
        __syncthreads();
    }
    for (int64_t first = begin; first < end; first += batch_tokens) {
        const int count = static_cast<int>(min(int64_t{batch_tokens}, end - first));
        if (threadIdx.x < 32) route_batch<Id, Words>(params, owners, first, count, shared);
        __syncthreads();
        send_routing<Id>(params, owners, first, count, shared);
        for (int p = 0; p < params.payload_count; ++p) {
            if (params.payloads[p].row_bytes > 0) send_payload(ws, params.payloads[p], first, count, shared);
        }
        __syncthreads();
    }
    signal(params, blockIdx.x == gridDim.x - 1, tokens, shared);

    bool copies = false;
    for (int p = 0; p < params.payload_count; ++p) copies = copies || (params.payloads[p].row_bytes > 0 && params.payloads[p].output != nullptr);
    bool lost = false;
    if (copies) {
        if (threadIdx.x < ws.ranks) lost = !await_source(params, threadIdx.x, shared);
    } else {
        const int32_t source = blockIdx.x + static_cast<int32_t>(threadIdx.x) * static_cast<int32_t>(gridDim.x);
        if (source < ws.ranks) lost = !await_source(params, source, shared);
    }
    lost = __syncthreads_or(lost);
    if (!lost) {
        for (int32_t source = blockIdx.x; source < ws.ranks; source += gridDim.x) fill_ids(params, source, shared.counts[source]);
        if (copies) copy_out(params, shared);
    }
}

using Kernel = void (*)(DispatchParams);

Kernel choose(int ids_bytes, int ranks) {
    if (ids_bytes == 8) return ranks <= 32 ? &dispatch_kernel<int64_t, 1> : &dispatch_kernel<int64_t, 4>;
    return ranks <= 32 ? &dispatch_kernel<int32_t, 1> : &dispatch_kernel<int32_t, 4>;
}

}  // namespace

Result load_dispatch() {
    for (int ids_bytes : {4, 8}) {
        for (int ranks : {1, max_cuda_ranks}) {
            cudaFuncAttributes attributes;
            if (cudaError_t error = cudaFuncGetAttributes(&attributes, choose(ids_bytes, ranks)); error != cudaSuccess) return error;
        }
    }
    return cudaSuccess;
}

Result dispatch(const DispatchParams &params, int blocks, CUstream_st *stream) {
    choose(params.ids_bytes, params.workspace.ranks)<<<static_cast<unsigned>(blocks), block_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

}  // namespace moelink::kernels::cuda
