// FIFOs between GPUs: rings of tiles in the receiver's memory (packets.cuh), and credits in the sender's. One warp writes a FIFO and one
// takes from it. docs/two_sided.md says why nobody waits in vain. Loops over ranks and tasks are not unrolled: instructions are fetched
// anew at every launch.
#pragma once

#include "common/packets.cuh"
#include "common/rows.cuh"
#include "two_sided.hpp"

namespace moelink::kernels::cuda {

inline constexpr unsigned whole_warp = 0xffffffffu;
inline constexpr int role_warps = block_threads / 32 / 2;  // of a block that send; as many receive

__device__ __forceinline__ unsigned char *peer_of(const Workspace &ws, int32_t rank) { return ws.ranks <= near_ranks ? ws.near[rank] : ws.peers[rank]; }

// Which of `total` items, in order, a channel carries.
struct ChannelShare {
    int64_t begin, end;

    __device__ ChannelShare(int64_t total, int32_t channel, int32_t channels) {
        if (total < channels) {  // the usual case of few rows, without a division
            begin = min(int64_t{channel}, total);
            end = min(int64_t{channel} + 1, total);
            return;
        }
        const int64_t each = total / channels, more = total - each * channels;
        begin = each * channel + min(int64_t{channel}, more);
        end = begin + each + (channel < more ? 1 : 0);
    }
};

// As await, but a quarter more patient: a sender that lacks credits may be waiting for a rank that waits for the one to blame.
template <class Ready>
__device__ inline bool await_credit(const Workspace &ws, int32_t peer, Phase phase, Ready &&ready) {
    uint64_t start = 0;
    for (uint32_t polls = 1;; ++polls) {
        if (ready()) return true;
        if (polls % 64 != 0) continue;
        if (read_volatile(&ws.anchor->faulted) != 0u) return false;
        const uint64_t now = now_ns();
        if (start == 0) start = now;
        if (now - start > ws.timeout_ns + ws.timeout_ns / 4) {
            report(ws, fault_timeout, peer, phase);
            return false;
        }
    }
}

// Both ends of a FIFO count tiles from the last reset, modulo 2^32; tile n lies at n % depth and is tagged n + 1.
__device__ __forceinline__ TileAt fifo_tile_at(unsigned char *fifo, uint32_t depth, uint32_t position) {
    return TileAt(fifo, 0, depth * static_cast<uint32_t>(packet_tile_beside), static_cast<int>(position & (depth - 1)));
}

__device__ __forceinline__ uint64_t fifo_index(const FifoLayout &fifo, int32_t other, int32_t channel) {
    return static_cast<uint64_t>(other) * static_cast<uint64_t>(fifo.channels) + static_cast<uint64_t>(channel);
}

__device__ __forceinline__ unsigned char *fifo_at(const FifoLayout &fifo, unsigned char *slot, int32_t other, int32_t channel) {
    return slot + fifo.tiles + fifo_index(fifo, other, channel) * static_cast<uint64_t>(fifo.depth) * fifo_tile;
}

// All calls by all lanes of the warp.
class FifoSender {
public:
    __device__ FifoSender(const FifoWorkspace &fifos, int32_t to, int32_t channel, Phase phase)
        : ws_(fifos.workspace), to_(to), phase_(phase), depth_(static_cast<uint32_t>(fifos.fifo.depth)) {
        const uint64_t mine = fifo_index(fifos.fifo, other_index(ws_.rank, to), channel);
        fifo_ = fifo_at(fifos.fifo, peer_of(ws_, to), other_index(to, ws_.rank), channel);
        sent_at_ = fifos.tables.sent + mine;
        credit_ = part<uint32_t>(ws_.mine, fifos.fifo.credits) + mine;
        sent_ = *sent_at_;
    }

    // Waits for room for a tile; false on a fault.
    __device__ __forceinline__ bool await_room() {
        if (room_ > 0) return true;
        uint32_t taken = 0;
        bool came = true;
        if (threadIdx.x % 32 == 0) {
            came = await_credit(ws_, to_, phase_, [&] {
                taken = load_relaxed(credit_);
                return sent_ - taken < depth_;
            });
            stagger();
            acquire<Site::fifo_credit>(credit_);
        }
        __syncwarp();
        room_ = depth_ - (sent_ - __shfl_sync(whole_warp, taken, 0));
        return __shfl_sync(whole_warp, came, 0);
    }

