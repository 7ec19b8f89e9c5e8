// Push combine: one kernel, of which a part pushes and a part adds. Who pushes stores each received row into its owner's plane, at the token's
// number and the rank's place among the token's distinct ranks, and marks it as arrived; or sends it as packets, where its owner has few
// enough tokens. Who adds waits for the rows of one token after another and adds them in rank order in fp32. Packets are pushed by some
// of the blocks, rows by some warps of all blocks with bulk copies (or by blocks, where there can be none). Rows of our own tokens that our
// own experts worked on are read where they are.
#include "common/bulk.cuh"
#include "common/load.cuh"
#include "common/packets.cuh"
#include "common/start.cuh"
#include "common/sum.cuh"

namespace moelink::kernels::cuda {

namespace {

constexpr int least_blocks = 32;
constexpr int few_tokens = 128;    // so few that a warp waits for hardly more than one tile

// Rows that one warp's bulk copies have on their way to their owners.
struct OnTheWay {
    static constexpr uint32_t most = 16;
    uint32_t *mark[most];    // nullptr: none
    uint32_t chunks[most];   // of the warp, up to the row's last
};

struct Shared {
    unsigned char *peers[max_cuda_ranks];
    uint32_t counts[max_cuda_ranks];  // rows received from each rank; packets_back_bit: they go back as packets
    uint32_t epoch;
    int32_t tokens;
    OnTheWay on_the_way[bulk_warps];
};

// Of blocks that push while others add our tokens: as many as it takes to fill the link, or to keep pace where blocks are few. Packets are
// the faster to push, and the slower to add. `rows`: that are to be pushed as such, to one rank.
__device__ __forceinline__ int pushing_part(int blocks, int32_t rows, int32_t tokens) {
    constexpr int few_blocks = 64, many_tokens = 1024;
    if (rows == 0) return max(1, blocks / (tokens > many_tokens ? 5 : 4));
    if (rows > 4 * tokens) return max(1, blocks * 7 / 8);
    return max(1, blocks <= few_blocks ? blocks * 3 / 8 : blocks / 2);
}

// The i-th of the other ranks: every rank begins with another, so that no port gets all of them at once.
__device__ __forceinline__ int32_t other_at(const Workspace &ws, int32_t i) { return (ws.rank + 1 + i) % ws.ranks; }

// The first `warps` of a block in teams, a row each: four teams, or fewer larger ones where a block has fewer rows, or `most` where it has many.
struct RowTeams {
    int count;
    int team;
    int lane;
    int width;

    __device__ RowTeams(int64_t rows, int blocks, int warps, int most) {
        constexpr int many = 40;
        count = rows > many * int64_t{blocks} ? most : rows > 2 * int64_t{blocks} ? 4 : rows > blocks ? 2 : 1;
        width = warps * 32 / count;
        team = static_cast<int>(threadIdx.x) / width;
        lane = static_cast<int>(threadIdx.x) % width;
    }

    __device__ __forceinline__ void sync() const {
        __syncwarp();  // a barrier of several warps is for whole ones
        if (width > 32) asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "r"(width) : "memory");
    }
};

__device__ __forceinline__ uint64_t place_of(const Workspace &ws, int64_t token, int32_t distinct) {
    return static_cast<uint64_t>(token) * static_cast<uint64_t>(ws.max_distinct) + static_cast<uint64_t>(distinct);
}

__device__ __forceinline__ const unsigned char *input_row(const CombineParams &params, int32_t source, int64_t row) {
    return params.input + static_cast<uint64_t>(int64_t{source} * params.workspace.capacity + row) * params.input_stride;
}

// --- pushing ------------------------------------------------------------------------------------------------------------------

// Most rows that another rank gets back as packets, or into its plane. All lanes of a warp.
__device__ __forceinline__ int32_t most_rows(const Workspace &ws, bool packets, const Shared &shared) {
    int32_t most = 0;
    for (int32_t rank = threadIdx.x % 32; rank < ws.ranks; rank += 32) {
        const uint32_t count = shared.counts[rank];
        if (rank != ws.rank && ((count & packets_back_bit) != 0) == packets) most = max(most, rows_in(count));
    }
    return __reduce_max_sync(all_lanes, most);
}

// A received row and its place in its owner's plane.
struct PushedRow {
    int32_t source;
    int64_t row;
    uint64_t place;
    bool came;  // and its owner wants it as a row
    bool goes;  // into the plane

