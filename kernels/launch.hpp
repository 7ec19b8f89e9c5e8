// Everything that lib knows of the kernels: plain structs and functions. The host kernels and the CUDA kernels take the same
// parameters; a build without CUDA links cuda_stubs.cc in place of the CUDA side.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

struct CUstream_st;

// Functions that host and kernels share.
#if defined(__CUDACC__)
#define MOELINK_BOTH __host__ __device__
#else
#define MOELINK_BOTH
#endif

namespace moelink::kernels {

inline constexpr int max_top_k = 32;
inline constexpr int max_host_ranks = 1024;
inline constexpr int max_payloads = 16;
inline constexpr int max_cuda_ranks = 128;
inline constexpr int near_ranks = 16;  // ranks whose addresses travel in the kernel's parameters

// Packets: rows travel as 16-byte words, each written and read as one access, so that no fence and no flag stand between a row and
// its use. A tile of a row is 96 vectors of 16 bytes, each a word, and a few words beside them.
// What a rank may send to another as packets. In dispatch they are copied once more where they arrive; in combine they are not, and it
// is bytes that count.
inline constexpr uint64_t max_dispatch_packet_rows = 128;
inline constexpr uint64_t max_combine_packet_bytes = uint64_t{28} << 20;
inline constexpr uint64_t packet_word = 16;
inline constexpr uint64_t packet_tile_data = 1536;
inline constexpr uint64_t packet_tile_beside = 5 * packet_word;  // the vectors' topmost bits; scales, where rows are quantized
inline constexpr uint64_t packet_routing_bytes = 512;  // one word an id, weight and half of the row's origin
MOELINK_BOTH inline constexpr uint64_t packet_tiles(uint64_t row_bytes) { return (row_bytes + packet_tile_data - 1) / packet_tile_data; }
// In the value of a count word: the round's rows come as packets; they may go back as packets.
inline constexpr uint32_t packets_bit = 1u << 31;
inline constexpr uint32_t packets_back_bit = 1u << 30;

// Control words that one rank (the source) writes into another's workspace: one line a source and slot.
// A word is epoch << 32 | value; epochs count rounds of one slot up from 1 and are compared for equality. The row counter
// counts up for ever: what a round brought is the difference to the count before it.
struct alignas(128) SourceLine {
    uint64_t dispatch_count;  // rows that this round brings; packets_bit: as packets
    uint64_t dispatch_shape;  // hash of what ranks must agree on in a round
    uint64_t dispatch_rows;   // rows that have arrived, all rounds
    uint64_t combine_count;
    uint64_t combine_shape;
    uint64_t combine_input;   // host: where the rows begin in the slot of their rank, when they stay there; 0: they are pushed
    uint64_t combine_stride;  // host: from one of those rows to the next
    uint64_t reserved[9];
};
static_assert(sizeof(SourceLine) == 128);

// A received row's way home: the token of its source, and which of the token's distinct ranks we are (-1: no expert here).
struct RowOrigin {
    int32_t token;
    int32_t distinct;
};

// Epochs count rounds of a slot, from 1: 0 is what cleared words hold.
MOELINK_BOTH inline uint32_t next_epoch(uint32_t epoch) { return epoch == UINT32_MAX ? 1 : epoch + 1; }

// Where one of a token's rows was sent: row `slot` of this rank's part of the rank's planes.
struct RowPlace {
    int32_t rank;
    int32_t slot;
};

// Where a token of our own lies among the rows that we receive from ourselves, and which of its distinct ranks we are (-1: none).
struct OwnRow {
    int32_t row;
    int32_t distinct;
};

// One slot's private state on a rank. A round's dispatch and combine have the same epoch. While one of the two kernels runs it
// reads only what the other one wrote, so its blocks need not wait for each other at the end: dispatch moves dispatch_epoch on,
// combine moves combine_epoch and dispatch_base on.
struct alignas(128) SlotState {
    uint32_t dispatch_epoch;
    uint32_t combine_epoch;
    int32_t tokens;  // of the last dispatch
    uint32_t reserved[29];
};
static_assert(sizeof(SlotState) == 128);

// The rows of topk_ids from `rows` on hold `id`, for one source.
struct Filled {
    int32_t rows;
    int32_t id;
};

// What kernels find wrong, and what outlives a workspace: see Anchor.
enum FaultCode : uint32_t { fault_none = 0, fault_timeout = 1, fault_mismatch = 2, fault_peer = 3, fault_pairing = 4, fault_overflow = 5 };
enum Phase : uint32_t { phase_dispatch = 1, phase_combine = 2 };

struct Fault {
    uint32_t code;
    int32_t peer;
    uint32_t phase;
    uint32_t stale;  // a graph of an older generation was replayed; does not harm the present workspace
    int64_t needed = 0;  // fault_overflow: rows that came, of local expert `peer` or (-1) of all
    int64_t room = 0;    // and that there is room for
};

// Lives from a manager's creation to its end, so that a kernel captured over an older workspace finds out before it touches
// memory that is gone.
struct Anchor {
    uint64_t generation;
    uint32_t faulted;
    uint32_t reserved;
};

// Offsets of one slot's parts from the slot's start; the same on every rank.
struct SlotLayout {
    uint64_t lines;        // SourceLine [ranks]
    uint64_t state;        // SlotState
    uint64_t dispatch_base;  // uint64 [ranks]: dispatch_rows before the round
    uint64_t recv_counts;  // int32 [ranks]
    uint64_t send_counts;  // int32 [ranks]: rows with an expert there, so rows that come back
    uint64_t received;     // uint32 [ranks]: rows of the round from each rank, and the two bits of packets
    uint64_t filled;       // Filled [ranks]
    uint64_t distinct;     // int32 [capacity]: distinct ranks of each token
    uint64_t distinct_ranks;  // int32 [capacity, max_distinct]: which they are, in rank order: CUDA
    uint64_t weight_sums;  // float [capacity, max_distinct]
    uint64_t own_ids;      // int32 [capacity, top_k]: of the last dispatch, for one that repeats its routing; -1: dropped
    uint64_t own_weights;  // float [capacity, top_k]
    uint64_t places;       // RowPlace [capacity, max_distinct]: host
    uint64_t ids;          // int32 [ranks, capacity, top_k]
    uint64_t weights;      // float [ranks, capacity, top_k]
    uint64_t origins;      // RowOrigin [ranks, capacity]
    uint64_t own_rows;     // OwnRow [capacity]: CUDA
    uint64_t arrived;      // uint32 [capacity, max_distinct]: epoch of the row in the combine plane: CUDA
    uint64_t dispatch_packets;  // bytes [ranks, dispatch_packet_rows, dispatch_packet_bytes]: routing, what stands beside tiles, vectors
    uint64_t combine_packets;   // bytes [combine_packet_rows, max_distinct, combine_packet_bytes]: what stands beside tiles, vectors
    uint64_t planes[max_payloads];  // bytes [ranks, capacity, plane_stride]
    uint64_t combine;      // bytes [capacity, max_distinct, combine_row_bytes]
    uint64_t bytes;        // of one slot
};

// Division by a number that is known early: exact for all 32-bit numerators.
struct Divisor {
    static constexpr uint32_t small_end = 1u << 16;

