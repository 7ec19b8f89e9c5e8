// The steps of a stress run as kernels: a warp a row.
#include <cuda_runtime.h>

#include "cuda_status.cuh"
#include "gpu.cuh"
#include "stress_round.hpp"

namespace perf {

namespace {

constexpr int threads = 256;
constexpr int warps = threads / 32;
enum Phase { before_dispatch, between, after_combine };

// One block ends later than it could, and the kernel with it.
__device__ void lose_time(const StressRound &round, const StressPair &pair, Phase phase) {
    if (blockIdx.x != 0 || blockIdx.y != 0 || threadIdx.x != 0) {
        return;
    }
    const uint64_t start = now_ns();
    const uint32_t delay = pair.delay(round.rank, phase, round.most_delay_ns);
    while (now_ns() - start < delay) {
        __nanosleep(100);
    }
}

__global__ void __launch_bounds__(threads) prepare_kernel(const __grid_constant__ StressRound round) {
    const uint64_t sequence = round.sequence[0];
    const StressWork work(round, sequence, static_cast<int>(threadIdx.x % 32), 32);
    const int tokens = work.pair().tokens(round.rank);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        round.sequence[1] = sequence;
        *round.tokens = tokens;
    }
    const int first = static_cast<int>(blockIdx.x) * stress_chunk;
    for (int local = threadIdx.x / 32; local < stress_chunk && first + local < tokens; local += warps) {
        work.prepare(first + local);
    }
    lose_time(round, work.pair(), before_dispatch);
}

// Block (chunk, source): the chunk's tokens, and as many row slots.
__global__ void __launch_bounds__(threads) receive_kernel(const __grid_constant__ StressRound round) {
    const int source = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * stress_chunk;
    const StressWork work(round, round.sequence[1], static_cast<int>(threadIdx.x % 32), 32);
    const int tokens = work.pair().tokens(source);
    __shared__ uint32_t chunk;  // bit i: token first + i comes here
    __shared__ unsigned long long bytes;
    int rows = 0, before = 0;
    for (int begin = 0; begin < tokens; begin += threads) {
        const int token = begin + static_cast<int>(threadIdx.x);
        const bool comes = token < tokens && work.pair().goes(source, token, round.rank);
        rows += __syncthreads_count(comes);
        before += __syncthreads_count(comes && token < first);
    }
    if (threadIdx.x < 32) {
        const int token = first + static_cast<int>(threadIdx.x);
        const uint32_t come = __ballot_sync(~0u, token < tokens && work.pair().goes(source, token, round.rank));
        if (threadIdx.x == 0) {
            chunk = come;
            bytes = 0;
            if (blockIdx.x == 0) {
                work.count(source, rows);
            }
        }
    }
    __syncthreads();
    uint64_t mine = 0;
    for (int local = threadIdx.x / 32; local < stress_chunk; local += warps) {
        if ((chunk >> local & 1) != 0) {
            const int slot = before + __popc(chunk & ((1u << local) - 1));
            mine += work.receive(source, first + local, slot);
            __syncwarp();
            work.expert(source, first + local, slot);
        }
        if (first + local >= rows && first + local < round.slots_per_rank) {
            mine += work.empty(source, first + local);
        }
    }
    if (threadIdx.x % 32 == 0) {
        atomicAdd(&bytes, static_cast<unsigned long long>(mine));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        work.add(static_cast<uint64_t>(__popc(chunk)), bytes);
    }
    lose_time(round, work.pair(), between);
}

__global__ void __launch_bounds__(threads) finish_kernel(const __grid_constant__ StressRound round) {
    const uint64_t sequence = round.sequence[1];
    const StressWork work(round, sequence, static_cast<int>(threadIdx.x % 32), 32);
    const int tokens = work.pair().tokens(round.rank);
    const int first = static_cast<int>(blockIdx.x) * stress_chunk;
    uint64_t bytes = 0, rows = 0;
    for (int local = threadIdx.x / 32; local < stress_chunk && first + local < tokens; local += warps) {
        bytes += work.finish(first + local);
        ++rows;
    }
    if (threadIdx.x % 32 == 0 && rows > 0) {
        work.add(rows, bytes);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        round.sequence[0] = sequence + 1;
    }
    lose_time(round, work.pair(), after_combine);
}

void load() {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, prepare_kernel), "loading a kernel");
    check(cudaFuncGetAttributes(&attributes, receive_kernel), "loading a kernel");
    check(cudaFuncGetAttributes(&attributes, finish_kernel), "loading a kernel");
}

void prepare(const StressRound &round, moelink_stream stream) {
    prepare_kernel<<<round.chunks(), threads, 0, stream>>>(round);
    check(cudaGetLastError(), "launching a kernel");
}

void receive(const StressRound &round, moelink_stream stream) {
    receive_kernel<<<dim3(round.chunks(), round.ranks), threads, 0, stream>>>(round);
    check(cudaGetLastError(), "launching a kernel");
}

void finish(const StressRound &round, moelink_stream stream) {
    finish_kernel<<<round.chunks(), threads, 0, stream>>>(round);
    check(cudaGetLastError(), "launching a kernel");
}

}  // namespace

StressSteps stress_steps_cuda() {
    return {&load, &prepare, &receive, &finish};
}

}  // namespace perf
