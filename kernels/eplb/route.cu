// Which copy of its expert each token takes. Round robin and hashed are one kernel. By capacity there are three: tokens are counted
// in segments, the counts become each segment's first number and the copies' shares, and each segment numbers its tokens. All
// of it is in the order of tokens, so the result is that of the host, whatever the number of blocks.
#include "common/load.cuh"
#include "eplb/copies.hpp"

#include <algorithm>

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

namespace {

constexpr int choose_threads = 256;
constexpr int split_threads = 1024;
constexpr int ids_per_segment = 128;
constexpr unsigned whole_warp = 0xFFFFFFFFu;

__device__ __forceinline__ int64_t ids_of(const RouteParams &params) {
    int32_t tokens = params.tokens;
    if (params.tokens_device != nullptr) tokens = max(0, min(tokens, *params.tokens_device));
    return int64_t{tokens} * params.top_k;
}

__device__ __forceinline__ void add_to(int64_t *counter, int64_t count) {
    atomicAdd(reinterpret_cast<unsigned long long *>(counter), static_cast<unsigned long long>(count));
}

// Lanes with the same value as this one; all lanes take part.
__device__ __forceinline__ unsigned peers_of(int32_t value) { return __match_any_sync(whole_warp, value); }
__device__ __forceinline__ bool leads(unsigned peers, int lane) { return __ffs(peers) - 1 == lane; }

__global__ void __launch_bounds__(choose_threads) choose_kernel(const RouteParams params) {
    const int64_t count = ids_of(params);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    // Whole warps go round together: they count together.
    for (int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x - lane; first < count; first += step) {
        const int64_t i = first + lane;
        int32_t slot = -1;
        if (i < count) {
            if (const int32_t expert = expert_at(params, i); expert >= 0) {
                const int32_t begin = params.table.offsets[expert];
                slot = params.table.slots[begin + choose_copy(params, static_cast<uint32_t>(i / params.top_k), expert)];
            }
            write_id(params, i, slot);
        }
        if (params.slot_counts != nullptr) {
            const unsigned peers = peers_of(slot);
            if (slot >= 0 && leads(peers, lane)) add_to(params.slot_counts + slot, __popc(peers));
        }
    }
}

// One warp a segment, here and in number_kernel.
__global__ void __launch_bounds__(32) count_kernel(const RouteParams params) {
    const int64_t count = ids_of(params);
    const int64_t begin = count * blockIdx.x / gridDim.x;
    const int64_t end = count * (int64_t{blockIdx.x} + 1) / gridDim.x;
    const int lane = static_cast<int>(threadIdx.x);
    int32_t *counts = params.segment_counts + int64_t{blockIdx.x} * params.table.logical;
    for (int32_t expert = lane; expert < params.table.logical; expert += 32) counts[expert] = 0;
    __syncwarp();
    for (int64_t first = begin; first < end; first += 32) {
        const int32_t expert = first + lane < end ? expert_at(params, first + lane) : -1;
        const unsigned peers = peers_of(expert);
        if (expert >= 0 && leads(peers, lane)) counts[expert] += __popc(peers);
        __syncwarp();
    }
}

__device__ __forceinline__ int64_t sum_of_warp(int64_t value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(whole_warp, value, distance);
    return value;
}

// One warp shares an expert's tokens out over its copies, as the host's fill does.
__device__ void fill(const RouteParams &params, const ExpertRanks &owners, int32_t expert, bool again, int lane, int64_t *levels) {
    const CopyTable &table = params.table;
    const int32_t begin = table.offsets[expert];
    const int32_t end = table.offsets[expert + 1];
    const int64_t amount = params.totals[expert];
    auto rank_of = [&](int32_t copy) { return owners.rank_of(table.slots[copy]); };
    // Of copies on one rank only the first has a share, so no two lanes change one level.
    for (int32_t copy = begin + lane; again && copy < end; copy += 32) {
        if (first_on_rank(table, owners, begin, copy)) levels[rank_of(copy)] -= params.shares[copy];
    }
    __syncwarp();
    auto takes = [&](int32_t copy) {
        if (copy >= end || !first_on_rank(table, owners, begin, copy)) return false;
        int64_t needed = 0;
        for (int32_t other = begin; other < end; ++other) {
            if (first_on_rank(table, owners, begin, other)) needed += max(int64_t{0}, levels[rank_of(copy)] - levels[rank_of(other)]);
        }
        return needed < amount;
    };
    int32_t filled = 0;
    int64_t sum = 0;
    for (int32_t first = begin; first < end; first += 32) {
        const bool mine = takes(first + lane);
        filled += __popc(__ballot_sync(whole_warp, mine));
        sum += sum_of_warp(mine ? levels[rank_of(first + lane)] : 0);
    }
    int32_t before = 0;
    for (int32_t first = begin; first < end; first += 32) {
        const int32_t copy = first + lane;
        const bool mine = takes(copy);
        const unsigned takers = __ballot_sync(whole_warp, mine);
        const int32_t place = before + __popc(takers & ((1u << lane) - 1));
        before += __popc(takers);
        if (copy < end) {
            params.shares[copy] =
                mine ? fill_share(amount, sum, filled, place, levels[rank_of(copy)], params.seed + static_cast<uint64_t>(expert)) : 0;
        }
    }
    __syncwarp();
    for (int32_t copy = begin + lane; copy < end; copy += 32) {
        if (first_on_rank(table, owners, begin, copy)) levels[rank_of(copy)] += params.shares[copy];
    }
    __syncwarp();
}

__global__ void __launch_bounds__(split_threads) split_kernel(const RouteParams params, int segments) {
    __shared__ int64_t levels[max_eplb_ranks];
    const CopyTable &table = params.table;
    const ExpertRanks owners(table.physical, table.ranks);
    const auto thread = static_cast<int32_t>(threadIdx.x);
    for (int32_t expert = thread; expert < table.logical; expert += split_threads) {
        int32_t total = 0;
        for (int segment = 0; segment < segments; ++segment) {
            int32_t &first = params.segment_counts[int64_t{segment} * table.logical + expert];
            const int32_t count = first;
            first = total;
            total += count;
        }
        params.totals[expert] = total;
        const int32_t begin = table.offsets[expert];
        const int32_t copies = table.copies(expert);
        for (int32_t copy = 0; copy < copies; ++copy) params.shares[begin + copy] = copies == 1 ? total : 0;
    }
    for (int32_t rank = thread; rank < table.ranks; rank += split_threads) levels[rank] = first_level(params.room, rank);
    __syncthreads();
    for (int32_t slot = thread; slot < table.physical; slot += split_threads) {
        const int32_t expert = table.phy2log[slot];
        if (expert < 0 || table.copies(expert) != 1) continue;
        atomicAdd(reinterpret_cast<unsigned long long *>(&levels[owners.rank_of(slot)]),
                  static_cast<unsigned long long>(params.totals[expert]));
    }
    __syncthreads();
    if (thread < 32) {
        for (int sweep = 0; sweep < split_sweeps; ++sweep) {
            for (int32_t first = 0; first < table.logical; first += 32) {
                const int32_t expert = first + thread;
                const bool split = expert < table.logical && table.copies(expert) > 1 && params.totals[expert] > 0;
                for (unsigned left = __ballot_sync(whole_warp, split); left != 0; left &= left - 1) {
                    fill(params, owners, first + __ffs(left) - 1, sweep > 0, thread, levels);
                }
            }
        }
    }
    if (params.slot_counts == nullptr) return;
    __syncthreads();
    for (int32_t copy = thread; copy < table.offsets[table.logical]; copy += split_threads) {
        if (params.shares[copy] > 0) add_to(params.slot_counts + table.slots[copy], params.shares[copy]);
    }
}

__global__ void __launch_bounds__(32) number_kernel(const RouteParams params) {
    const int64_t count = ids_of(params);
    const int64_t begin = count * blockIdx.x / gridDim.x;
    const int64_t end = count * (int64_t{blockIdx.x} + 1) / gridDim.x;
    const int lane = static_cast<int>(threadIdx.x);
    int32_t *next = params.segment_counts + int64_t{blockIdx.x} * params.table.logical;
    for (int64_t first = begin; first < end; first += 32) {
        const int64_t i = first + lane;
        const int32_t expert = i < end ? expert_at(params, i) : -1;
        const unsigned peers = peers_of(expert);
        const int32_t number = expert >= 0 ? next[expert] + __popc(peers & ((1u << lane) - 1)) : 0;
        __syncwarp();
        if (expert >= 0 && leads(peers, lane)) next[expert] += __popc(peers);
        __syncwarp();
        if (i < end) write_id(params, i, expert >= 0 ? slot_by_share(params, expert, number) : -1);
    }
}

}  // namespace

Result load_route() {
    return load_each({address_of(&choose_kernel), address_of(&count_kernel), address_of(&split_kernel), address_of(&number_kernel)});
}

Result route(const RouteParams &params, CUstream_st *stream) {
    const int64_t count = int64_t{params.tokens} * params.top_k;
    if (count == 0) return cudaSuccess;
    if (params.policy != route_capacity) {
        const auto blocks = static_cast<unsigned>(std::clamp<int64_t>((count + choose_threads - 1) / choose_threads, 1, 256));
        choose_kernel<<<blocks, choose_threads, 0, stream>>>(params);
        return cudaGetLastError();
    }
    const auto segments =
        static_cast<unsigned>(std::clamp<int64_t>((count + ids_per_segment - 1) / ids_per_segment, 1, max_route_segments));
    count_kernel<<<segments, 32, 0, stream>>>(params);
    if (cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    split_kernel<<<1, split_threads, 0, stream>>>(params, static_cast<int>(segments));
    if (cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    number_kernel<<<segments, 32, 0, stream>>>(params);
    return cudaGetLastError();
}

}  // namespace moelink::kernels::cuda
