// Layouts: received rows by source without gaps, or by expert; and the way back. By expert in four launches: each warp counts the
// experts of its segment; each expert's counts are summed over the segments; each warp places its rows; rows are copied.
#include "arrange.hpp"
#include "common/load.cuh"
#include "common/rows.cuh"
#include "common/sum.cuh"

#include <algorithm>

namespace moelink::kernels::cuda {

namespace {

constexpr int scan_threads = 1024;
constexpr int segment_threads = 128;
constexpr int most_ranks = 1024;
static_assert(max_segments <= scan_threads);

__device__ __forceinline__ int64_t entries_of(const ArrangeParams &params) { return int64_t{params.ranks} * params.capacity * params.top_k; }

// The stretch of a segment: whole warps of (row, k).
__device__ __forceinline__ int64_t segment_begin(const ArrangeParams &params, int segment) {
    const int64_t steps = (entries_of(params) + 31) / 32;
    return (steps * segment / params.segments) * 32;
}

// One (row, k) a lane.
struct Pair {
    int64_t row;     // rank-major
    int32_t source;
    int32_t token_row;  // of its source
    int32_t k;
    int32_t expert;  // its place among this rank's; -1: none
    bool came;

    __device__ Pair(const ArrangeParams &params, int64_t at) {
        row = at / params.top_k;
        k = static_cast<int32_t>(at - row * params.top_k);
        source = static_cast<int32_t>(row / params.capacity);
        token_row = static_cast<int32_t>(row - int64_t{source} * params.capacity);
        came = source < params.ranks && token_row < params.recv_counts[source];
        expert = -1;
        if (!came) return;
        const int32_t id = params.ids[at];
        if (params.owners.rank_of(id) == params.rank) expert = params.owners.place_of(id, params.rank);
    }

