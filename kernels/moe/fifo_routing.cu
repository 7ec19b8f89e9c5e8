// The local half of prepare: which rows go where, from the ids. Counts go to every rank; the routing of rows follows with them, through
// the FIFOs (alltoallv.cu).
#include "common/load.cuh"
#include "common/start.cuh"
#include "moe/fifo_rows.cuh"
#include "moe/routing.cuh"

namespace moelink::kernels::cuda {

namespace {

constexpr int tokens_a_block = 64;

// What routing.cuh reads.
struct Ids {
    const Workspace &workspace;
    const void *ids;
    uint32_t whole_ids;
};

struct Shared {
    Routes routes;
    int32_t totals[max_cuda_ranks];   // rows to each rank
    int32_t offsets[max_cuda_ranks];  // of them in send_tokens

    __device__ __forceinline__ int32_t count(int32_t to) const { return totals[to]; }
};

// Rows to each rank, and where they begin in the list of all: of the tokens before the block's and of the others.
template <class Id, int Words>
__device__ __forceinline__ void count_all(const Ids &ids, int32_t tokens, int64_t begin, Shared &shared) {
    const int32_t ranks = ids.workspace.ranks, rank = threadIdx.x;
    if (begin > 0) count_before<Id, Words>(ids, begin, shared.routes);
    __syncthreads();
    if (rank < ranks) shared.routes.before[rank] = shared.routes.next[rank] = begin > 0 ? rows_before(rank, shared.routes) : 0;
    __syncthreads();
    count_before<Id, Words>(ids, tokens, shared.routes, begin);
    __syncthreads();
    if (rank < ranks) shared.totals[rank] = shared.routes.before[rank] + rows_before(rank, shared.routes);
    __syncthreads();
    find_offsets(shared, ranks, shared.offsets);
    __syncthreads();
}

// A token a warp.
__device__ void keep_tokens(const FifoCall &call, int64_t first, int count, const Shared &shared) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    const int lane = threadIdx.x % 32;
    for (int local = threadIdx.x / 32; local < count; local += block_warps) {
        const int64_t token = first + local;
        const int distinct = shared.routes.distinct[local];
        const Destination to = lane < distinct ? shared.routes.to[local][lane] : Destination{-1, 0};
        if (lane < distinct) keep_row(tables, ws, token, lane, to.rank, shared.offsets[to.rank] + to.slot);
        keep_distinct(tables, ws, token, distinct);
        if (call.weights == nullptr) continue;
        const float sum = TokenWeights(call, token).sum_of(to.rank, ws.top_k);
        if (lane < distinct) tables.weight_sums[token * ws.max_distinct + lane] = sum;
    }
}

template <class Id, int Words>
__global__ void __launch_bounds__(block_threads, 1) fifo_routing_kernel(const __grid_constant__ FifoCall call) {
    __shared__ Shared shared;
    const Workspace &ws = call.fifos.workspace;
    if (!enter(ws)) return;
    if (__syncthreads_or(found_fault(ws))) return;
    const Ids ids{ws, call.ids, call.whole_ids};
    const int32_t tokens = tokens_of(call);
    const int64_t begin = share_begin(tokens, blockIdx.x, gridDim.x), end = share_begin(tokens, blockIdx.x + 1, gridDim.x);
    const uint32_t epoch = epoch_of(call.fifos.tables.state);
    count_all<Id, Words>(ids, tokens, begin, shared);
    if (blockIdx.x == 0) tell_counts(call, shared, tokens, epoch, shared.offsets);
    for (int64_t first = begin; first < end; first += batch_tokens) {
        const int count = static_cast<int>(min(int64_t{batch_tokens}, end - first));
        find_batch<Id, Words>(ids, first, count, shared.routes);
        __syncthreads();
        number_batch<Words>(spread_owners, ws.ranks, 0, count, shared.routes);
        __syncthreads();
        advance(ws.ranks, shared.routes);
        keep_tokens(call, first, count, shared);
        __syncthreads();
    }
}

using RoutingKernel = void (*)(FifoCall);

RoutingKernel choose_routing(int ids_bytes, int ranks) {
    if (ids_bytes == 8) return ranks <= 32 ? &fifo_routing_kernel<int64_t, 1> : &fifo_routing_kernel<int64_t, 4>;
    return ranks <= 32 ? &fifo_routing_kernel<int32_t, 1> : &fifo_routing_kernel<int32_t, 4>;
}

}  // namespace

Result load_fifo_routing() {
    for (int ids_bytes : {4, 8}) {
        for (int ranks : {1, max_cuda_ranks}) {
            if (Result result = load_each({address_of(choose_routing(ids_bytes, ranks))}); result != cudaSuccess) return result;
        }
    }
    return cudaSuccess;
}

Result fifo_routing(const FifoCall &call, const Launch &launch) {
    return launch_kernel(choose_routing(call.ids_bytes, call.fifos.workspace.ranks), call, launch, (call.tokens + tokens_a_block - 1) / tokens_a_block);
}

}  // namespace moelink::kernels::cuda