    uint64_t factor;        // 2^64 / number, rounded up; 0 stands for the number 1
    uint32_t small_factor;  // (2^32 - 1) / number, rounded down

    Divisor() = default;
    MOELINK_BOTH explicit Divisor(uint32_t number)
        : factor(number <= 1 ? 0 : UINT64_MAX / number + 1), small_factor(number == 0 ? 0 : UINT32_MAX / number) {}

    // Of a numerator below small_end, by one multiplication: what the factor lacks, times the numerator, is less than 1 / number.
    MOELINK_BOTH uint32_t divide_small(uint32_t numerator) const { return static_cast<uint32_t>((uint64_t{numerator} + 1) * small_factor >> 32); }

    MOELINK_BOTH uint32_t divide(uint32_t numerator) const {
        if (factor == 0) return numerator;
        const uint64_t low = uint64_t{numerator} * static_cast<uint32_t>(factor) >> 32;
        return static_cast<uint32_t>((uint64_t{numerator} * (factor >> 32) + low) >> 32);
    }
};

// Which rank owns an expert: rank r owns experts / ranks of them in order, the first experts % ranks ranks one more; or as a table says.
struct ExpertRanks {
    const int32_t *table;   // [experts] on the device: each one's rank, -1: of none; nullptr: in order
    const int32_t *places;  // [experts] on the device, with a table: each one's place among its rank's experts
    uint32_t experts;
    uint32_t each;
    uint32_t larger;  // ranks that own one more
    uint32_t split;   // first expert of the ranks that do not
    Divisor by_each;
    Divisor by_more;  // each + 1

