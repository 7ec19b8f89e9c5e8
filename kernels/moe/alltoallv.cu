// Rows through FIFOs: one kernel for all tensors of a call, and for the routing of rows and the statistics where the call prepares. Half of
// a block's warps send and half receive, each one FIFO after another; then all of them move the rows that stay here.
#include "common/load.cuh"
#include "common/start.cuh"
#include "moe/fifo.cuh"
#include "quant/block.cuh"

namespace moelink::kernels::cuda {

// fifo_routing.cu, alltoallv_combine.cu
Result load_fifo_routing();
Result fifo_routing(const FifoCall &call, const Launch &launch);
Result load_alltoallv_combine();

namespace {

constexpr int least_blocks = 16;     // rows to receive may be many where own tokens are few
constexpr int tile_words = static_cast<int>(packet_tile_data / sizeof(uint32_t));

struct Shared {
    int32_t counts[max_cuda_ranks];  // rows received from each rank; every receiving warp writes the same
    int64_t first[max_cuda_ranks];   // the row that each rank's first is here
};

// --- what travels from one rank to another, as tiles in order: routing, statistics, then row by row all tensors -----------------

constexpr int routing_part = -2, statistics_part = -1;

__device__ __forceinline__ uint32_t routing_words(const Workspace &ws) { return 1 + 2 * static_cast<uint32_t>(ws.top_k); }

struct Stream {
    int32_t rows;
    uint32_t words;       // of routing
    int64_t routing;      // tiles
    int64_t statistics;
    int64_t total;

    __device__ Stream(const FifoCall &call, int32_t rows_) : rows(rows_) {
        words = call.prepares != 0 ? static_cast<uint32_t>(rows) * routing_words(call.fifos.workspace) : 0;
        routing = (words + tile_words - 1) / tile_words;
        statistics = call.prepares != 0 ? static_cast<int64_t>(packet_tiles(static_cast<uint64_t>(call.statistics_count) * sizeof(int64_t))) : 0;
        total = routing + statistics + int64_t{rows} * call.row_tiles;
    }
};

// A place in a stream.
struct Cursor {
    int64_t index;
    int32_t row;
    int part;  // a tensor, or routing_part, statistics_part
    int tile;

    __device__ Cursor(const FifoCall &call, const Stream &stream, int64_t at) : index(at), row(0) {
        if (at < stream.routing) {
            part = routing_part;
            tile = static_cast<int>(at);
        } else if (at < stream.routing + stream.statistics) {
            part = statistics_part;
            tile = static_cast<int>(at - stream.routing);
        } else {
            const int64_t rest = at - stream.routing - stream.statistics;
            part = 0;
            tile = 0;
            if (call.row_tiles == 0) return;
            row = static_cast<int32_t>(rest / call.row_tiles);
            tile = static_cast<int>(rest - int64_t{row} * call.row_tiles);
            while (tile >= static_cast<int>(call.tensors[part].tiles)) tile -= static_cast<int>(call.tensors[part++].tiles);
        }
    }

    // Not beyond the end of the stream.
    __device__ __forceinline__ void next(const FifoCall &call, const Stream &stream) {
        ++index;
        ++tile;
        if (part >= 0) {
            if (tile < static_cast<int>(call.tensors[part].tiles)) return;
            tile = 0;
            do {
                if (++part == call.tensor_count) {
                    part = 0;
                    ++row;
                }
            } while (call.tensors[part].tiles == 0);
        } else if (index == stream.routing && stream.statistics > 0) {
            part = statistics_part;
            tile = 0;
        } else if (index == stream.routing + stream.statistics) {
            part = 0;
            tile = 0;
        }
    }

