// Rows through FIFOs: one kernel for all tensors of a call, and for the routing of rows and the statistics where the call prepares. Half of
// a block's warps send and half receive, each one FIFO after another; senders also move the rows that stay here, while they wait.
#include "common/load.cuh"
#include "common/start.cuh"
#include "moe/fifo_stream.cuh"

namespace moelink::kernels::cuda {

// fifo_routing.cu, alltoallv_combine.cu
Result load_fifo_routing();
Result fifo_routing(const FifoCall &call, const Launch &launch);
Result load_alltoallv_combine();

namespace {

constexpr int least_blocks = 16;     // rows to receive may be many where own tokens are few

// What a receiving warp has learned for itself.
struct Received {
    int32_t counts[max_cuda_ranks];  // rows from each rank
    int64_t first[max_cuda_ranks];   // the row that each rank's first is here
};

struct Shared {
    Received received[role_warps];
    uint32_t own;  // tiles of the rows that stay which warps have begun, of the block's share
};

// --- sending and receiving ------------------------------------------------------------------------------------------------------

// The block's share of the rows that this rank's own experts work on: its warps take a tile each time.
template <bool quantized, class Rows>
class OwnRows {
public:
    __device__ OwnRows(const FifoCall &call, const Rows &rows, Shared &shared)
        : call_(call), rows_(rows), stream_(call, rows.count(call.fifos.workspace.rank)), share_(stream_.total, blockIdx.x, gridDim.x), next_(&shared.own) {}

    // Where the first of them is to be.
    __device__ __forceinline__ void open(int64_t first_row) {
        first_row_ = first_row;
        more_ = true;
    }

