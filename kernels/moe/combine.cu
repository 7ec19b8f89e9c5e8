// Push combine: one kernel. Blocks share out the received rows and store each into its owner's plane, at the token's number and
// the rank's place among the token's distinct ranks; then they share out our own tokens, wait for all ranks' rows, and add a
// token's rows in rank order in fp32.
#include "common/rows.cuh"
#include "common/signal.cuh"

#include <algorithm>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace moelink::kernels::cuda {

namespace {

constexpr int least_blocks = 32;  // rows to push may be many where own tokens are few

struct Shared {
    unsigned char *peers[max_cuda_ranks];
    int64_t start[max_cuda_ranks + 1];  // first row of the i-th source in order of pushing
    uint32_t epoch;
};

// The i-th source to push to: every rank begins with another, so that no port gets all of them at once.
__device__ __forceinline__ int32_t source_at(const Workspace &ws, int32_t i) { return (ws.rank + 1 + i) % ws.ranks; }

__device__ void prefix_counts(const Workspace &ws, Shared &shared) {
    const int32_t *counts = part<int32_t>(ws.mine, ws.layout.recv_counts);
    if (threadIdx.x < ws.ranks) shared.start[threadIdx.x + 1] = counts[source_at(ws, threadIdx.x)];
    if (threadIdx.x == 0) shared.start[0] = 0;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int32_t i = 0; i < ws.ranks; ++i) shared.start[i + 1] += shared.start[i];
    }
    __syncthreads();
}

__device__ void push(const CombineParams &params, int64_t begin, int64_t end, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const Teams teams(end - begin);
    int32_t i = 0;
    for (int64_t row = begin + teams.team; row < end; row += teams.count) {
        while (row >= shared.start[i + 1]) ++i;
        const int32_t source = source_at(ws, i);
        const int64_t index = int64_t{source} * ws.capacity + (row - shared.start[i]);
        const RowOrigin origin = part<RowOrigin>(ws.mine, ws.layout.origins)[index];
        const uint64_t place = static_cast<uint64_t>(origin.token) * static_cast<uint64_t>(ws.max_distinct) + static_cast<uint64_t>(origin.distinct);
        copy_row(teams, params.input + static_cast<uint64_t>(index) * params.input_stride,
                 shared.peers[source] + ws.layout.combine + place * params.row_bytes, params.row_bytes, params.push_width);
    }
}

// All stores of the block come before: block barrier, then each signalling thread's fence.
__device__ void signal(const CombineParams &params, int64_t begin, int64_t end, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int32_t i = threadIdx.x;
    if (i >= ws.ranks) return;
    const int32_t source = source_at(ws, i);
    SourceLine *line = part<SourceLine>(shared.peers[source], ws.layout.lines) + ws.rank;
    const int64_t rows = min(end, shared.start[i + 1]) - max(begin, shared.start[i]);
    const bool announces = blockIdx.x == 0;
    if (announces) store_relaxed(&line->combine_shape, tagged(shared.epoch, params.shape));
    if (announces || rows > 0) fence();
    if (rows > 0) add_relaxed(&line->combine_rows, static_cast<uint64_t>(rows));
    if (announces) {
        const int64_t total = shared.start[i + 1] - shared.start[i];
        store_relaxed(&line->combine_count, tagged(shared.epoch, static_cast<uint32_t>(total)));
        part<uint64_t>(ws.mine, ws.layout.dispatch_base)[source] += static_cast<uint64_t>(total);  // for the next dispatch
    }
}