    __device__ __forceinline__ TileAt at() const { return fifo_tile_at(fifo_, depth_, sent_); }
    __device__ __forceinline__ uint32_t tag() const { return sent_ + 1; }
    __device__ __forceinline__ void advance() {
        ++sent_;
        --room_;
    }
    // For the next call.
    __device__ __forceinline__ void close() const {
        if (threadIdx.x % 32 == 0) *sent_at_ = sent_;
    }

private:
    const Workspace &ws_;
    int32_t to_;
    Phase phase_;
    uint32_t depth_;
    unsigned char *fifo_;
    uint32_t *sent_at_;
    const uint32_t *credit_;
    uint32_t sent_;
    uint32_t room_ = 0;  // tiles, as far as this warp knows
};

// How many tiles from one rank have been taken is kept by whoever takes them.
__device__ __forceinline__ uint32_t *taken_from(const FifoWorkspace &fifos, int32_t from, int32_t channel) {
    return fifos.tables.taken + fifo_index(fifos.fifo, other_index(fifos.workspace.rank, from), channel);
}

__device__ __forceinline__ TileAt tile_from(const FifoWorkspace &fifos, int32_t from, int32_t channel, uint32_t taken) {
    unsigned char *fifo = fifo_at(fifos.fifo, fifos.workspace.mine, other_index(fifos.workspace.rank, from), channel);
    return fifo_tile_at(fifo, static_cast<uint32_t>(fifos.fifo.depth), taken);
}

// After a tile was taken by the whole warp: `taken` counts it. The room is given back half a FIFO at a time, since that takes a fence.
__device__ __forceinline__ void give_back(const FifoWorkspace &fifos, int32_t from, int32_t channel, uint32_t taken) {
    const uint32_t some = max(1u, static_cast<uint32_t>(fifos.fifo.depth) / 2);
    if (taken % some != 0) return;
    const Workspace &ws = fifos.workspace;
    __syncwarp();
    if (threadIdx.x % 32 != 0) return;
    stagger();
    fence<Site::fifo_taken>();
    stagger();
    store_relaxed(part<uint32_t>(peer_of(ws, from), fifos.fifo.credits) + fifo_index(fifos.fifo, other_index(from, ws.rank), channel), taken);
}

// --- the order of calls ---------------------------------------------------------------------------------------------------------

// The epoch of the call that is under way: by threads of a block that has not moved on.
__device__ __forceinline__ uint32_t epoch_of(const FifoState *state) { return next_epoch(static_cast<uint32_t>(load_relaxed(&state->turns) >> 32)); }

// --- what ranks tell each other of a call -------------------------------------------------------------------------------------

__device__ __forceinline__ FifoLine *line_of(const FifoWorkspace &fifos, unsigned char *slot, int32_t source) {
    return part<FifoLine>(slot, fifos.fifo.lines) + source;
}

// The shape of this call, to every other rank: by all threads of one block.
__device__ __forceinline__ void tell_shape(const FifoWorkspace &fifos, uint32_t epoch, uint32_t shape) {
    const Workspace &ws = fifos.workspace;
    const int32_t rank = threadIdx.x;
    if (rank >= ws.ranks || rank == ws.rank) return;
    stagger();
    store_relaxed(&line_of(fifos, peer_of(ws, rank), ws.rank)->shape[epoch & 1], tagged(epoch, shape));
}

// A kernel's entry, by all threads: its epoch; false: do nothing. Every block adds 1 to the count of turns and the first one what is
// missing to a whole turn, so a block that has not added finds the last call's epoch, whoever else has, and nobody waits for the last.
__device__ __forceinline__ bool begin_call(const FifoWorkspace &fifos, uint32_t shape, uint32_t *epoch) {
    const Workspace &ws = fifos.workspace;
    if (!enter(ws)) return false;
    FifoState *state = fifos.tables.state;
    *epoch = epoch_of(state);
    if (__syncthreads_or(found_fault(ws))) return false;
    if (threadIdx.x == 0) {
        const uint64_t step = uint64_t{*epoch} - (load_relaxed(&state->turns) >> 32);  // 1 but where the epoch begins anew
        const uint64_t turns = blockIdx.x == 0 ? (step << 32) - (gridDim.x - 1) : 1;
        asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(&state->turns), "l"(turns) : "memory");
    }
    if (blockIdx.x == 0) tell_shape(fifos, *epoch, shape);
    return true;
}