    ExpertRanks() = default;
    MOELINK_BOTH ExpertRanks(int32_t experts_, int32_t ranks)
        : table(nullptr), places(nullptr), experts(static_cast<uint32_t>(experts_)), each(static_cast<uint32_t>(experts_ / ranks)),
          larger(static_cast<uint32_t>(experts_ % ranks)), split(larger * (each + 1)), by_each(each), by_more(each + 1) {}

    // First expert of a rank, where they are in order; of the number of ranks: the number of experts.
    MOELINK_BOTH int32_t first_of(int32_t rank) const {
        const auto index = static_cast<uint32_t>(rank);
        return static_cast<int32_t>(index * each + (index < larger ? index : larger));
    }

    // -1 for an id that means no expert.
    MOELINK_BOTH int32_t rank_of(int64_t id) const {
        return static_cast<uint64_t>(id) < experts ? rank_of_expert(static_cast<uint32_t>(id)) : -1;
    }
    MOELINK_BOTH int32_t rank_of(int32_t id) const {
        return static_cast<uint32_t>(id) < experts ? rank_of_expert(static_cast<uint32_t>(id)) : -1;
    }

    // Experts are in order and so few that dividing takes one multiplication.
    MOELINK_BOTH bool divides_small() const { return table == nullptr && experts <= Divisor::small_end; }

    // The same as rank_of, where that is so.
    template <class Id>
    MOELINK_BOTH int32_t rank_of_small(Id id) const {
        const auto expert = static_cast<uint32_t>(id);
        const uint32_t rank = expert < split ? by_more.divide_small(expert) : larger + by_each.divide_small(expert - split);
        return static_cast<std::make_unsigned_t<Id>>(id) < experts ? static_cast<int32_t>(rank) : -1;
    }