    __device__ __forceinline__ int32_t token(const ArrangeParams &params) const {
        return params.tokens != nullptr ? params.tokens[row * params.tokens_stride] : token_row;
    }
};

// Calls body(pair, pair's number, lanes of the same expert) for a segment, 32 at a time and in order.
template <class Body>
__device__ __forceinline__ void each_pair(const ArrangeParams &params, int segment, Body &&body) {
    const int64_t end = segment_begin(params, segment + 1);
    for (int64_t first = segment_begin(params, segment); first < end; first += 32) {
        const int64_t at = first + threadIdx.x % 32;
        const Pair pair(params, at);
        body(pair, at, __match_any_sync(all_lanes, pair.expert));
        __syncwarp();
    }
}

__device__ __forceinline__ bool leads(unsigned lanes) { return __ffs(static_cast<int>(lanes)) - 1 == static_cast<int>(threadIdx.x % 32); }

// A kernel's entry, by all threads; false: do nothing. A graph may be older than the workspace, and an earlier kernel may have left a fault.
__device__ bool enter(const Entry &entry) {
    bool stay = true;
    if (threadIdx.x == 0) {
        const bool stale = *static_cast<volatile uint64_t *>(&entry.anchor->generation) != entry.generation;
        if (stale) static_cast<volatile Fault *>(entry.fault)->stale = 1;
        stay = !stale && *static_cast<volatile uint32_t *>(&entry.anchor->faulted) == 0u;
    }
    return __syncthreads_and(stay);
}

__global__ void __launch_bounds__(segment_threads) count_kernel(const __grid_constant__ ArrangeParams params) {
    if (!enter(params.entry)) return;
    const int segment = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
    if (segment >= params.segments) return;
    int32_t *counts = params.segment_counts + int64_t{segment} * params.local_experts;
    for (int expert = threadIdx.x % 32; expert < params.local_experts; expert += 32) counts[expert] = 0;
    __syncwarp();
    each_pair(params, segment, [&](const Pair &pair, int64_t, unsigned lanes) {
        if (pair.expert >= 0 && leads(lanes)) counts[pair.expert] += __popc(lanes);
    });
}

// The sum of what the threads before this one have; *total: of all.
__device__ int64_t sum_before(int64_t mine, int64_t *total) {
    __shared__ int64_t sums[scan_threads / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t sum = mine;
    for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(all_lanes, sum, step);
        if (lane >= step) sum += other;
    }
    __syncthreads();
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    int64_t before = 0, all = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) {
        if (w < warp) before += sums[w];
        all += sums[w];
    }
    *total = all;
    return before + sum - mine;
}

// The first fault of a manager is kept, as signal.cuh's report does.
__device__ void report_overflow(const ArrangeParams &params, int32_t expert, int64_t needed, int64_t room) {
    if (atomicCAS(&params.entry.anchor->faulted, 0u, static_cast<uint32_t>(fault_overflow)) != 0u) return;
    volatile Fault *fault = params.entry.fault;
    fault->peer = expert;
    fault->needed = needed;
    fault->room = room;
    fault->phase = phase_dispatch;
    __threadfence_system();
    fault->code = fault_overflow;
}

// By all threads of one block.
__device__ void tell_host(const ArrangeParams &params, int64_t rows) {
    if (params.host_counts == nullptr) return;
    for (int rank = threadIdx.x; rank < params.ranks; rank += blockDim.x) params.host_counts[host_counts_head + rank] = params.recv_counts[rank];
    const int experts = params.arrangement >= arrange_expert_major ? params.local_experts : 0;
    for (int expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        params.host_counts[host_counts_head + params.ranks + expert] = params.expert_counts[expert];
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x != 0) return;
    params.host_counts[1] = rows;
    __threadfence_system();
    *static_cast<volatile int64_t *>(params.host_counts) = params.number;
}

__device__ __forceinline__ void no_source(const ArrangeParams &params, int64_t row) {
    for (int i = 0; i < 3; ++i) params.row_sources[row * 3 + i] = -1;
    if (params.row_weights != nullptr) params.row_weights[row] = 0.0f;
}

// First rows of the experts, and the rows between them. By one block, when all counts are there.
__device__ void find_offsets(const ArrangeParams &params) {
    const bool padded = params.arrangement == arrange_expert_padded;
    int64_t next = 0, came = 0;
    for (int first = 0; first < params.local_experts; first += blockDim.x) {
        const int expert = first + static_cast<int>(threadIdx.x);
        const bool is = expert < params.local_experts;
        const int64_t count = is ? *static_cast<volatile int32_t *>(params.expert_counts + expert) : 0;
        const int64_t room = !is ? 0 : padded ? params.expert_rows : (count + params.alignment - 1) / params.alignment * params.alignment;
        int64_t total;
        const int64_t begin = next + sum_before(room, &total);
        if (count > room) report_overflow(params, expert, count, room);
        if (is) params.expert_offsets[expert] = static_cast<int32_t>(min(begin, int64_t{INT32_MAX}));  // more than there is room for
        for (int64_t row = begin + count; !padded && row < min(begin + room, params.rows); ++row) {
            params.row_from[row] = -1;
            no_source(params, row);
        }
        next += total;
        sum_before(count, &total);
        came += total;
    }
    if (threadIdx.x == 0) params.expert_offsets[params.local_experts] = static_cast<int32_t>(min(next, int64_t{INT32_MAX}));
    if (threadIdx.x == 0 && !padded && next > params.rows) report_overflow(params, -1, next, params.rows);
    tell_host(params, padded ? came : next);
}

// One expert a block: its rows before each segment.
__global__ void __launch_bounds__(scan_threads) scan_kernel(const __grid_constant__ ArrangeParams params) {
    if (!enter(params.entry)) return;
    for (int expert = blockIdx.x; expert < params.local_experts; expert += gridDim.x) {
        const bool is = static_cast<int>(threadIdx.x) < params.segments;
        int32_t *count = params.segment_counts + int64_t{threadIdx.x} * params.local_experts + expert;
        int64_t total;
        const int64_t before = sum_before(is ? *count : 0, &total);
        if (is) *count = static_cast<int32_t>(before);
        if (threadIdx.x == 0) params.expert_counts[expert] = static_cast<int32_t>(total);
    }
    __threadfence();
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(params.finished, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    find_offsets(params);
    if (threadIdx.x == 0) *params.finished = 0;
}

__global__ void __launch_bounds__(segment_threads) place_kernel(const __grid_constant__ ArrangeParams params) {
    if (!enter(params.entry)) return;
    const int segment = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
    if (segment >= params.segments) return;
    int32_t *next = params.segment_counts + int64_t{segment} * params.local_experts;
    each_pair(params, segment, [&](const Pair &pair, int64_t at, unsigned lanes) {
        const int32_t nth = pair.expert >= 0 ? next[pair.expert] + __popc(lanes & ((1u << threadIdx.x % 32) - 1u)) : 0;
        __syncwarp();
        if (pair.expert >= 0 && leads(lanes)) next[pair.expert] += __popc(lanes);
        if (!pair.came) return;
        int64_t to = -1;
        if (pair.expert >= 0) {
            to = int64_t{params.expert_offsets[pair.expert]} + nth;
            const bool fits = params.arrangement == arrange_expert_padded ? nth < params.expert_rows : to < params.rows;
            if (!fits) to = -1;
        }
        params.places[at] = to;
        if (to < 0) return;
        params.row_from[to] = pair.row;
        params.row_sources[to * 3] = pair.source;
        params.row_sources[to * 3 + 1] = pair.token(params);
        params.row_sources[to * 3 + 2] = pair.k;
        if (params.row_weights != nullptr) params.row_weights[to] = params.weights[at];
    });
}

__device__ __forceinline__ void copy_payloads(const ArrangeParams &params, const Teams &teams, int64_t to, int64_t from) {
#pragma unroll 1
    for (int p = 0; p < params.payload_count; ++p) {
        const ArrangePayload &payload = params.payloads[p];
        if (payload.row_bytes == 0) continue;
        unsigned char *target = payload.target + static_cast<uint64_t>(to) * payload.target_stride;
        if (from >= 0) {
            copy_row(teams.width, teams.lane, payload.source + static_cast<uint64_t>(from) * payload.source_stride, target, payload.row_bytes, payload.width);
        } else if (params.zero_padding != 0) {
            for (uint64_t i = static_cast<uint64_t>(teams.lane); i < payload.row_bytes; i += static_cast<uint64_t>(teams.width)) target[i] = 0;
        }
    }
}

__global__ void __launch_bounds__(block_threads, 1) fill_kernel(const __grid_constant__ ArrangeParams params) {
    if (!enter(params.entry)) return;
    const bool padded = params.arrangement == arrange_expert_padded;
    const int64_t end = min(int64_t{params.expert_offsets[params.local_experts]}, params.rows);
    const Teams teams((end + gridDim.x - 1) / gridDim.x);
    for (int64_t row = int64_t{blockIdx.x} * teams.count + teams.team; row < end; row += int64_t{gridDim.x} * teams.count) {
        if (padded) {
            const int64_t expert = row / params.expert_rows;
            if (row - expert * params.expert_rows >= params.expert_counts[expert]) {
                if (teams.lane == 0) no_source(params, row);
                continue;
            }
        }
        copy_payloads(params, teams, row, params.row_from[row]);
    }
    for (int64_t row = end + int64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < params.rows; row += int64_t{gridDim.x} * blockDim.x) {
        no_source(params, row);
    }
}

// First row of each source and the end, by all threads of a block.
__device__ void find_rank_offsets(const int32_t *recv_counts, int32_t ranks, int64_t *offsets) {
    for (int64_t first = 0, next = 0; first < ranks; first += blockDim.x) {
        const int64_t rank = first + threadIdx.x;
        int64_t total;
        const int64_t before = sum_before(rank < ranks ? recv_counts[rank] : 0, &total);
        if (rank < ranks) offsets[rank] = next + before;
        next += total;
        if (threadIdx.x == 0) offsets[min(first + blockDim.x, int64_t{ranks})] = next;
        __syncthreads();
    }
}

__device__ __forceinline__ int32_t source_of(const int64_t *offsets, int32_t ranks, int64_t row) {
    int32_t low = 0, high = ranks - 1;
    while (low < high) {
        const int32_t middle = (low + high) / 2;
        if (row < offsets[middle + 1]) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

__global__ void __launch_bounds__(block_threads, 1) pack_kernel(const __grid_constant__ ArrangeParams params) {
    if (!enter(params.entry)) return;
    __shared__ int64_t offsets[most_ranks + 1];
    find_rank_offsets(params.recv_counts, params.ranks, offsets);
    const int64_t all = offsets[params.ranks];
    if (blockIdx.x == 0) {
        if (params.arrangement == arrange_packed) {
            for (int rank = threadIdx.x; rank <= params.ranks; rank += blockDim.x) params.rank_offsets[rank] = static_cast<int32_t>(min(offsets[rank], int64_t{INT32_MAX}));
        }
        tell_host(params, all);
        if (params.arrangement == arrange_packed && all > params.rows && threadIdx.x == 0) report_overflow(params, -1, all, params.rows);
    }
    if (params.arrangement != arrange_packed) return;
    const int64_t end = min(all, params.rows);
    const Teams teams((end + gridDim.x - 1) / gridDim.x);
    for (int64_t row = int64_t{blockIdx.x} * teams.count + teams.team; row < end; row += int64_t{gridDim.x} * teams.count) {
        const int32_t source = source_of(offsets, params.ranks, row);
        const auto token_row = static_cast<int32_t>(row - offsets[source]);
        const int64_t from = int64_t{source} * params.capacity + token_row;
        copy_payloads(params, teams, row, from);
        if (teams.lane < params.top_k) {
            params.out_ids[row * params.top_k + teams.lane] = params.ids[from * params.top_k + teams.lane];
            if (params.weights != nullptr) params.out_weights[row * params.top_k + teams.lane] = params.weights[from * params.top_k + teams.lane];
        }
        if (teams.lane == 0) {
            params.row_sources[row * 3] = source;
            params.row_sources[row * 3 + 1] = params.tokens != nullptr ? params.tokens[from * params.tokens_stride] : token_row;
            params.row_sources[row * 3 + 2] = -1;
        }
    }
    for (int64_t i = end * params.top_k + int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < params.rows * params.top_k; i += int64_t{gridDim.x} * blockDim.x) {
        params.out_ids[i] = params.invalid_id;
    }
    for (int64_t i = end * 3 + int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < params.rows * 3; i += int64_t{gridDim.x} * blockDim.x) {
        params.row_sources[i] = -1;
    }
}

// --- the way back -------------------------------------------------------------------------------------------------------------

template <class T, int Count>
__global__ void __launch_bounds__(block_threads, 1) gather_experts_kernel(const __grid_constant__ GatherExperts params) {
    if (!enter(params.entry)) return;
    using P = Pack<T, Count>;
    const int64_t rows = int64_t{params.ranks} * params.capacity, packs = static_cast<int64_t>(params.row_bytes / sizeof(P));
    const Teams teams((rows + gridDim.x - 1) / gridDim.x);
    for (int64_t row = int64_t{blockIdx.x} * teams.count + teams.team; row < rows; row += int64_t{gridDim.x} * teams.count) {
        const int64_t source = row / params.capacity;
        if (row - source * params.capacity >= params.recv_counts[source]) continue;
        const int64_t *places = params.places + row * params.top_k;
        P *out = reinterpret_cast<P *>(params.output + static_cast<uint64_t>(row) * params.row_bytes);
        for (int64_t at = teams.lane; at < packs; at += teams.width) {
            Sum<T, Count> sum;
            for (int k = 0; k < params.top_k; ++k) {
                if (places[k] < 0) continue;
                const P pack = reinterpret_cast<const P *>(params.input + static_cast<uint64_t>(places[k]) * params.input_stride)[at];
                sum.add(pack, params.weighted != 0 ? params.weights[row * params.top_k + k] : 1.0f, params.weighted != 0);
            }
            out[at] = sum.rounded();
        }
    }
}

using GatherKernel = void (*)(GatherExperts);

GatherKernel choose_gather(int32_t value_type, bool whole) {
    switch (value_type) {
        case value_f32: return whole ? &gather_experts_kernel<float, 4> : &gather_experts_kernel<float, 1>;
        case value_f16: return whole ? &gather_experts_kernel<__half, 8> : &gather_experts_kernel<__half, 1>;
        default: return whole ? &gather_experts_kernel<__nv_bfloat16, 8> : &gather_experts_kernel<__nv_bfloat16, 1>;
    }
}

__global__ void __launch_bounds__(block_threads, 1) unpack_kernel(const __grid_constant__ Unpack params) {
    if (!enter(params.entry)) return;
    __shared__ int64_t offsets[most_ranks + 1];
    find_rank_offsets(params.recv_counts, params.ranks, offsets);
    const int64_t rows = offsets[params.ranks];
    const Teams teams((rows + gridDim.x - 1) / gridDim.x);
    for (int64_t row = int64_t{blockIdx.x} * teams.count + teams.team; row < rows; row += int64_t{gridDim.x} * teams.count) {
        const int32_t source = source_of(offsets, params.ranks, row);
        const int64_t to = int64_t{source} * params.capacity + row - offsets[source];
        copy_row(teams.width, teams.lane, params.input + static_cast<uint64_t>(row) * params.input_stride,
                 params.output + static_cast<uint64_t>(to) * params.row_bytes, params.row_bytes, params.width);
    }
}

__global__ void count_loads_kernel(const CountLoads params) {
    if (!enter(params.entry)) return;
    int32_t tokens = params.tokens;
    if (params.tokens_device != nullptr) tokens = max(0, min(tokens, *params.tokens_device));
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < int64_t{tokens} * params.top_k; i += int64_t{gridDim.x} * blockDim.x) {
        const int64_t id = params.ids_bytes == 8 ? static_cast<const int64_t *>(params.ids)[i] : static_cast<const int32_t *>(params.ids)[i];
        if (params.owners.rank_of(id) >= 0) atomicAdd(reinterpret_cast<unsigned long long *>(params.counts + id), 1ull);
    }
}

unsigned blocks_for(int64_t items, int64_t each, int64_t most) { return static_cast<unsigned>(std::clamp<int64_t>((items + each - 1) / each, 1, most)); }

constexpr int64_t most_blocks = 132;

}  // namespace

Result load_arrange() {
    for (int32_t type : {value_f32, value_f16, value_bf16}) {
        if (Result result = load_each({address_of(choose_gather(type, true)), address_of(choose_gather(type, false))}); result != cudaSuccess) return result;
    }
    return load_each({address_of(&count_kernel), address_of(&scan_kernel), address_of(&place_kernel), address_of(&fill_kernel), address_of(&pack_kernel),
                      address_of(&unpack_kernel), address_of(&count_loads_kernel)});
}

Result arrange(const ArrangeParams &params, CUstream_st *stream) {
    const int64_t came = int64_t{params.ranks} * params.capacity;
    if (params.arrangement == arrange_packed || params.arrangement == arrange_counts) {
        pack_kernel<<<params.arrangement == arrange_counts ? 1u : blocks_for(came, 1, most_blocks), block_threads, 0, stream>>>(params);
        return cudaGetLastError();
    }
    const unsigned blocks = blocks_for(int64_t{params.segments} * 32, segment_threads, max_segments);
    count_kernel<<<blocks, segment_threads, 0, stream>>>(params);
    scan_kernel<<<blocks_for(params.local_experts, 1, most_blocks), scan_threads, 0, stream>>>(params);
    place_kernel<<<blocks, segment_threads, 0, stream>>>(params);
    fill_kernel<<<blocks_for(params.rows, 1, most_blocks), block_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

Result gather_experts(const GatherExperts &params, CUstream_st *stream) {
    choose_gather(params.value_type, params.whole != 0)<<<blocks_for(int64_t{params.ranks} * params.capacity, 1, most_blocks), block_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

Result unpack(const Unpack &params, CUstream_st *stream) {
    unpack_kernel<<<blocks_for(int64_t{params.ranks} * params.capacity, 1, most_blocks), block_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

Result count_loads(const CountLoads &params, CUstream_st *stream) {
    constexpr int threads = 256;
    count_loads_kernel<<<blocks_for(int64_t{params.tokens} * params.top_k, threads, most_blocks), threads, 0, stream>>>(params);
    return cudaGetLastError();
}

}  // namespace moelink::kernels::cuda
