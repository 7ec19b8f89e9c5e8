// The way back through FIFOs: one kernel. Half of a block's warps send rows to their tokens' owners, by token; the others, each for some
// channels, take the tiles of one token after another from the FIFOs of its ranks and add them in rank order in fp32. A channel
// carries a range of the owner's tokens' tiles, from every rank the same range.
#include "common/load.cuh"
#include "common/start.cuh"
#include "moe/fifo.cuh"
#include "common/sum.cuh"

namespace moelink::kernels::cuda {

namespace {

constexpr int least_blocks = 16;  // rows to send may be many where own tokens are few

struct Shared {
    uint32_t taken[role_warps][max_cuda_ranks];  // tiles from each rank in the channel at hand
};

__device__ __forceinline__ const unsigned char *input_row(const FifoCombine &call, int32_t source, int64_t row) {
    const FifoWorkspace &fifos = call.fifos;
    const int64_t first = fifos.packed != 0 ? fifos.tables.recv_offsets[source] : int64_t{source} * fifos.workspace.capacity;
    return call.input + static_cast<uint64_t>(first + row) * call.input_stride;
}

// --- sending --------------------------------------------------------------------------------------------------------------------

// The tokens of the rows from one rank, which rise: by all lanes of a warp, which hold 32 of them at a time.
class Origins {
public:
    // Begins with the first row whose token is not below `token`.
    __device__ Origins(const int32_t *tokens, int32_t count, int64_t token) : tokens_(tokens), count_(count) {
        if (count <= 32) {
            hold(0);
            row_ = __popc(__ballot_sync(whole_warp, held_ < token));
        } else {
            row_ = lower_bound(token);
            hold(row_);
        }
    }
    __device__ __forceinline__ bool more() const { return row_ < count_; }
    __device__ __forceinline__ int32_t row() const { return row_; }
    // Of the row; INT32_MAX after the last one.
    __device__ __forceinline__ int32_t token() const { return __shfl_sync(whole_warp, held_, row_ - first_); }
    __device__ __forceinline__ void next() {
        if (++row_ - first_ == 32) hold(row_);
    }

private:
    __device__ __forceinline__ void hold(int32_t first) {
        first_ = first;
        const int32_t row = first + static_cast<int32_t>(threadIdx.x % 32);
        held_ = row < count_ ? tokens_[row] : INT32_MAX;
    }

    __device__ __forceinline__ int32_t lower_bound(int64_t token) const {
        const int lane = threadIdx.x % 32;
        int32_t low = 0, high = count_;  // the answer
        while (low < high) {
            const int32_t step = (high - low + 31) / 32;
            const int64_t at = low + int64_t{lane} * step;
            const bool below = at < high && tokens_[at] < token;
            const int32_t some = __popc(__ballot_sync(whole_warp, below));  // those below come first
            if (some == 0) return low;
            const int32_t last = low + (some - 1) * step;
            low = last + 1;
            high = min(high, last + step);
        }
        return low;
    }

    const int32_t *tokens_;
    int32_t count_;
    int32_t row_;
    int32_t first_;
    int32_t held_;  // token of row first_ + lane
};

__device__ void send_back(const FifoCombine &call, int32_t to, int32_t channel) {
    const FifoWorkspace &fifos = call.fifos;
    const int lane = threadIdx.x % 32, tiles = static_cast<int>(packet_tiles(call.row_bytes)), vectors = row_vectors(call.row_bytes);
    const int32_t count = fifos.tables.recv_counts[to];
    const ChannelShare share(int64_t{fifos.tables.source_tokens[to]} * tiles, channel, fifos.fifo.channels);
    if (count == 0 || share.begin == share.end) return;
    FifoSender fifo(fifos, to, channel, phase_combine);
    const int64_t first_token = share.begin / tiles;
    Origins origins(fifos.tables.origins + int64_t{to} * fifos.workspace.capacity, count, first_token);
    int64_t token = origins.token();
    int tile = token == first_token ? static_cast<int>(share.begin - first_token * tiles) : 0;
    const auto load = [&] {
        return load_row_piece(input_row(call, to, origins.row()), call.row_bytes, call.input_width, tile, lane, valid_vectors(vectors, tile, lane));
    };
    // A tile's place among the owner's: its token's, then its own.
    const auto carried = [&] { return origins.more() && token * tiles + tile < share.end; };
    if (!carried()) return;
    Piece piece = load();
    for (;;) {
        const int valid = valid_vectors(vectors, tile, lane);
        if (++tile == tiles) {
            tile = 0;
            origins.next();
            token = origins.token();
        }
        const bool more = carried();
        Piece coming{};
        if (more) coming = load();
        if (!fifo.await_room()) return;
        stagger();
        send_piece(fifo.at(), lane, valid, piece, fifo.tag());
        fifo.advance();
        if (!more) break;
        piece = coming;
    }
    fifo.close();
}

// --- adding ---------------------------------------------------------------------------------------------------------------------

// What is to be added for one token: a rank a lane.
struct TokenRanks {
    int32_t distinct;
    int32_t rank;     // of this lane; -1: no more
    float weight;
    int32_t own_row;  // of the rows that stay here, for the lane of this rank