    // Vectors of a lane.
    __device__ __forceinline__ int valid(const FifoCall &call, const Stream &stream, int lane) const {
        if (part == routing_part) return valid_vectors(static_cast<int>((stream.words + 3) / 4), tile, lane);
        if (part == statistics_part) return valid_vectors(row_vectors(static_cast<uint64_t>(call.statistics_count) * sizeof(int64_t)), tile, lane);
        return valid_vectors(row_vectors(call.tensors[part].row_bytes), tile, lane);
    }
};

// --- routing ------------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ int64_t read_id(const FifoCall &call, int64_t index) {
    return call.ids_bytes == 8 ? static_cast<const int64_t *>(call.ids)[index] : static_cast<const int32_t *>(call.ids)[index];
}

// Word `word` of what a rank is told of its rows: of each its token here, then ids, of which other ranks' experts are not named, and weights.
__device__ __forceinline__ uint32_t routing_word(const FifoCall &call, int32_t to, uint32_t word) {
    const Workspace &ws = call.fifos.workspace;
    const uint32_t each = routing_words(ws), row = word / each;
    const int field = static_cast<int>(word - row * each);
    const int32_t token = call.fifos.tables.send_tokens[call.fifos.tables.send_offsets[to] + static_cast<int32_t>(row)];
    if (field == 0) return static_cast<uint32_t>(token);
    const int k = field <= ws.top_k ? field - 1 : field - 1 - ws.top_k;
    const int64_t index = int64_t{token} * ws.top_k + k;
    if (field > ws.top_k) return call.weights != nullptr ? __float_as_uint(call.weights[index]) : 0u;
    const int64_t id = read_id(call, index);
    return static_cast<uint32_t>(ws.owners.rank_of(id) == to ? static_cast<int32_t>(id) : call.invalid_id);
}

// Four words, of which those from `words` on are 0.
__device__ __noinline__ uint4 make_routing(const FifoCall &call, int32_t to, uint32_t first, uint32_t words) {
    uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) word[w] = first + w < words ? routing_word(call, to, first + w) : 0u;
    return {word[0], word[1], word[2], word[3]};
}

__device__ __forceinline__ void store_routing_word(const FifoCall &call, int32_t source, int64_t first_row, uint32_t word, uint32_t value) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    const uint32_t each = routing_words(ws), row = word / each;
    const int field = static_cast<int>(word - row * each);
    const int64_t at = (first_row + row) * ws.top_k;
    if (field == 0) {
        tables.origins[int64_t{source} * ws.capacity + row] = static_cast<int32_t>(value);
    } else if (field <= ws.top_k) {
        tables.ids[at + field - 1] = static_cast<int32_t>(value);
    } else {
        tables.weights[at + field - 1 - ws.top_k] = __uint_as_float(value);
    }
}

__device__ __noinline__ void store_routing(const FifoCall &call, int32_t source, int64_t first_row, uint32_t first, uint32_t words, uint4 vector) {
    const uint32_t values[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
        if (first + w < words) store_routing_word(call, source, first_row, first + w, values[w]);
    }
}

// --- tiles --------------------------------------------------------------------------------------------------------------------

// What a lane has of a tile: as it was read, then as it travels.
template <bool quantized>
struct Cargo {
    Piece piece;
    int valid;
    BlockPart half[quantized ? piece_vectors : 1];
    float scale[quantized ? piece_vectors : 1];

    __device__ __forceinline__ void load(const FifoCall &call, const Stream &stream, const Cursor &at, int32_t to, int lane) {
        valid = at.valid(call, stream, lane);
        if (at.part >= 0) {
            const FifoTables &tables = call.fifos.tables;
            const FifoTensor &tensor = call.tensors[at.part];
            const int32_t token = tables.send_tokens[tables.send_offsets[to] + at.row];
            const unsigned char *row = tensor.source + static_cast<uint64_t>(token) * tensor.source_stride;
            if constexpr (quantized) {
                if (at.part == 0) {
#pragma unroll
                    for (int i = 0; i < piece_vectors; ++i) {
                        if (i < valid) half[i].load(row, vector_at(at.tile, lane, i));
                    }
                    return;
                }
            }
            piece = load_row_piece(row, tensor.row_bytes, tensor.source_width, at.tile, lane, valid);
        } else if (at.part == routing_part) {
#pragma unroll
            for (int i = 0; i < piece_vectors; ++i) {
                if (i < valid) piece.vector[i] = make_routing(call, to, static_cast<uint32_t>(vector_at(at.tile, lane, i)) * 4, stream.words);
            }
        } else {
            piece = load_row_piece(reinterpret_cast<const unsigned char *>(call.statistics), static_cast<uint64_t>(call.statistics_count) * 8, 8,
                                   at.tile, lane, valid);
        }
    }