    // Of an expert that a rank owns: its place among that rank's experts.
    MOELINK_BOTH int32_t place_of(int32_t expert, int32_t rank) const { return table != nullptr ? places[expert] : expert - first_of(rank); }

private:
    MOELINK_BOTH int32_t rank_of_expert(uint32_t expert) const {
        if (table != nullptr) return table[expert];
        const bool more = expert < split;
        const uint32_t rank = (more ? by_more : by_each).divide(more ? expert : expert - split);
        return static_cast<int32_t>(more ? rank : larger + rank);
    }
};

struct Workspace {
    int32_t rank;
    int32_t ranks;
    int32_t top_k;
    int32_t capacity;      // rows that one rank can send to another: slots_per_rank
    int32_t max_distinct;  // rows that a token gets back at most
    int32_t dispatch_packet_rows;    // tokens up to which rows may travel as packets; 0 on the host
    int32_t combine_packet_rows;
    uint32_t dispatch_packet_bytes;  // of one row
    uint32_t combine_packet_bytes;
    uint32_t combine_packet_vectors;  // offset in a row's packets
    uint32_t reserved;
    ExpertRanks owners;
    uint64_t timeout_ns;
    uint64_t generation;
    Anchor *anchor;
    Fault *fault;               // pinned host memory as the kernel sees it
    unsigned char *const *peers;  // [ranks] this slot's start in each rank's workspace, as mapped here
    unsigned char *near[near_ranks];  // the same, where there are no more ranks than that
    unsigned char *mine;        // peers[rank]
    SlotLayout layout;
};

// Rows of BF16 that become FP8 on their way: payload 0 travels as E4M3 and payload 1 as its scales, which quant/block.hpp defines.
enum QuantizeForm : uint32_t { quantize_none = 0, quantize_f32 = 1, quantize_e8m0 = 2 };
inline constexpr uint64_t quantize_block = 128;  // values with one scale

struct Payload {
    const unsigned char *source;
    uint64_t source_stride;
    uint64_t row_bytes;        // 0: not sent this time
    uint64_t plane;            // offset in the slot
    uint64_t plane_stride;     // of the workspace, not of the round: a source's rows never lie where another's were the round before
    unsigned char *output;     // nullptr: the plane is the output
    uint64_t output_stride;
    int32_t width;             // widest access [bytes] that source, plane and row_bytes allow: 16, 8, 4, 2, 1
    int32_t output_width;
    uint32_t packet_beside;    // offset in a row's packets of what stands beside tiles
    uint32_t packet_vectors;
    uint32_t tiles;            // of a row
    uint32_t reserved;
};

// Which ranks a token's row goes to, and which of them send one back.
enum Spread : uint32_t {
    spread_owners = 0,      // those that own one of its experts; all of them
    spread_all = 1,         // every rank; the owners
    spread_no_routing = 2,  // every rank, there are no ids; every rank
};

// Dispatch and combine may be two launches each.
enum Halves : uint32_t { half_send = 1, half_receive = 2, both_halves = 3 };

struct DispatchParams {
    Workspace workspace;
    int32_t tokens;
    int32_t ids_bytes;  // 4 or 8
    const int32_t *tokens_device;
    const void *ids;
    const float *weights;
    int32_t invalid_id;
    uint32_t shape;
    int32_t payload_count;
    Spread spread;
    Halves halves;
    uint32_t reserved;
    uint32_t packets;   // rows may travel as packets: they are whole 16-byte vectors
    uint32_t whole_ids; // a token's ids are whole 16-byte vectors
    QuantizeForm quantize;
    uint32_t row_tiles; // of a row with all its payloads and one for its routing
    Payload payloads[max_payloads];
};

enum ValueType : int32_t { value_f32 = 1, value_f16 = 2, value_bf16 = 3 };

struct CombineParams {
    Workspace workspace;
    const unsigned char *input;
    uint64_t input_stride;
    unsigned char *output;
    uint64_t output_stride;
    uint64_t row_bytes;
    int32_t value_type;
    int32_t weighted;
    int32_t push_width;    // widest access that input, plane and row_bytes allow
    int32_t reduce_width;  // 16 when whole 16-byte vectors can be read from input and plane and written, else the value's size
    uint32_t shape;
    Halves halves;
};

// Widest of 16, 8, 4, 2, 1 that divides all of the bits.
inline int32_t access_width(uint64_t bits) {
    for (int32_t width = 16; width > 1; width /= 2) {
        if (bits % static_cast<uint64_t>(width) == 0) return width;
    }
    return 1;
}

// --- expert-parallel load balancing: which copy of an expert a token takes, and the load window ---

// Where the copies of logical experts are. Slots of expert e: slots[offsets[e]] up to slots[offsets[e + 1]], rising. Rank r owns
// physical slots as ranks own experts (ExpertRanks). The arrays of layer l begin l rows behind those of layer 0.
struct CopyTable {
    int32_t logical;
    int32_t physical;
    int32_t ranks;
    uint32_t reserved;
    const int32_t *phy2log;  // [physical]; -1: an empty slot
    const int32_t *offsets;  // [logical + 1]
    const int32_t *slots;    // [physical]

    MOELINK_BOTH int32_t copies(int32_t expert) const { return offsets[expert + 1] - offsets[expert]; }