    // Takes a tile, and begins to load it; false when there is none left.
    __device__ __forceinline__ bool begin() {
        uint32_t taken = 0;
        if (more_ && threadIdx.x % 32 == 0) taken = atomicAdd(next_, 1u);
        const int64_t index = share_.begin + __shfl_sync(whole_warp, taken, 0);
        more_ = more_ && index < share_.end;
        if (!more_) return false;
        at_ = Cursor(call_, stream_, index);
        cargo_.load(call_, rows_, at_, call_.fifos.workspace.rank, threadIdx.x % 32);
        return true;
    }
    __device__ __forceinline__ void end() {
        cargo_.quantize(call_, at_);
        cargo_.store(call_, at_, call_.fifos.workspace.rank, first_row_, threadIdx.x % 32);
    }
    __device__ __forceinline__ void rest() {
        while (begin()) end();
    }

private:
    const FifoCall &call_;
    const Rows &rows_;
    Stream stream_;
    ChannelShare share_;
    uint32_t *next_;
    int64_t first_row_ = 0;
    bool more_ = false;
    Cursor at_;
    Cargo<quantized> cargo_;
};

template <bool quantized, class Rows>
__device__ __forceinline__ void send_channel(const FifoCall &call, const Rows &rows, int32_t to, int32_t channel, OwnRows<quantized, Rows> &own) {
    // Where many rows are to be sent, those that stay are moved in between; three tiles that are to be quantized do not fit the registers.
    constexpr bool keeps = Rows::many && !quantized;
    const Stream stream(call, rows.count(to));
    const ChannelShare share(stream.total, channel, call.fifos.fifo.channels);
    if (share.begin == share.end) return;
    const int lane = threadIdx.x % 32;
    FifoSender fifo(call.fifos, to, channel, phase_dispatch);
    Cursor at(call, stream, share.begin), now;
    Cargo<quantized> cargo;
    bool loaded = false;
    for (bool more = true; more || loaded;) {  // a tile is loaded while the one before it is sent
        Cargo<quantized> coming;
        if (more) coming.load(call, rows, at, to, lane);
        if (loaded) {
            const bool kept = keeps && more && own.begin();
            cargo.quantize(call, now);
            if (!fifo.await_room()) return;
            stagger();
            send_piece(fifo.at(), lane, cargo.valid, cargo.piece, fifo.tag());
            cargo.send_scales(now, fifo.at(), lane, fifo.tag());
            fifo.advance();
            if (kept) own.end();
        }
        cargo = coming;
        now = at;
        loaded = more;
        more = more && at.index + 1 < share.end;
        if (more) at.next(call, stream);
    }
    fifo.close();
}

// taken: tiles of this FIFO before the call.
template <bool quantized>
__device__ __forceinline__ void receive_channel(const FifoCall &call, int32_t from, int32_t channel, uint32_t taken, const Received &received) {
    const FifoWorkspace &fifos = call.fifos;
    const Stream stream(call, received.counts[from]);
    const ChannelShare share(stream.total, channel, fifos.fifo.channels);
    if (share.begin == share.end) return;
    const int lane = threadIdx.x % 32;
    const bool many = stream.total > 2 * fifos.fifo.channels;
    for (Cursor at(call, stream, share.begin);;) {
        Cargo<quantized> cargo;
        cargo.valid = at.valid(call, lane);
        const TileAt tile = tile_from(fifos, from, channel, taken);
        Look look;
        stagger();
        look.load(tile, lane, cargo.valid);
        bool came = await_piece(fifos.workspace, from, phase_dispatch, tile, lane, cargo.valid, taken + 1, many, look, &cargo.piece);
        came = came && cargo.await_scales(fifos.workspace, from, at, tile, lane, taken + 1);
        if (!__all_sync(whole_warp, came)) return;
        cargo.store(call, at, from, received.first[from], lane);
        give_back(fifos, from, channel, ++taken);
        if (at.index + 1 == share.end) break;
        at.next(call, stream);
    }
    if (lane == 0) *taken_from(fifos, from, channel) = taken;
}

// --- counts ---------------------------------------------------------------------------------------------------------------------

// Rows from each rank and where they begin here, by one warp; false on a fault.
template <class Rows>
__device__ bool learn_counts(const FifoCall &call, const Rows &rows, uint32_t epoch, Received &received) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    bool came = true;
#pragma unroll 1
    for (int32_t source = threadIdx.x % 32; source < ws.ranks; source += 32) {
        int32_t count;
        if (call.prepares == 0) {
            count = tables.recv_counts[source];
        } else if (source == ws.rank) {
            count = rows.count(source);
        } else {
            const uint64_t *word = &line_of(call.fifos, ws.mine, source)->rows[epoch & 1];
            uint64_t value = 0;
            came = came && await(ws, source, phase_dispatch, [&] {
                value = load_relaxed(word);
                return static_cast<uint32_t>(value >> 32) == epoch;
            });
            count = static_cast<int32_t>(value);
        }
        received.counts[source] = count;
        if (call.fifos.packed == 0) received.first[source] = int64_t{source} * ws.capacity;
    }
    __syncwarp();
    if (call.fifos.packed != 0) {
#pragma unroll 1
        for (int32_t source = threadIdx.x % 32; source < ws.ranks; source += 32) {
            int64_t first = 0;
#pragma unroll 1
            for (int32_t earlier = 0; earlier < source; ++earlier) first += received.counts[earlier];
            received.first[source] = first;
        }
        __syncwarp();
    }
    return __all_sync(whole_warp, came);
}

// For later calls, and the caller: by one warp of the kernel.
__device__ void keep_counts(const FifoCall &call, int32_t tokens_here, uint32_t epoch, const Received &received) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
#pragma unroll 1
    for (int32_t source = threadIdx.x % 32; source < ws.ranks; source += 32) {
        int32_t before = 0;
#pragma unroll 1
        for (int32_t earlier = 0; earlier < source; ++earlier) before += received.counts[earlier];
        tables.recv_counts[source] = received.counts[source];
        tables.recv_offsets[source] = before;
        if (source == ws.ranks - 1) tables.recv_offsets[ws.ranks] = before + received.counts[source];
        uint64_t tokens = static_cast<uint64_t>(tokens_here);
        if (source != ws.rank) {
            const uint64_t *word = &line_of(call.fifos, ws.mine, source)->tokens[epoch & 1];
            await(ws, source, phase_dispatch, [&] {
                tokens = load_relaxed(word);
                return static_cast<uint32_t>(tokens >> 32) == epoch;
            });
        }
        tables.source_tokens[source] = static_cast<int32_t>(tokens);
    }
}

