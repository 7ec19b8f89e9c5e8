// The ring of expert loads: recording a pass, and adding up the window.
#include "common/load.cuh"

#include <algorithm>

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

namespace {

constexpr int window_threads = 256;

// One block a layer. Every sum is one thread's, so nothing is cleared first and nothing is atomic.
__global__ void __launch_bounds__(window_threads) record_kernel(const RecordParams params) {
    const LoadRing &ring = params.ring;
    const CopyTable table = ring.table.layer(blockIdx.x);
    const ExpertRanks owners(table.physical, table.ranks);
    const int64_t row = static_cast<int64_t>(*ring.passes % static_cast<uint64_t>(ring.window)) * ring.layers + blockIdx.x;
    int64_t *counts = params.counts + int64_t{blockIdx.x} * table.physical;
    const auto thread = static_cast<int32_t>(threadIdx.x);
    for (int32_t expert = thread; expert < table.logical; expert += window_threads) {
        int64_t sum = 0;
        for (int32_t copy = table.offsets[expert]; copy < table.offsets[expert + 1]; ++copy) {
            sum = add_counts(sum, counts[table.slots[copy]]);
        }
        ring.logical[row * table.logical + expert] = sum;
    }
    for (int32_t rank = thread; rank < table.ranks; rank += window_threads) {
        int64_t sum = 0;
        const int32_t begin = owners.first_of(rank);
        for (int32_t slot = begin; slot < owners.first_of(rank + 1); ++slot) {
            if (table.phy2log[slot] >= 0) sum = add_counts(sum, counts[slot]);
        }
        ring.ranks[row * table.ranks + rank] = sum;
    }
    if (params.clear == 0) return;
    __syncthreads();
    for (int32_t slot = thread; slot < table.physical; slot += window_threads) counts[slot] = 0;
}

// After all blocks of the record have read it.
__global__ void next_pass_kernel(uint64_t *passes) { *passes += 1; }

__global__ void __launch_bounds__(window_threads) sum_kernel(const SumParams params) {
    const LoadRing &ring = params.ring;
    const int64_t experts = int64_t{ring.layers} * ring.table.logical;
    const int64_t ranks = int64_t{ring.layers} * ring.table.ranks;
    const uint64_t held = min(*ring.passes, static_cast<uint64_t>(ring.window));
    const uint64_t oldest = *ring.passes - held;
    const int64_t items = params.steps * experts + ranks;
    for (int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; item < items; item += int64_t{gridDim.x} * blockDim.x) {
        const bool of_rank = item >= params.steps * experts;
        const uint64_t step = of_rank ? 0 : static_cast<uint64_t>(item / experts);
        const uint64_t steps = of_rank ? 1 : static_cast<uint64_t>(params.steps);
        const int64_t width = of_rank ? ranks : experts;
        const int64_t column = of_rank ? item - params.steps * experts : item % experts;
        const int64_t *rows = of_rank ? ring.ranks : ring.logical;
        int64_t sum = 0;
        for (uint64_t pass = oldest + held * step / steps; pass < oldest + held * (step + 1) / steps; ++pass) {
            sum = add_counts(sum, rows[static_cast<int64_t>(pass % static_cast<uint64_t>(ring.window)) * width + column]);
        }
        (of_rank ? params.out_ranks : params.out_logical + static_cast<int64_t>(step) * experts)[column] = sum;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) *params.out_passes = *ring.passes;
}

}  // namespace

Result load_load_window() {
    return load_each({address_of(&record_kernel), address_of(&next_pass_kernel), address_of(&sum_kernel)});
}

Result record_load(const RecordParams &params, CUstream_st *stream) {
    record_kernel<<<static_cast<unsigned>(params.ring.layers), window_threads, 0, stream>>>(params);
    if (cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
    next_pass_kernel<<<1, 1, 0, stream>>>(params.ring.passes);
    return cudaGetLastError();
}

Result sum_load(const SumParams &params, CUstream_st *stream) {
    const int64_t items = int64_t{params.ring.layers} * (int64_t{params.steps} * params.ring.table.logical + params.ring.table.ranks);
    const auto blocks = static_cast<unsigned>(std::clamp<int64_t>((items + window_threads - 1) / window_threads, 1, 1024));
    sum_kernel<<<blocks, window_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

}  // namespace moelink::kernels::cuda