    MOELINK_BOTH CopyTable layer(int64_t index) const {
        CopyTable table = *this;
        table.phy2log += index * physical;
        table.offsets += index * (int64_t{logical} + 1);
        table.slots += index * physical;
        return table;
    }
};

enum RoutePolicy : int32_t { route_round_robin = 1, route_hashed = 2, route_capacity = 3 };

inline constexpr int max_eplb_ranks = 1024;
inline constexpr int max_route_segments = 256;

struct RouteParams {
    CopyTable table;               // of the layer
    int32_t policy;
    int32_t tokens;
    const int32_t *tokens_device;  // nullptr, or a bound on tokens read on the device
    int32_t top_k;                 // tokens * top_k fits an int32_t
    int32_t ids_bytes;             // 4 or 8, of both
    const void *ids;               // [tokens, top_k]
    void *out_ids;                 // [tokens, top_k]; may be ids
    uint64_t seed;
    const int64_t *room;           // nullptr, or [ranks]
    int64_t *slot_counts;          // nullptr, or [physical]: added to
    int32_t *segment_counts;       // scratch [max_route_segments, logical]
    int32_t *totals;               // scratch [logical]
    int32_t *shares;               // scratch [physical], in the order of table.slots
};

// Sum of two counts. Negative ones are 0, and it stays at the largest value instead of turning negative.
MOELINK_BOTH inline int64_t add_counts(int64_t a, int64_t b) {
    if (b < 0) b = 0;
    return a > INT64_MAX - b ? INT64_MAX : a + b;
}

// A ring of passes: pass n is row n % window.
struct LoadRing {
    CopyTable table;    // of layer 0
    int32_t layers;
    int32_t window;
    uint64_t *passes;   // [1] recorded so far
    int64_t *logical;   // [window, layers, logical]
    int64_t *ranks;     // [window, layers, ranks]
};

struct RecordParams {
    LoadRing ring;
    int64_t *counts;  // [layers, physical]
    uint32_t clear;   // 1: counts become 0
    uint32_t reserved;
};

struct SumParams {
    LoadRing ring;
    int32_t steps;         // parts of the window, oldest first
    uint32_t reserved;
    int64_t *out_logical;  // [steps, layers, logical]
    int64_t *out_ranks;    // [layers, ranks]
    uint64_t *out_passes;  // [1]
};

namespace host {

// Called now and then while a kernel waits; true when the wait is in vain (fault.peer may be set).
struct Watch {
    bool (*lost)(void *user, Fault *fault);
    void *user;
};

// Both return when the round is done here. On a fault the round is lost and fault says why.
Fault dispatch(const DispatchParams &params, const Watch &watch);
Fault combine(const CombineParams &params, const Watch &watch);

// `count` BF16 values, a multiple of the block: as many bytes, and one scale a block.
void quantize_row(QuantizeForm form, const void *values, uint64_t count, unsigned char *out, unsigned char *out_scales);

void route(const RouteParams &params);
void record_load(const RecordParams &params);
void sum_load(const SumParams &params);

}  // namespace host

namespace cuda {

// 0, or a CUDA error number; error_text gives its name and meaning.
using Result = int;
const char *error_text(Result result);

// Loads every kernel on the current device: a lazily loaded kernel behind a spinning one deadlocks.
Result load_kernels();
// How a kernel is launched. `early`: its blocks may take their place while the kernel before it ends (programmatic dependent
// launch); only where no other rank's or slot's waiting kernel wants that place.
struct Launch {
    int blocks;  // at most, one a multiprocessor
    int tokens;  // of this rank, at most
    bool early;
    CUstream_st *stream;
};
Result dispatch(const DispatchParams &params, const Launch &launch);
Result combine(const CombineParams &params, const Launch &launch);

// Pieces of the gathering manager over NCCL; all stream-ordered, rows are [rows] of row_bytes each.
struct GatherIds {
    const void *ids;              // the caller's [tokens, top_k]
    int32_t ids_bytes;
    int32_t tokens;
    const int32_t *tokens_device;
    int32_t padded;               // rows to write
    int32_t top_k;
    int32_t *out_ids;             // [padded, top_k]; rows beyond the tokens are -1
    int32_t *out_tokens;          // [1]
};
Result gather_ids(const GatherIds &params, CUstream_st *stream);

struct MaskIds {
    int32_t rank, ranks, top_k, capacity, invalid_id;
    ExpertRanks owners;
    const int32_t *tokens;        // [ranks]
    int32_t *ids;                 // [ranks, capacity, top_k]: in place
    uint8_t *local;               // [ranks, capacity]: 1 when a row has an expert here
};
Result mask_ids(const MaskIds &params, CUstream_st *stream);

struct CopyRows {
    const unsigned char *source;
    uint64_t source_stride;
    unsigned char *target;
    uint64_t target_stride;
    uint64_t row_bytes;
    int64_t rows;
    const int32_t *rows_device;   // nullptr, or a bound on rows read on the device
    const uint8_t *keep;          // nullptr, or [rows]: rows with 0 are written as zeros
    const int32_t *group_counts;  // nullptr, or rows come in groups of group_rows, of which the first group_counts[g] are copied
    int64_t group_rows;
};
Result copy_rows(const CopyRows &params, CUstream_st *stream);

// Adds the rows of planes one behind the other, plane by plane in fp32, rounded once.
struct AddPlanes {
    const unsigned char *source;  // [planes][plane_bytes]: dense rows of row_bytes
    uint64_t plane_bytes;
    int32_t planes;
    int32_t value_type;
    unsigned char *target;
    uint64_t target_stride;
    uint64_t row_bytes;
    int64_t rows;
    const int32_t *rows_device;   // nullptr, or a bound on rows read on the device
};
Result add_planes(const AddPlanes &params, CUstream_st *stream);

Result route(const RouteParams &params, CUstream_st *stream);
Result record_load(const RecordParams &params, CUstream_st *stream);
Result sum_load(const SumParams &params, CUstream_st *stream);

}  // namespace cuda

}  // namespace moelink::kernels