    __device__ PushedRow(const Workspace &ws, int64_t item, const Shared &shared) {
        const int others = ws.ranks - 1;
        source = other_at(ws, static_cast<int32_t>(item % others));
        row = item / others;
        const uint32_t count = shared.counts[source];
        came = goes = (count & packets_back_bit) == 0 && row < rows_in(count);
        if (!came) return;
        const RowOrigin origin = part<RowOrigin>(ws.mine, ws.layout.origins)[int64_t{source} * ws.capacity + row];
        place = place_of(ws, origin.token, origin.distinct);
        goes = origin.distinct >= 0;
    }
};

// Rows in turn from all sources, so that the first tokens of every rank are whole first; packets likewise. Where few blocks have many
// rows, one fence stands for several: what it waits for is the way to the owner and back, which more blocks hide from each other.
__device__ void push_rows(const CombineParams &params, int block, int blocks, const Shared &shared) {
    constexpr int rows_a_fence = 4, few_blocks = 24;
    const Workspace &ws = params.workspace;
    const int64_t end = int64_t{most_rows(ws, false, shared)} * (ws.ranks - 1);
    const RowTeams teams(end, blocks, block_warps, 4);
    const int64_t stride = int64_t{blocks} * teams.count;
    const int group = blocks <= few_blocks && end > 2 * rows_a_fence * stride ? rows_a_fence : 1;
    for (int64_t first = int64_t{teams.team} * blocks + block; first < end; first += stride * group) {
        for (int64_t item = first; item < min(end, first + stride * group); item += stride) {
            const PushedRow pushed(ws, item, shared);
            if (!pushed.goes) continue;
            copy_row(teams.width, teams.lane, input_row(params, pushed.source, pushed.row),
                     shared.peers[pushed.source] + ws.layout.combine + pushed.place * params.row_bytes, params.row_bytes, params.push_width);
        }
        teams.sync();
        const int64_t item = first + teams.lane * stride;
        if (teams.lane >= group || item >= end) continue;
        const PushedRow pushed(ws, item, shared);
        if (!pushed.goes) continue;
        stagger();
        fence<Site::combine_push>();
        stagger();
        store_relaxed(part<uint32_t>(shared.peers[pushed.source], ws.layout.arrived) + pushed.place, shared.epoch);
    }
}

// The same by bulk copies. The first lane of a warp copies; a row is marked when it is there, where few blocks have many rows some rows later.
class BulkPush {
public:
    __device__ BulkPush(const CombineParams &params, int block, int blocks, Shared &shared)
        : params_(params), shared_(shared), on_the_way_(shared.on_the_way[bulk_warp()]), blocks_(blocks), stride_(int64_t{blocks} * bulk_warps),
          end_(int64_t{most_rows(params.workspace, false, shared)} * (params.workspace.ranks - 1)), coming_(int64_t{bulk_warp()} * blocks + block) {}

    __device__ void push() {
        const int64_t first = coming_;
        if (first >= end_) return;
        const int lane = threadIdx.x % 32;
        if (lane == 0) {
            ring_.open();
            skip();
            read_ahead();
        }
        for (int64_t item = first; item < end_; item += 32 * stride_) {
            const PushedRow pushed(params_.workspace, item + lane * stride_, shared_);
            for (int i = 0; i < 32; ++i) {
                const bool came = __shfl_sync(all_lanes, pushed.came, i), goes = __shfl_sync(all_lanes, pushed.goes, i);
                const int32_t source = __shfl_sync(all_lanes, pushed.source, i);
                const uint64_t place = __shfl_sync(all_lanes, pushed.place, i);
                if (lane == 0 && came) store(source, place, goes);
            }
        }
        if (lane == 0) mark<0>();
    }

private:
    __device__ __forceinline__ void skip() {
        while (coming_ < end_) {
            const int others = params_.workspace.ranks - 1;
            const uint32_t count = shared_.counts[other_at(params_.workspace, static_cast<int32_t>(coming_ % others))];
            if ((count & packets_back_bit) == 0 && coming_ / others < rows_in(count)) return;
            coming_ += stride_;
        }
    }