// Marks the rows of topk_ids that hold none, once: rows already marked with the same id stay. Packed rows fill the part of one source
// after another. By a warp.
__device__ void fill_ids(const FifoCall &call, int32_t part, const Received &received) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    const int lane = threadIdx.x % 32;
    const int64_t begin = int64_t{part} * ws.capacity, all = received.first[ws.ranks - 1] + received.counts[ws.ranks - 1];
    const int64_t rows = call.fifos.packed != 0 ? max(int64_t{0}, min(int64_t{ws.capacity}, all - begin)) : received.counts[part];
    const Filled filled = tables.filled[part];
    const int64_t end = filled.id == call.invalid_id ? filled.rows : ws.capacity;
    int32_t *ids = tables.ids + begin * ws.top_k;
#pragma unroll 1
    for (int64_t i = rows * ws.top_k + lane; i < end * ws.top_k; i += 32) ids[i] = call.invalid_id;
    __syncwarp();
    if (lane == 0) tables.filled[part] = {static_cast<int32_t>(rows), call.invalid_id};
}

// --- a routing that every block has found -----------------------------------------------------------------------------------------

// By a warp, of one token.
__device__ void keep_token(const FifoCall &call, const FoundRows &rows, int32_t token, const TokenBits &bits) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    const int lane = threadIdx.x % 32;
    const TokenWeights weights(call, token);
    int distinct = 0;
#pragma unroll 1
    for (int32_t first = 0; first < ws.ranks; first += 32) {
        const int32_t rank = first + lane;
        const bool goes = rank < ws.ranks && rows.goes(token, rank);
        const uint32_t going = __ballot_sync(whole_warp, goes);
        const int j = distinct + __popc(going & ((1u << lane) - 1u));
        const float sum = call.weights != nullptr ? weights.sum_of(rank, ws.top_k) : 0.0f;
        if (goes) {
            keep_row(tables, ws, token, j, rank, bits.offsets[rank] + rows.row_of(token, rank));
            if (call.weights != nullptr) tables.weight_sums[int64_t{token} * ws.max_distinct + j] = sum;
        }
        distinct += __popc(going);
    }
    keep_distinct(tables, ws, token, distinct);
}

// --- the kernel -------------------------------------------------------------------------------------------------------------------

// How many channels carry anything, of streams with these rows: by a warp.
template <class Count>
__device__ __forceinline__ int busy_channels(const FifoCall &call, Count &&count) {
    const Workspace &ws = call.fifos.workspace;
    int32_t most = 0;
#pragma unroll 1
    for (int32_t other = threadIdx.x % 32; other < ws.ranks - 1; other += 32) most = max(most, count(other_rank(ws.rank, other)));
    const Stream stream(call, __reduce_max_sync(whole_warp, most));
    return static_cast<int>(min(int64_t{call.fifos.fifo.channels}, stream.total));
}

template <bool quantized, class Rows>
__device__ __forceinline__ void move_rows(const FifoCall &call, const Rows &rows, int32_t tokens, uint32_t epoch, Shared &shared) {
    const FifoWorkspace &fifos = call.fifos;
    const Workspace &ws = fifos.workspace;
    const int others = ws.ranks - 1, warp = threadIdx.x / 32, workers = role_warps * gridDim.x;
    OwnRows<quantized, Rows> own(call, rows, shared);
    if (fifos.packed == 0) own.open(int64_t{ws.rank} * ws.capacity);
    // Every worker goes through its FIFOs by channel, then by rank: see the argument in docs/two_sided.md.
    if (warp < role_warps) {
        const int tasks = busy_channels(call, [&](int32_t to) { return rows.count(to); }) * others;
#pragma unroll 1
        for (int task = warp * gridDim.x + blockIdx.x; task < tasks; task += workers) {
            send_channel<quantized>(call, rows, other_rank(ws.rank, task % others), task / others, own);
        }
    } else {
        const int worker = (warp - role_warps) * gridDim.x + blockIdx.x, last = workers - 1 - worker;
        Received &received = shared.received[warp - role_warps];
        // Both are there by the time that counts have come.
        const bool has = others > 0 && worker < fifos.fifo.channels * others;
        uint32_t taken = has ? *taken_from(fifos, other_rank(ws.rank, worker % others), worker / others) : 0;
        const bool learned = learn_counts(call, rows, epoch, received);
        // The last workers have nothing to receive where there is little.
#pragma unroll 1
        for (int32_t part = last; learned && call.prepares != 0 && part < ws.ranks; part += workers) fill_ids(call, part, received);
        if (last == ws.ranks % workers) {
            if (learned && call.prepares != 0) keep_counts(call, tokens, epoch, received);
            check_shapes(fifos, epoch, call.shape, phase_dispatch);
            __syncwarp();
        }
        const int tasks = learned ? busy_channels(call, [&](int32_t from) { return received.counts[from]; }) * others : 0;
#pragma unroll 1
        for (int task = worker; task < tasks; task += workers) {
            const int32_t from = other_rank(ws.rank, task % others), channel = task / others;
            if (task != worker) taken = *taken_from(fifos, from, channel);
            receive_channel<quantized>(call, from, channel, taken, received);
        }
    }
    if (fifos.packed != 0) {
        __syncthreads();
        own.open(shared.received[0].first[ws.rank]);  // after the rows of earlier ranks, whose counts have come
    }
    own.rest();
    if (blockIdx.x == 0 && threadIdx.x == 0) fifos.tables.state->prepared = 1;
}

