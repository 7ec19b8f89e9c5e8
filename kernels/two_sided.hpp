// What lib and the kernels of the two-sided manager share: bounded FIFOs between ranks, and the tables of a prepared routing.
#pragma once

#include "launch.hpp"

namespace moelink::kernels {

// CUDA: a FIFO is a ring of tiles (packets.cuh), written by one warp and taken by one.
inline constexpr int max_fifo_channels = 1024;  // to and from all ranks, in all slots; as many as an H100 has warps for
inline constexpr int max_fifo_depth = 16;       // tiles, where the caller gives the room
inline constexpr int usual_fifo_depth = 8;
inline constexpr uint64_t fifo_tile = packet_tile_beside + packet_tile_data;

// What a rank says in a call, to each other rank. Words are tagged with the call's epoch, as SourceLine's are. A rank gets at most one
// call ahead of another, so two of each are enough.
struct alignas(128) FifoLine {
    uint64_t shape[2];   // hash of what ranks must agree on in the call
    uint64_t rows[2];    // rows that the routing sends there
    uint64_t tokens[2];  // of the rank's own
    uint64_t reserved[10];
};
static_assert(sizeof(FifoLine) == 128);

// Host: one position in a FIFO of bytes, alone on its line, and the word that a rank sleeps on.
struct alignas(128) FifoPosition {
    uint64_t bytes;  // since the start
    uint64_t reserved[15];
};
struct alignas(128) FifoBell {
    uint32_t rings;
    uint32_t reserved[31];
};

// Offsets in a slot's part of the memory that peers see. Others are the group's ranks but this one, in order: see other_index.
struct FifoLayout {
    int32_t channels;    // of each pair of ranks: CUDA
    int32_t depth;       // tiles of a channel, a power of two: CUDA
    uint64_t fifo_bytes; // of a pair of ranks: host
    uint64_t lines;      // FifoLine [ranks]: CUDA
    uint64_t credits;    // uint32 [others, channels]: tiles of ours that the other has taken: CUDA
    uint64_t tiles;      // bytes [others, channels, depth * fifo_tile]: what stands beside tiles, then their vectors: CUDA
    uint64_t bell;       // FifoBell: host
    uint64_t written;    // FifoPosition [others]: what each other has written into its FIFO here: host
    uint64_t taken;      // FifoPosition [others]: what each other has taken of our FIFO there: host
    uint64_t fifos;      // bytes [others, fifo_bytes]: host
    uint64_t bytes;      // of one slot
};

// The place of `other` among the ranks that are not `rank`.
MOELINK_BOTH inline int32_t other_index(int32_t rank, int32_t other) { return other < rank ? other : other - 1; }
MOELINK_BOTH inline int32_t other_rank(int32_t rank, int32_t index) { return index < rank ? index : index + 1; }

// Of one slot, on this rank's device.
struct alignas(128) FifoState {
    uint64_t turns;     // CUDA: the epoch of the last call in the upper half; the lower one is 0 but while a kernel runs
    uint32_t calls;     // host: the epoch of the last call that is over
    uint32_t prepared;  // 1: between prepare and the end of the round
    int32_t tokens;     // of the prepared routing
    uint32_t reserved[27];
};

// A prepared routing; memory of this rank alone.
struct FifoTables {
    FifoState *state;
    uint32_t *sent;           // [others, channels] tiles: CUDA
    uint32_t *taken;          // [others, channels] tiles: CUDA
    int32_t *send_counts;     // [ranks]
    int32_t *send_offsets;    // [ranks + 1]
    int32_t *recv_counts;     // [ranks]
    int32_t *recv_offsets;    // [ranks + 1]
    int32_t *source_tokens;   // [ranks]: tokens of each rank
    int32_t *send_tokens;     // [capacity * max_distinct]: token of each row that is sent, by destination, then in order
    int32_t *distinct;        // [capacity]: ranks of each token
    int32_t *distinct_ranks;  // [capacity, max_distinct]: which, in order; -1: no more
    int32_t *back_rows;       // [capacity, max_distinct]: places in send_tokens; -1: no more
    float *weight_sums;       // [capacity, max_distinct]
    int32_t *ids;             // [ranks * capacity, top_k] of received rows
    float *weights;           // [ranks * capacity, top_k]
    int32_t *origins;         // [ranks, capacity]: token of each received row at its source, also where rows are packed
    Filled *filled;           // [ranks]: of ids
    int64_t *statistics;      // [ranks, statistics]
};

struct FifoWorkspace {
    Workspace workspace;  // peers, capacity, owners, faults; its layout is not used
    FifoLayout fifo;
    FifoTables tables;
    uint32_t packed;      // rows of source s begin at recv_offsets[s], else at s * capacity
    uint32_t reserved;
};

// Rows that travel.
struct FifoTensor {
    const unsigned char *source;
    uint64_t source_stride;
    uint64_t row_bytes;
    unsigned char *output;
    uint64_t output_stride;
    int32_t source_width;  // widest access [bytes] that address and stride allow
    int32_t output_width;
    uint32_t tiles;        // of a row; 0 of the scales of a quantized tensor, which travel with it
    uint32_t reserved;
};

struct FifoCall {
    FifoWorkspace fifos;
    uint32_t shape;
    uint32_t repeats;      // begins a round with the routing of the last one
    uint32_t prepares;     // the call begins with the routing; what follows is of use only then
    int32_t tokens;
    int32_t ids_bytes;     // 4 or 8
    const int32_t *tokens_device;
    const void *ids;
    const float *weights;
    int32_t invalid_id;
    uint32_t whole_ids;    // a token's ids are whole 16-byte vectors
    const int64_t *statistics;
    int32_t statistics_count;
    int32_t tensor_count;  // of any call, those that are sent
    QuantizeForm quantize; // of tensors 0 and 1
    uint32_t row_tiles;    // of a row with all tensors
    FifoTensor tensors[max_payloads];
};

struct FifoCombine {
    FifoWorkspace fifos;
    const unsigned char *input;
    uint64_t input_stride;
    unsigned char *output;
    uint64_t output_stride;
    uint64_t row_bytes;
    int32_t value_type;
    int32_t weighted;
    int32_t input_width;   // widest access that address and stride allow
    int32_t output_width;
    uint32_t shape;
    uint32_t ends;         // the round
};

namespace host {
Fault alltoallv(const FifoCall &call, const Watch &watch);
Fault alltoallv_combine(const FifoCombine &call, const Watch &watch);
}  // namespace host

namespace cuda {
// With call.prepares two kernels, else one.
Result alltoallv(const FifoCall &call, const Launch &launch);
Result alltoallv_combine(const FifoCombine &call, const Launch &launch);
}  // namespace cuda

}  // namespace moelink::kernels