    // first_own: of this rank's rows in the list of all.
    __device__ TokenRanks(const FifoCombine &call, int32_t first_own, int64_t token, int lane) {
        const Workspace &ws = call.fifos.workspace;
        const FifoTables &tables = call.fifos.tables;
        const int64_t at = token * ws.max_distinct + lane;
        distinct = tables.distinct[token];
        rank = -1;
        weight = 1.0f;
        own_row = 0;
        if (lane >= ws.max_distinct) return;
        rank = tables.distinct_ranks[at];
        if (call.weighted != 0) weight = tables.weight_sums[at];  // where there is no rank nobody looks at it
        own_row = tables.back_rows[at] - first_own;
    }
};

template <class T>
__device__ void add_channel(const FifoCombine &call, int32_t channel, uint32_t *taken) {
    constexpr int values = 16 / sizeof(T);
    constexpr int ahead = 2;  // rows in flight
    using P = Pack<T, values>;
    const FifoWorkspace &fifos = call.fifos;
    const Workspace &ws = fifos.workspace;
    const int lane = threadIdx.x % 32, tiles = static_cast<int>(packet_tiles(call.row_bytes)), vectors = row_vectors(call.row_bytes);
    const int64_t total = int64_t{fifos.tables.state->tokens} * tiles;
    const int32_t first_own = fifos.tables.send_offsets[ws.rank];
    const ChannelShare share(total, channel, fifos.fifo.channels);
    if (share.begin == share.end) return;
    const bool many = total > 2 * fifos.fifo.channels;
#pragma unroll 1
    for (int32_t other = lane; other < ws.ranks - 1; other += 32) {
        taken[other_rank(ws.rank, other)] = fifos.tables.taken[fifo_index(fifos.fifo, other, channel)];
    }
    __syncwarp();
    int64_t token = share.begin / tiles;
    int tile = static_cast<int>(share.begin - token * tiles);
    TokenRanks ranks(call, first_own, token, lane);
    for (int64_t item = share.begin; item < share.end; ++item) {
        const int valid = valid_vectors(vectors, tile, lane);
        Sum<T, values> sum[piece_vectors];
        stagger();
        for (int32_t first = 0; first < ranks.distinct; first += ahead) {
            Look look[ahead];
            Piece piece[ahead];
            int32_t rank[ahead];
#pragma unroll
            for (int u = 0; u < ahead; ++u) {
                rank[u] = __shfl_sync(whole_warp, ranks.rank, min(first + u, 31));
                const int32_t own_row = __shfl_sync(whole_warp, ranks.own_row, min(first + u, 31));
                if (first + u >= ranks.distinct) continue;
                if (rank[u] == ws.rank) {
                    piece[u] = load_row_piece(input_row(call, ws.rank, own_row), call.row_bytes, call.input_width, tile, lane, valid);
                } else {
                    look[u].load(tile_from(fifos, rank[u], channel, taken[rank[u]]), lane, valid);
                }
            }
#pragma unroll
            for (int u = 0; u < ahead; ++u) {
                const float weight = __shfl_sync(whole_warp, ranks.weight, min(first + u, 31));
                if (first + u >= ranks.distinct) continue;
                if (rank[u] != ws.rank) {
                    const uint32_t position = taken[rank[u]];
                    const TileAt at = tile_from(fifos, rank[u], channel, position);
                    const bool came = await_piece(ws, rank[u], phase_combine, at, lane, valid, position + 1, many, look[u], &piece[u]);
                    if (!__all_sync(whole_warp, came)) return;
                    __syncwarp();  // all lanes have read the position
                    if (lane == 0) taken[rank[u]] = position + 1;
                    __syncwarp();
                    give_back(fifos, rank[u], channel, position + 1);
                }
#pragma unroll
                for (int i = 0; i < piece_vectors; ++i) {
                    if (i < valid) sum[i].add(reinterpret_cast<const P &>(piece[u].vector[i]), weight, call.weighted != 0);
                }
            }
        }
        Piece out{};
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) {
            const P pack = sum[i].rounded();
            out.vector[i] = reinterpret_cast<const uint4 &>(pack);
        }
        store_row_piece(call.output + static_cast<uint64_t>(token) * call.output_stride, call.row_bytes, call.output_width, tile, lane, valid, out);
        if (++tile < tiles || item + 1 == share.end) continue;
        tile = 0;
        ranks = TokenRanks(call, first_own, ++token, lane);
    }
#pragma unroll 1
    for (int32_t other = lane; other < ws.ranks - 1; other += 32) {
        fifos.tables.taken[fifo_index(fifos.fifo, other, channel)] = taken[other_rank(ws.rank, other)];
    }
    __syncwarp();
}

template <class T>
__global__ void __launch_bounds__(block_threads, 1) alltoallv_combine_kernel(const __grid_constant__ FifoCombine call) {
    __shared__ Shared shared;
    const FifoWorkspace &fifos = call.fifos;
    const Workspace &ws = fifos.workspace;
    uint32_t epoch = 0;
    if (!begin_call(fifos, call.shape, &epoch)) return;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        uint32_t &prepared = fifos.tables.state->prepared;
        if (prepared == 0) report(ws, fault_pairing, ws.rank, phase_combine);
        prepared = call.ends != 0 ? 0 : 1;
    }
    const int others = ws.ranks - 1, warp = threadIdx.x / 32, workers = role_warps * gridDim.x;
    const auto busy_channels = [&](int32_t tokens) {
        return static_cast<int>(min(int64_t{fifos.fifo.channels}, tokens * static_cast<int64_t>(packet_tiles(call.row_bytes))));
    };
    if (warp < role_warps) {
        int32_t tokens = 0;
#pragma unroll 1
        for (int32_t other = threadIdx.x % 32; other < others; other += 32) tokens = max(tokens, fifos.tables.source_tokens[other_rank(ws.rank, other)]);
        const int tasks = busy_channels(__reduce_max_sync(whole_warp, tokens)) * others;
#pragma unroll 1
        for (int task = warp * gridDim.x + blockIdx.x; task < tasks; task += workers) {
            send_back(call, other_rank(ws.rank, task % others), task / others);
        }
    } else {
        const int worker = (warp - role_warps) * gridDim.x + blockIdx.x, channels = busy_channels(fifos.tables.state->tokens);
        if (worker == workers - 1) check_shapes(fifos, epoch, call.shape, phase_combine);  // it has no channel where there is little
        __syncwarp();
#pragma unroll 1
        for (int channel = worker; channel < channels; channel += workers) add_channel<T>(call, channel, shared.taken[warp - role_warps]);
    }
}

using CombineKernel = void (*)(FifoCombine);

CombineKernel choose(int32_t value_type) {
    switch (value_type) {
        case value_f32: return &alltoallv_combine_kernel<float>;
        case value_f16: return &alltoallv_combine_kernel<__half>;
        default: return &alltoallv_combine_kernel<__nv_bfloat16>;
    }
}

}  // namespace

Result load_alltoallv_combine() {
    return load_each({address_of(choose(value_f32)), address_of(choose(value_f16)), address_of(choose(value_bf16))});
}

Result alltoallv_combine(const FifoCombine &call, const Launch &launch) {
    return launch_kernel(choose(call.value_type), call, launch, std::max(least_blocks, 4 * launch.tokens));
}

}  // namespace moelink::kernels::cuda