// Waits until every rank has come to this call, with the same shape: by one warp. So no rank gets two calls ahead of another.
__device__ inline void check_shapes(const FifoWorkspace &fifos, uint32_t epoch, uint32_t shape, Phase phase) {
    const Workspace &ws = fifos.workspace;
#pragma unroll 1
    for (int32_t source = threadIdx.x % 32; source < ws.ranks; source += 32) {
        if (source == ws.rank) continue;
        const uint64_t *word = &line_of(fifos, ws.mine, source)->shape[epoch & 1];
        uint64_t value = 0;
        if (!await(ws, source, phase, [&] {
                value = load_relaxed(word);
                return static_cast<uint32_t>(value >> 32) == epoch;
            })) {
            return;
        }
        if (static_cast<uint32_t>(value) != shape) report(ws, fault_mismatch, source, phase);
    }
}

// --- vectors of rows of any size ----------------------------------------------------------------------------------------------

__device__ __forceinline__ int row_vectors(uint64_t row_bytes) { return static_cast<int>((row_bytes + 15) / 16); }

// Up to 16 bytes from where only accesses of `width` bytes are allowed.
__device__ __noinline__ inline uint4 load_some(const unsigned char *at, int bytes, int width) {
    uint32_t words[4] = {};
    if (bytes == 16 && width >= 4) {
        for (int word = 0; word < 4; ++word) words[word] = reinterpret_cast<const uint32_t *>(at)[word];
    } else {
        for (int byte = 0; byte < bytes; ++byte) words[byte / 4] |= uint32_t{at[byte]} << (byte % 4 * 8);
    }
    return {words[0], words[1], words[2], words[3]};
}

__device__ __noinline__ inline void store_some(unsigned char *at, uint4 vector, int bytes, int width) {
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    if (bytes == 16 && width >= 4) {
        for (int word = 0; word < 4; ++word) reinterpret_cast<uint32_t *>(at)[word] = words[word];
    } else {
        for (int byte = 0; byte < bytes; ++byte) at[byte] = static_cast<unsigned char>(words[byte / 4] >> (byte % 4 * 8));
    }
}

// A lane's vectors of a tile of a row of row_bytes.
__device__ __forceinline__ Piece load_row_piece(const unsigned char *row, uint64_t row_bytes, int width, int tile, int lane, int valid) {
    Piece piece{};
#pragma unroll
    for (int i = 0; i < piece_vectors; ++i) {
        if (i >= valid) continue;
        const uint64_t at = static_cast<uint64_t>(vector_at(tile, lane, i)) * 16;
        const int bytes = static_cast<int>(min(uint64_t{16}, row_bytes - at));
        piece.vector[i] = width == 16 && bytes == 16 ? *reinterpret_cast<const uint4 *>(row + at) : load_some(row + at, bytes, width);
    }
    return piece;
}

__device__ __forceinline__ void store_row_piece(unsigned char *row, uint64_t row_bytes, int width, int tile, int lane, int valid, const Piece &piece) {
#pragma unroll
    for (int i = 0; i < piece_vectors; ++i) {
        if (i >= valid) continue;
        const uint64_t at = static_cast<uint64_t>(vector_at(tile, lane, i)) * 16;
        const int bytes = static_cast<int>(min(uint64_t{16}, row_bytes - at));
        if (width == 16 && bytes == 16) {
            *reinterpret_cast<uint4 *>(row + at) = piece.vector[i];
        } else {
            store_some(row + at, piece.vector[i], bytes, width);
        }
    }
}

}  // namespace moelink::kernels::cuda