    __device__ __forceinline__ void read_ahead() {
        while (coming_ < end_ && ring_.has_room()) read();
    }

    __device__ __forceinline__ void read() {
        const int others = params_.workspace.ranks - 1;
        const int32_t source = other_at(params_.workspace, static_cast<int32_t>(coming_ % others));
        ring_.read(input_row(params_, source, coming_ / others) + coming_at_, bytes(coming_at_));
        coming_at_ += bulk_chunk;
        if (coming_at_ < params_.row_bytes) return;
        coming_at_ = 0;
        coming_ += stride_;
        skip();
    }

    __device__ __forceinline__ uint32_t bytes(uint64_t at) const { return static_cast<uint32_t>(min(uint64_t{bulk_chunk}, params_.row_bytes - at)); }

    __device__ __forceinline__ void store(int32_t source, uint64_t place, bool goes) {
        const Workspace &ws = params_.workspace;
        unsigned char *peer = shared_.peers[source];
        for (uint64_t at = 0; at < params_.row_bytes; at += bulk_chunk) {
            ring_.await();
            stagger();
            if (goes) ring_.store(peer + ws.layout.combine + place * params_.row_bytes + at, bytes(at));
            ring_.stored();
            read_ahead();
        }
        on_the_way_.mark[sent_ % OnTheWay::most] = goes ? part<uint32_t>(peer, ws.layout.arrived) + place : nullptr;
        on_the_way_.chunks[sent_ % OnTheWay::most] = ring_.stores();
        ++sent_;
        // Few blocks have no time to wait for each row.
        constexpr int few_blocks = 48, rows_a_fence = 2, behind = 2;
        if (blocks_ > few_blocks) {
            mark<0>();
        } else if (sent_ % rows_a_fence == 0) {
            mark<behind>();
        }
    }

    // Marks the rows of all but the last `behind` chunks.
    template <int behind>
    __device__ __forceinline__ void mark() {
        const uint32_t done = ring_.stores() - behind;
        if (marked_ == sent_ || static_cast<int32_t>(done - on_the_way_.chunks[marked_ % OnTheWay::most]) < 0) return;
        ring_.written<behind>();
        stagger();
        fence<Site::combine_push>();
        stagger();
        for (; marked_ != sent_ && static_cast<int32_t>(done - on_the_way_.chunks[marked_ % OnTheWay::most]) >= 0; ++marked_) {
            uint32_t *at = on_the_way_.mark[marked_ % OnTheWay::most];
            if (at != nullptr) store_relaxed(at, shared_.epoch);
        }
    }