    __device__ __forceinline__ void quantize(const FifoCall &call, const Cursor &at) {
        if constexpr (quantized) {
            if (at.part != 0) return;
#pragma unroll
            for (int i = 0; i < piece_vectors; ++i) {
                if (i < valid) piece.vector[i] = half[i].quantize(call.quantize == quantize_e8m0, &scale[i]);
            }
        }
    }

    // Scales travel beside the tile of what they scale: one word for the three blocks that eight lanes hold.
    __device__ __forceinline__ bool has_scales(const Cursor &at, int lane) const { return quantized && at.part == 0 && holds_scale(lane) && valid > 0; }

    __device__ __forceinline__ void send_scales(const Cursor &at, const TileAt &to, int lane, uint32_t tag) const {
        if constexpr (quantized) {
            if (!has_scales(at, lane)) return;
            store_packet(scales_at(to, lane),
                         {{__float_as_uint(scale[0]), valid > 1 ? __float_as_uint(scale[1]) : 0u, valid > 2 ? __float_as_uint(scale[2]) : 0u}, tag});
        }
    }

    __device__ __forceinline__ bool await_scales(const Workspace &ws, int32_t from, const Cursor &at, const TileAt &tile, int lane, uint32_t tag) {
        if constexpr (quantized) {
            if (!has_scales(at, lane)) return true;
            Packet word;
            if (!await(ws, from, phase_dispatch, [&] {
                    word = load_packet(scales_at(tile, lane));
                    return left_out<Site::packet_routing> || word.tag == tag;
                })) {
                return false;
            }
            for (int i = 0; i < piece_vectors; ++i) scale[i] = __uint_as_float(word.data[i]);
        }
        return true;
    }

    __device__ __forceinline__ void store(const FifoCall &call, const Stream &stream, const Cursor &at, int32_t source, int64_t first_row, int lane) const {
        if (at.part == routing_part) {
#pragma unroll
            for (int i = 0; i < piece_vectors; ++i) {
                if (i < valid) {
                    store_routing(call, source, first_row, static_cast<uint32_t>(vector_at(at.tile, lane, i)) * 4, stream.words, piece.vector[i]);
                }
            }
            return;
        }
        if (at.part == statistics_part) {
            unsigned char *row = reinterpret_cast<unsigned char *>(call.fifos.tables.statistics + int64_t{source} * call.statistics_count);
            store_row_piece(row, static_cast<uint64_t>(call.statistics_count) * 8, 8, at.tile, lane, valid, piece);
            return;
        }
        const FifoTensor &tensor = call.tensors[at.part];
        const uint64_t row = static_cast<uint64_t>(first_row + at.row);
        store_row_piece(tensor.output + row * tensor.output_stride, tensor.row_bytes, tensor.output_width, at.tile, lane, valid, piece);
        if constexpr (quantized) {
            if (!has_scales(at, lane)) return;
            const FifoTensor &scales = call.tensors[1];
#pragma unroll
            for (int i = 0; i < piece_vectors; ++i) {
                if (i < valid) store_scale(scales.output + row * scales.output_stride, call.quantize, vector_at(at.tile, lane, i), scale[i]);
            }
        }
    }

private:
    static __device__ __forceinline__ unsigned char *scales_at(const TileAt &tile, int lane) { return tile.bits + (1 + lane / block_vectors) * packet_word; }
};

// --- sending and receiving ------------------------------------------------------------------------------------------------------

template <bool quantized>
__device__ void send_channel(const FifoCall &call, int32_t to, int32_t channel) {
    const Stream stream(call, call.fifos.tables.send_counts[to]);
    const ChannelShare share(stream.total, channel, call.fifos.fifo.channels);
    if (share.begin == share.end) return;
    const int lane = threadIdx.x % 32;
    FifoSender fifo(call.fifos, to, channel, phase_dispatch);
    Cursor at(call, stream, share.begin);
    Cargo<quantized> cargo;
    cargo.load(call, stream, at, to, lane);
    for (;;) {
        const Cursor now = at;
        const bool more = at.index + 1 < share.end;
        Cargo<quantized> coming;
        if (more) {
            at.next(call, stream);
            coming.load(call, stream, at, to, lane);
        }
        cargo.quantize(call, now);
        if (!fifo.await_room()) return;
        stagger();
        send_piece(fifo.at(), lane, cargo.valid, cargo.piece, fifo.tag());
        cargo.send_scales(now, fifo.at(), lane, fifo.tag());
        fifo.advance();
        if (!more) break;
        cargo = coming;
    }
    fifo.close();
}