template <bool quantized>
__global__ void __launch_bounds__(block_threads, 1) alltoallv_kernel(const __grid_constant__ FifoCall call) {
    __shared__ Shared shared;
    uint32_t epoch = 0;
    if (threadIdx.x == 0) shared.own = 0;
    if (!begin_call(call.fifos, call.shape, &epoch)) return;
    const FifoState *state = call.fifos.tables.state;
    if (blockIdx.x == 0 && threadIdx.x == 0 && call.prepares == 0 && state->prepared == call.repeats) {
        report(call.fifos.workspace, fault_pairing, call.fifos.workspace.rank, phase_dispatch);
    }
    move_rows<quantized>(call, TableRows(call), state->tokens, epoch, shared);
}

// Of a call that prepares a routing of few tokens.
template <bool quantized>
__global__ void __launch_bounds__(block_threads, 1) prepared_alltoallv_kernel(const __grid_constant__ FifoCall call) {
    __shared__ Shared shared;
    __shared__ TokenBits bits;
    const Workspace &ws = call.fifos.workspace;
    uint32_t epoch = 0;
    if (threadIdx.x == 0) shared.own = 0;
    if (!begin_call(call.fifos, call.shape, &epoch)) return;
    const int32_t tokens = tokens_of(call);
    const FoundRows rows(call, tokens, bits);
    __syncthreads();
    find_offsets(rows, ws.ranks, bits.offsets);
    __syncthreads();
    if (blockIdx.x == 0) tell_counts(call, rows, tokens, epoch, bits.offsets);
    // Warps that will wait for others' rows have the time, and those in the middle the most.
    const int warp = threadIdx.x / 32, workers = role_warps * gridDim.x;
    if (warp >= role_warps) {
        const int worker = (warp - role_warps) * gridDim.x + blockIdx.x;
#pragma unroll 1
        for (int32_t token = (worker + workers / 2) % workers; token < tokens; token += workers) keep_token(call, rows, token, bits);
    }
    move_rows<quantized>(call, rows, tokens, epoch, shared);
}

}  // namespace

Result load_fifos() {
    for (Result (*load)() : {&load_fifo_routing, &load_alltoallv_combine}) {
        if (Result result = load(); result != cudaSuccess) return result;
    }
    return load_each({address_of(&alltoallv_kernel<false>), address_of(&alltoallv_kernel<true>), address_of(&prepared_alltoallv_kernel<false>),
                      address_of(&prepared_alltoallv_kernel<true>)});
}

Result alltoallv(const FifoCall &call, const Launch &launch) {
    const bool quantized = call.quantize != quantize_none;
    const int wanted = std::max(least_blocks, 4 * launch.tokens);
    if (call.prepares != 0 && call.tokens <= found_tokens) {
        return launch_kernel(quantized ? &prepared_alltoallv_kernel<true> : &prepared_alltoallv_kernel<false>, call, launch, wanted);
    }
    if (call.prepares != 0) {
        if (Result result = fifo_routing(call, launch); result != cudaSuccess) return result;
    }
    return launch_kernel(quantized ? &alltoallv_kernel<true> : &alltoallv_kernel<false>, call, launch, wanted);
}

}  // namespace moelink::kernels::cuda