    const CombineParams &params_;
    Shared &shared_;
    OnTheWay &on_the_way_;
    Ring ring_;
    int blocks_;
    int64_t stride_;           // between this warp's rows
    int64_t end_;
    int64_t coming_;           // the row that is read, and the byte in it
    uint64_t coming_at_ = 0;
    uint32_t sent_ = 0;        // rows
    uint32_t marked_ = 0;
};

__device__ __forceinline__ TileAt tile_at(const Workspace &ws, unsigned char *at, uint64_t place, int tile) {
    return {at + ws.layout.combine_packets + place * ws.combine_packet_bytes, 0, ws.combine_packet_vectors, tile};
}

__device__ void push_packets(const CombineParams &params, WarpShare share, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32, others = ws.ranks - 1;
    const int row_tiles = static_cast<int>(packet_tiles(params.row_bytes));
    const int most = most_rows(ws, true, shared);
    struct Row {
        int32_t source, row;
        RowOrigin origin;
    };
    share.each(
        most * others * row_tiles,
        [&](int item) {
            const int turn = item / row_tiles, row = turn / others;
            const int32_t source = other_at(ws, turn - row * others);
            return Row{source, row, part<RowOrigin>(ws.mine, ws.layout.origins)[int64_t{source} * ws.capacity + row]};
        },
        [&](int item, const Row &row) {
            const uint32_t count = shared.counts[row.source];
            if ((count & packets_back_bit) == 0 || row.row >= rows_in(count) || row.origin.distinct < 0) return;
            const int tile = item % row_tiles, valid = valid_vectors(static_cast<int>(params.row_bytes / 16), tile, lane);
            const Piece piece = load_piece(input_row(params, row.source, row.row), tile, lane, valid);
            stagger();
            send_piece(tile_at(ws, shared.peers[row.source], place_of(ws, row.origin.token, row.origin.distinct), tile), lane, valid, piece,
                       shared.epoch);
        });
}

// That we have come to this combine, to every rank. Nothing needs to come before: rows have marks or tags of their own.
__device__ void announce(const CombineParams &params, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int32_t source = threadIdx.x;
    stagger();
    if (source < ws.ranks) {
        SourceLine *line = part<SourceLine>(shared.peers[source], ws.layout.lines) + ws.rank;
        const uint32_t rows = static_cast<uint32_t>(rows_in(shared.counts[source]));
        store_relaxed(&line->combine_shape, tagged(shared.epoch, params.shape));
        store_relaxed(&line->combine_count, tagged(shared.epoch, rows));
        part<uint64_t>(ws.mine, ws.layout.dispatch_base)[source] += uint64_t{rows};  // for the next dispatch
    }
    if (threadIdx.x == 0) {
        SlotState *state = part<SlotState>(ws.mine, ws.layout.state);
        if (state->combine_epoch == shared.epoch) report(ws, fault_pairing, ws.rank, phase_combine);
        state->combine_epoch = shared.epoch;
    }
}

__device__ bool await_rank(const CombineParams &params, int32_t rank, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + rank;
    uint32_t count;
    if (!await_count(ws, &line->combine_count, &line->combine_shape, shared.epoch, params.shape, rank, phase_combine, &count)) return false;
    if (rows_in(count) == part<int32_t>(ws.mine, ws.layout.send_counts)[rank]) return true;
    report(ws, fault_mismatch, rank, phase_combine);
    return false;
}

// --- adding -------------------------------------------------------------------------------------------------------------------

// What is to be added for one token of ours.
struct TokenRows {
    int32_t distinct;
    OwnRow own;
    const int32_t *ranks;
    const float *weights;

    __device__ TokenRows(const CombineParams &params, int64_t token) {
        const Workspace &ws = params.workspace;
        distinct = part<int32_t>(ws.mine, ws.layout.distinct)[token];
        own = part<OwnRow>(ws.mine, ws.layout.own_rows)[token];
        ranks = part<int32_t>(ws.mine, ws.layout.distinct_ranks) + place_of(ws, token, 0);
        weights = part<float>(ws.mine, ws.layout.weight_sums) + place_of(ws, token, 0);
    }