template <bool quantized>
__device__ void receive_channel(const FifoCall &call, int32_t from, int32_t channel, const Shared &shared) {
    const FifoWorkspace &fifos = call.fifos;
    const Stream stream(call, shared.counts[from]);
    const ChannelShare share(stream.total, channel, fifos.fifo.channels);
    if (share.begin == share.end) return;
    const int lane = threadIdx.x % 32;
    const bool many = stream.total > 2 * fifos.fifo.channels;
    uint32_t *taken_at = fifos.tables.taken + fifo_index(fifos.fifo, other_index(fifos.workspace.rank, from), channel);
    uint32_t taken = *taken_at;
    __syncwarp();
    for (Cursor at(call, stream, share.begin);;) {
        Cargo<quantized> cargo;
        cargo.valid = at.valid(call, stream, lane);
        const TileAt tile = tile_from(fifos, from, channel, taken);
        Look look;
        stagger();
        look.load(tile, lane, cargo.valid);
        bool came = await_piece(fifos.workspace, from, phase_dispatch, tile, lane, cargo.valid, taken + 1, many, look, &cargo.piece);
        came = came && cargo.await_scales(fifos.workspace, from, at, tile, lane, taken + 1);
        if (!__all_sync(whole_warp, came)) return;
        cargo.store(call, stream, at, from, shared.first[from], lane);
        give_back(fifos, from, channel, ++taken);
        if (at.index + 1 == share.end) break;
        at.next(call, stream);
    }
    if (lane == 0) *taken_at = taken;
}

// Rows that this rank's own experts work on.
template <bool quantized>
__device__ void keep_own(const FifoCall &call, int64_t first_row) {
    const int32_t rank = call.fifos.workspace.rank;
    const int lane = threadIdx.x % 32, warps = gridDim.x * (block_threads / 32);
    const Stream stream(call, call.fifos.tables.send_counts[rank]);
    const ChannelShare share(stream.total, static_cast<int>(threadIdx.x / 32) * gridDim.x + blockIdx.x, warps);
    if (share.begin == share.end) return;
    for (Cursor at(call, stream, share.begin);;) {
        Cargo<quantized> cargo;
        cargo.load(call, stream, at, rank, lane);
        cargo.quantize(call, at);
        cargo.store(call, stream, at, rank, first_row, lane);
        if (at.index + 1 == share.end) break;
        at.next(call, stream);
    }
}

// --- counts ---------------------------------------------------------------------------------------------------------------------

// Rows from each rank and where they begin here, by one warp; false on a fault.
__device__ bool learn_counts(const FifoCall &call, uint32_t epoch, Shared &shared) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    bool came = true;
    for (int32_t source = threadIdx.x % 32; source < ws.ranks; source += 32) {
        int32_t count;
        if (call.prepares == 0) {
            count = tables.recv_counts[source];
        } else if (source == ws.rank) {
            count = tables.send_counts[source];
        } else {
            const uint64_t *word = &line_of(call.fifos, ws.mine, source)->rows[epoch & 1];
            uint64_t value = 0;
            came = came && await(ws, source, phase_dispatch, [&] {
                value = load_relaxed(word);
                return static_cast<uint32_t>(value >> 32) == epoch;
            });
            count = static_cast<int32_t>(value);
        }
        shared.counts[source] = count;
        if (call.fifos.packed == 0) shared.first[source] = int64_t{source} * ws.capacity;
    }
    __syncwarp();
    if (call.fifos.packed != 0) {
        for (int32_t source = threadIdx.x % 32; source < ws.ranks; source += 32) {
            int64_t first = 0;
            for (int32_t earlier = 0; earlier < source; ++earlier) first += shared.counts[earlier];
            shared.first[source] = first;
        }
        __syncwarp();
    }
    return __all_sync(whole_warp, came);
}