__device__ bool await_rank(const CombineParams &params, int32_t rank, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + rank;
    int32_t rows;
    return await_rows(ws, &line->combine_count, &line->combine_shape, &line->combine_rows,
                      part<uint64_t>(ws.mine, ws.layout.combine_base)[rank], shared.epoch, params.shape,
                      part<int32_t>(ws.mine, ws.layout.send_counts)[rank], rank, phase_combine, &rows);
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void from_float(float value, float *out) { *out = value; }
__device__ __forceinline__ void from_float(float value, __half *out) { *out = __float2half_rn(value); }
__device__ __forceinline__ void from_float(float value, __nv_bfloat16 *out) { *out = __float2bfloat16_rn(value); }

// Values that are read and written in one access.
template <class T, int Count>
struct alignas(sizeof(T) * Count) Pack {
    T value[Count];
};

template <class T, int Count>
__device__ void reduce(const CombineParams &params, int64_t begin, int64_t end) {
    using P = Pack<T, Count>;
    constexpr int ahead = 4;  // rows in flight
    const Workspace &ws = params.workspace;
    const Teams teams(end - begin);
    const int64_t packs = static_cast<int64_t>(params.row_bytes / sizeof(P));
    for (int64_t token = begin + teams.team; token < end; token += teams.count) {
        const int32_t distinct = part<int32_t>(ws.mine, ws.layout.distinct)[token];
        const float *weights = part<float>(ws.mine, ws.layout.weight_sums) + token * ws.max_distinct;
        const unsigned char *rows = ws.mine + ws.layout.combine + static_cast<uint64_t>(token * ws.max_distinct) * params.row_bytes;
        P *out = reinterpret_cast<P *>(params.output + static_cast<uint64_t>(token) * params.output_stride);
        for (int64_t at = teams.lane; at < packs; at += teams.width) {
            float sum[Count] = {};
            for (int32_t first = 0; first < distinct; first += ahead) {
                P pack[ahead];
#pragma unroll
                for (int u = 0; u < ahead; ++u) {
                    if (first + u < distinct) pack[u] = reinterpret_cast<const P *>(rows + static_cast<uint64_t>(first + u) * params.row_bytes)[at];
                }
#pragma unroll
                for (int u = 0; u < ahead; ++u) {
                    if (first + u >= distinct) continue;
                    const float weight = params.weighted ? weights[first + u] : 1.0f;
#pragma unroll
                    for (int i = 0; i < Count; ++i) sum[i] = params.weighted ? sum[i] + weight * to_float(pack[u].value[i]) : sum[i] + to_float(pack[u].value[i]);
                }
            }
            P result;
#pragma unroll
            for (int i = 0; i < Count; ++i) from_float(sum[i], &result.value[i]);
            out[at] = result;
        }
    }
}

template <class T>
__global__ void __launch_bounds__(block_threads, 1) combine_kernel(const __grid_constant__ CombineParams params) {
    __shared__ Shared shared;
    const Workspace &ws = params.workspace;
    if (!may_run(ws)) return;
    SlotState *state = part<SlotState>(ws.mine, ws.layout.state);
    if (threadIdx.x == block_threads - 1) shared.epoch = state->dispatch_epoch;
    if (threadIdx.x < ws.ranks) shared.peers[threadIdx.x] = ws.peers[threadIdx.x];
    prefix_counts(ws, shared);
    if (blockIdx.x == 0 && threadIdx.x == 0 && state->combine_epoch == shared.epoch) report(ws, fault_pairing, ws.rank, phase_combine);
    const int64_t rows = shared.start[ws.ranks];
    const int64_t row_begin = share_begin(rows, blockIdx.x), row_end = share_begin(rows, blockIdx.x + 1);
    push(params, row_begin, row_end, shared);
    __syncthreads();
    signal(params, row_begin, row_end, shared);

    const int64_t tokens = state->tokens;
    const int64_t token_begin = share_begin(tokens, blockIdx.x), token_end = share_begin(tokens, blockIdx.x + 1);
    // Block 0 waits even without tokens, so that no rank gets a phase ahead.
    if (blockIdx.x == 0 || token_begin < token_end) {
        bool lost = false;
        if (threadIdx.x < ws.ranks) lost = !await_rank(params, threadIdx.x, shared);
        lost = __syncthreads_or(lost);
        if (!lost) {
            if (params.reduce_width == 16) {
                reduce<T, 16 / sizeof(T)>(params, token_begin, token_end);
            } else {
                reduce<T, 1>(params, token_begin, token_end);
            }
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) state->combine_epoch = shared.epoch;
}

using Kernel = void (*)(CombineParams);

Kernel choose(int32_t value_type) {
    switch (value_type) {
        case value_f32: return &combine_kernel<float>;
        case value_f16: return &combine_kernel<__half>;
        default: return &combine_kernel<__nv_bfloat16>;
    }
}

}  // namespace

Result load_combine() {
    for (int32_t value_type : {value_f32, value_f16, value_bf16}) {
        cudaFuncAttributes attributes;
        if (cudaError_t error = cudaFuncGetAttributes(&attributes, choose(value_type)); error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

Result combine(const CombineParams &params, int blocks, int tokens, CUstream_st *stream) {
    const int wanted = std::min(blocks, std::max(least_blocks, 2 * tokens));
    choose(params.value_type)<<<static_cast<unsigned>(wanted), block_threads, 0, stream>>>(params);
    return cudaGetLastError();
}

}  // namespace moelink::kernels::cuda