    __device__ __forceinline__ const unsigned char *own_input(const CombineParams &params) const {
        return input_row(params, params.workspace.rank, own.row);
    }
};

// Awaits the token's rows from other ranks, one a lane. A wait that fails leaves a fault behind, and every later one fails at once; what is
// added then is of no use to anyone.
__device__ __forceinline__ void await_token(const Workspace &ws, const TokenRows &rows, int64_t token, const RowTeams &teams, uint32_t epoch) {
    for (int32_t j = teams.lane; j < rows.distinct; j += teams.width) {
        if (j == rows.own.distinct) continue;
        const uint32_t *mark = part<uint32_t>(ws.mine, ws.layout.arrived) + place_of(ws, token, j);
        if (!await(ws, rows.ranks[j], phase_combine, [&] { return load_relaxed(mark) == epoch; })) return;
        stagger();
        acquire<Site::combine_await>(mark);
    }
}

template <class T, int Count>
__device__ void add_rows(const CombineParams &params, int block, int blocks, int warps, const Shared &shared) {
    using P = Pack<T, Count>;
    constexpr int ahead = 2;  // rows in flight
    constexpr int steps = 3;  // packs in flight of each
    const Workspace &ws = params.workspace;
    const RowTeams teams(shared.tokens, blocks, warps, warps);
    const int64_t packs = static_cast<int64_t>(params.row_bytes / sizeof(P));
    const int64_t first_token = int64_t{teams.team} * blocks + block, stride = int64_t{blocks} * teams.count;
    if (first_token >= shared.tokens) return;
    TokenRows coming(params, first_token);
    for (int64_t token = first_token; token < shared.tokens; token += stride) {
        const TokenRows rows = coming;
        coming = TokenRows(params, min(token + stride, int64_t{shared.tokens} - 1));
        const unsigned char *own_input = rows.own_input(params);
        const unsigned char *plane = ws.mine + ws.layout.combine + place_of(ws, token, 0) * params.row_bytes;
        if (teams.lane < rows.distinct) touch(plane + static_cast<uint64_t>(teams.lane) * params.row_bytes, params.row_bytes);
        await_token(ws, rows, token, teams, shared.epoch);
        teams.sync();
        P *out = reinterpret_cast<P *>(params.output + static_cast<uint64_t>(token) * params.output_stride);
        for (int64_t at = teams.lane; at < packs; at += int64_t{teams.width} * steps) {
            Sum<T, Count> sum[steps];
            for (int32_t first = 0; first < rows.distinct; first += ahead) {
                P pack[ahead][steps];
#pragma unroll
                for (int u = 0; u < ahead; ++u) {
                    const unsigned char *row = first + u == rows.own.distinct ? own_input : plane + static_cast<uint64_t>(first + u) * params.row_bytes;
#pragma unroll
                    for (int s = 0; s < steps; ++s) {
                        if (first + u < rows.distinct && at + s * teams.width < packs) pack[u][s] = load_once(reinterpret_cast<const P *>(row) + at + s * teams.width);
                    }
                }
#pragma unroll
                for (int u = 0; u < ahead; ++u) {
                    if (first + u >= rows.distinct) continue;
                    const float weight = params.weighted ? rows.weights[first + u] : 1.0f;
#pragma unroll
                    for (int s = 0; s < steps; ++s) sum[s].add(pack[u][s], weight, params.weighted);
                }
            }
#pragma unroll
            for (int s = 0; s < steps; ++s) {
                if (at + s * teams.width < packs) store_once(out + at + s * teams.width, sum[s].rounded());
            }
        }
    }
}

// A tile of a token's row from another rank: as packets, or from the plane where that rank's input is no whole vectors.
__device__ __forceinline__ bool await_row(const CombineParams &params, int32_t rank, int32_t token, int32_t distinct, int tile, int valid, bool many,
                                          const Look &look, Piece *piece, const Shared &shared) {
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32;
    const uint64_t place = place_of(ws, token, distinct);
    const TileAt at = tile_at(ws, ws.mine, place, tile);
    if (look.take(at, lane, valid, shared.epoch, piece)) return true;
    const uint32_t *mark = part<uint32_t>(ws.mine, ws.layout.arrived) + place;
    bool marked = false;
    touch(ws.mine + ws.layout.combine + place * params.row_bytes + vector_at(tile, lane, 0) * 16, valid > 0 ? 16 : 0);
    if (!await(ws, rank, phase_combine, [&] {
            if (!many || load_packet(at.bits).tag == shared.epoch) {
                Look again;
                again.load(at, lane, valid);
                if (again.take(at, lane, valid, shared.epoch, piece)) return true;
            }
            return marked = load_relaxed(mark) == shared.epoch;
        })) {
        return false;
    }
    if (marked) {
        acquire<Site::combine_fallback>(mark);
        *piece = load_piece(ws.mine + ws.layout.combine + place * params.row_bytes, tile, lane, valid);
    }
    return true;
}

// Tokens of which a rank's rows come as packets, or into the plane where its input is no whole vectors.
template <class T, bool many>
__device__ void add_packets(const CombineParams &params, WarpShare share, const Shared &shared) {
    constexpr int values = 16 / sizeof(T);
    constexpr int ahead = many ? 2 : 1;  // rows in flight
    using P = Pack<T, values>;
    const Workspace &ws = params.workspace;
    const int lane = threadIdx.x % 32;
    const int row_tiles = static_cast<int>(packet_tiles(params.row_bytes));
    auto rows_of = [&](int item) { return TokenRows(params, item / row_tiles); };
    auto add = [&](int item, const TokenRows &rows) {
        const int token = item / row_tiles, tile = item - token * row_tiles;
        const int valid = valid_vectors(static_cast<int>(params.row_bytes / 16), tile, lane);
        const unsigned char *own_input = rows.own_input(params);
        Sum<T, values> sum[piece_vectors];
        stagger();
        for (int32_t first = 0; first < rows.distinct; first += ahead) {
            Look look[ahead];
            Piece piece[ahead] = {};
            float weight[ahead];
#pragma unroll
            for (int u = 0; u < ahead; ++u) {
                if (first + u >= rows.distinct) continue;
                weight[u] = params.weighted ? rows.weights[first + u] : 1.0f;
                if (first + u == rows.own.distinct) {
#pragma unroll
                    for (int i = 0; i < piece_vectors; ++i) {
                        if (i < valid) piece[u].vector[i] = load_vector(own_input + vector_at(tile, lane, i) * 16, params.reduce_width);
                    }
                } else {
                    look[u].load(tile_at(ws, ws.mine, place_of(ws, token, first + u), tile), lane, valid);
                }
            }
#pragma unroll
            for (int u = 0; u < ahead; ++u) {
                const int32_t j = first + u;
                if (j >= rows.distinct) continue;
                if (j != rows.own.distinct && !await_row(params, rows.ranks[j], token, j, tile, valid, many, look[u], &piece[u], shared)) return;
#pragma unroll
                for (int i = 0; i < piece_vectors; ++i) sum[i].add(reinterpret_cast<const P &>(piece[u].vector[i]), weight[u], params.weighted);
            }
        }
        unsigned char *out = params.output + static_cast<uint64_t>(token) * params.output_stride;
#pragma unroll
        for (int i = 0; i < piece_vectors; ++i) {
            const P pack = sum[i].rounded();
            if (i < valid) store_vector(out + vector_at(tile, lane, i) * 16, reinterpret_cast<const uint4 &>(pack), params.reduce_width);
        }
    };
    if constexpr (many) {
        share.each(shared.tokens * row_tiles, rows_of, add);
    } else {
        share.each(shared.tokens * row_tiles, [&](int item) { add(item, rows_of(item)); });
    }
}

// What a kernel is for, by its rank's own tokens. A kernel has what it needs alone, since fetching instructions takes time; memory for
// bulk copies leaves less of a cache.
enum class Way {
    few,      // our rows come back as packets, and are so few that a warp waits for hardly more than one tile
    packets,  // our rows come back as packets
    rows,     // they come as rows, or as either
};

template <class T, Way way>
__global__ void __launch_bounds__(block_threads, 1) combine_kernel(const __grid_constant__ CombineParams params) {
    __shared__ Shared shared;
    const Workspace &ws = params.workspace;
    if (threadIdx.x < ws.ranks && ws.ranks <= near_ranks) shared.peers[threadIdx.x] = ws.near[threadIdx.x];
    if (!enter(ws)) return;
    const bool fault = found_fault(ws);
    const SlotState *state = part<SlotState>(ws.mine, ws.layout.state);
    if (threadIdx.x == block_threads - 1) shared.epoch = state->dispatch_epoch;
    if (threadIdx.x == block_threads - 2) shared.tokens = state->tokens;
    if (threadIdx.x < ws.ranks) {
        if (ws.ranks > near_ranks) shared.peers[threadIdx.x] = ws.peers[threadIdx.x];
        const uint32_t count = part<uint32_t>(ws.mine, ws.layout.received)[threadIdx.x];
        const bool as_packets = params.push_width == 16 || threadIdx.x == ws.rank;
        shared.counts[threadIdx.x] = as_packets ? count : count & ~packets_back_bit;
    }
    if (__syncthreads_or(fault)) return;
    const int blocks = gridDim.x, block = blockIdx.x;
    const bool sends = (params.halves & half_send) != 0;
    const bool bulk = way == Way::rows && sends && bulk_copies() && goes_in_bulk(params.row_bytes, params.push_width);
    int pushers = 0;  // the first blocks, all of which pushes
    if (sends && (!bulk || most_rows(ws, true, shared) > 0)) {
        pushers = params.halves == half_send ? blocks : pushing_part(blocks, bulk ? 0 : most_rows(ws, false, shared), shared.tokens);
    }
    if (sends && block == max(1, pushers) - 1) announce(params, shared);
    if (bulk && bulk_warp() >= 0) BulkPush(params, block, blocks, shared).push();
    if (block < pushers) {
        push_packets(params, WarpShare(block, pushers), shared);
        if (!bulk) push_rows(params, block, pushers, shared);
    }
    if (params.halves == half_send || (block < pushers && blocks > 1)) return;
    if (block < pushers) __syncthreads();  // teams of other sizes have the same barriers when they add
    const int adder = blocks > 1 ? block - pushers : 0, adders = blocks > 1 ? blocks - pushers : 1;
    // One block waits for all ranks, also without tokens, so that no rank gets a phase ahead.
    if (adder == adders - 1 && threadIdx.x < ws.ranks) await_rank(params, threadIdx.x, shared);
    __syncwarp();
    if constexpr (way != Way::rows) {
        add_packets<T, way == Way::packets>(params, WarpShare(adder, adders), shared);
    } else if ((shared.counts[ws.rank] & packets_back_bit) != 0 && params.row_bytes % 16 == 0) {
        add_packets<T, false>(params, WarpShare(adder, adders), shared);
    } else if (!bulk || bulk_warp() < 0) {
        const int warps = bulk ? block_warps - bulk_warps : block_warps;
        if (params.reduce_width == 16) {
            add_rows<T, 16 / sizeof(T)>(params, adder, adders, warps, shared);
        } else {
            add_rows<T, 1>(params, adder, adders, warps, shared);
        }
    }
}

using Kernel = void (*)(CombineParams);

template <class T>
Kernel choose(Way way) {
    return way == Way::few ? &combine_kernel<T, Way::few> : way == Way::packets ? &combine_kernel<T, Way::packets> : &combine_kernel<T, Way::rows>;
}

Kernel choose(int32_t value_type, Way way) {
    switch (value_type) {
        case value_f32: return choose<float>(way);
        case value_f16: return choose<__half>(way);
        default: return choose<__nv_bfloat16>(way);
    }
}

}  // namespace

Result load_combine() {
    for (int32_t type : {value_f32, value_f16, value_bf16}) {
        if (Result result = load_each({address_of(choose(type, Way::few)), address_of(choose(type, Way::packets))}); result != cudaSuccess) return result;
        if (Result result = load_each_with_bulk({address_of(choose(type, Way::rows))}); result != cudaSuccess) return result;
    }
    return cudaSuccess;
}

Result combine(const CombineParams &params, const Launch &launch) {
    const bool packets = launch.tokens <= params.workspace.combine_packet_rows && params.row_bytes % 16 == 0;
    const Way way = !packets ? Way::rows : launch.tokens <= few_tokens ? Way::few : Way::packets;
    return launch_kernel(choose(params.value_type, way), params, launch, blocks_wanted(least_blocks, params.workspace.capacity, launch.tokens),
                         way == Way::rows);
}

}  // namespace moelink::kernels::cuda