// For later calls, and the caller: by one warp of the kernel.
__device__ void keep_counts(const FifoCall &call, uint32_t epoch, const Shared &shared) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    for (int32_t source = threadIdx.x % 32; source < ws.ranks; source += 32) {
        int32_t before = 0;
        for (int32_t earlier = 0; earlier < source; ++earlier) before += shared.counts[earlier];
        tables.recv_counts[source] = shared.counts[source];
        tables.recv_offsets[source] = before;
        if (source == ws.ranks - 1) tables.recv_offsets[ws.ranks] = before + shared.counts[source];
        uint64_t tokens = static_cast<uint64_t>(tables.state->tokens);
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
// after another.
__device__ void fill_ids(const FifoCall &call, int32_t part, const Shared &shared) {
    const Workspace &ws = call.fifos.workspace;
    const FifoTables &tables = call.fifos.tables;
    const int64_t begin = int64_t{part} * ws.capacity, all = shared.first[ws.ranks - 1] + shared.counts[ws.ranks - 1];
    const int64_t rows = call.fifos.packed != 0 ? max(int64_t{0}, min(int64_t{ws.capacity}, all - begin)) : shared.counts[part];
    const Filled filled = tables.filled[part];
    const int64_t end = filled.id == call.invalid_id ? filled.rows : ws.capacity;
    int32_t *ids = tables.ids + begin * ws.top_k;
    for (int64_t i = rows * ws.top_k + threadIdx.x; i < end * ws.top_k; i += block_threads) ids[i] = call.invalid_id;
    __syncthreads();
    if (threadIdx.x == 0) tables.filled[part] = {static_cast<int32_t>(rows), call.invalid_id};
}

template <bool quantized>
__global__ void __launch_bounds__(block_threads, 1) alltoallv_kernel(const __grid_constant__ FifoCall call) {
    __shared__ Shared shared;
    const FifoWorkspace &fifos = call.fifos;
    const Workspace &ws = fifos.workspace;
    if (!enter(ws)) return;
    if (__syncthreads_or(found_fault(ws))) return;
    const uint32_t epoch = next_epoch(fifos.tables.state->calls);
    if (blockIdx.x == 0) {
        tell_shape(fifos, epoch, call.shape);
        if (threadIdx.x == 0 && call.prepares == 0 && fifos.tables.state->prepared == 0) report(ws, fault_pairing, ws.rank, phase_dispatch);
    }
    const int others = ws.ranks - 1, warp = threadIdx.x / 32, workers = role_warps * gridDim.x;
    const int tasks = fifos.fifo.channels * others;
    // Every worker goes through its FIFOs by channel, then by rank: see the argument in docs/two_sided.md.
    if (warp < role_warps) {
        for (int task = warp * gridDim.x + blockIdx.x; task < tasks; task += workers) {
            send_channel<quantized>(call, other_rank(ws.rank, task % others), task / others);
        }
    } else {
        const int worker = (warp - role_warps) * gridDim.x + blockIdx.x;
        const bool learned = learn_counts(call, epoch, shared);
        if (worker == 0) {
            check_shapes(fifos, epoch, call.shape, phase_dispatch);
            __syncwarp();
            if (learned && call.prepares != 0) keep_counts(call, epoch, shared);
        }
        for (int task = worker; learned && task < tasks; task += workers) {
            receive_channel<quantized>(call, other_rank(ws.rank, task % others), task / others, shared);
        }
    }
    __syncthreads();
    keep_own<quantized>(call, shared.first[ws.rank]);
    if (call.prepares != 0) {
        for (int32_t part = blockIdx.x; part < ws.ranks; part += gridDim.x) fill_ids(call, part, shared);
    }
    finish_call(fifos, epoch, 1);
}

}  // namespace

Result load_fifos() {
    for (Result (*load)() : {&load_fifo_routing, &load_alltoallv_combine}) {
        if (Result result = load(); result != cudaSuccess) return result;
    }
    return load_each({address_of(&alltoallv_kernel<false>), address_of(&alltoallv_kernel<true>)});
}

Result alltoallv(const FifoCall &call, const Launch &launch) {
    if (call.prepares != 0) {
        if (Result result = fifo_routing(call, launch); result != cudaSuccess) return result;
    }
    return launch_kernel(call.quantize != quantize_none ? &alltoallv_kernel<true> : &alltoallv_kernel<false>, call, launch,
                         std::max(least_blocks, 4 * launch.tokens));
}

}  // namespace moelink::kernels::cuda
