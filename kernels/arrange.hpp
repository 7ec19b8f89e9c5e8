// Received rows in other layouts than the one in which they come: plain structs and functions for both devices.
#pragma once

#include "launch.hpp"

namespace moelink::kernels {

// What a kernel asks before it touches memory that may be gone.
struct Entry {
    uint64_t generation;
    Anchor *anchor;
    Fault *fault;
};

enum Arrangement : uint32_t { arrange_counts = 0, arrange_packed = 1, arrange_expert_major = 2, arrange_expert_padded = 3 };

// What a segment's warp counts and places. A segment is a stretch of (row, k), so that rows keep their order without atomics.
inline constexpr int max_segments = 1024;

struct ArrangePayload {
    const unsigned char *source;  // rank-major rows
    uint64_t source_stride;
    unsigned char *target;
    uint64_t target_stride;
    uint64_t row_bytes;           // 0: not sent this time
    int32_t width;                // widest access that all of them allow
    int32_t reserved;
};

struct ArrangeParams {
    Arrangement arrangement;
    int32_t rank, ranks, capacity, top_k;
    int32_t local_experts;
    int32_t alignment;
    int32_t invalid_id;
    uint32_t zero_padding;         // rows between experts become zero
    int32_t segments;
    ExpertRanks owners;
    int64_t rows;                  // that each target holds
    int64_t expert_rows;           // arrange_expert_padded: of each expert
    // what came, rank-major
    const int32_t *ids;            // [ranks, capacity, top_k]
    const float *weights;          // the same, or nullptr
    const int32_t *recv_counts;    // [ranks]
    const int32_t *tokens;         // of each row, every tokens_stride-th word; nullptr: row i of a source is its token i
    int64_t tokens_stride;
    // what is told about the rows
    int32_t *out_ids;              // arrange_packed: [rows, top_k]
    float *out_weights;            // arrange_packed: the same, or nullptr
    int32_t *rank_offsets;         // [ranks + 1]
    int32_t *expert_counts;        // [local_experts]
    int32_t *expert_offsets;       // [local_experts + 1]
    int32_t *row_sources;          // [rows, 3]
    float *row_weights;            // [rows], or nullptr
    // between the steps, and for combine
    int64_t *row_from;             // [rows]: rank-major row of each; -1: padding
    int64_t *places;               // [ranks, capacity, top_k]: row of each (row, k); -1: none
    int32_t *segment_counts;       // [segments, local_experts]
    uint32_t *finished;            // [1] blocks that are done; 0 between launches
    // counts for the host: rows in use (without the padding of arrange_expert_padded), rows of each source, rows of each local expert; `number` comes last, in the first word
    int64_t *host_counts;
    int64_t number;
    // kernels of another generation do nothing, nor does one after a fault; more rows than there is room for are a fault
    Entry entry;
    int32_t payload_count;
    int32_t reserved;
    ArrangePayload payloads[max_payloads];
};

inline constexpr int host_counts_head = 2;  // the number, rows in use; then ranks and experts

// The rows of a token's experts become one: [ranks, capacity] rows for combine.
struct GatherExperts {
    int32_t ranks, capacity, top_k;
    int32_t value_type;
    uint32_t weighted;
    uint32_t whole;                // rows of input and output are whole 16-byte vectors
    const int32_t *recv_counts;
    const int64_t *places;         // [ranks, capacity, top_k]
    const float *weights;          // the same; read when weighted
    const unsigned char *input;
    uint64_t input_stride;
    unsigned char *output;         // dense rows of row_bytes
    uint64_t row_bytes;
    Entry entry;
};

// Packed rows back to where rank-major ones are.
struct Unpack {
    int32_t ranks, capacity;
    const int32_t *recv_counts;
    const unsigned char *input;
    uint64_t input_stride;
    unsigned char *output;         // dense rows of row_bytes
    uint64_t row_bytes;
    int32_t width;
    int32_t reserved;
    Entry entry;
};

// Adds 1 to an expert's count for each (token, k) that names it.
struct CountLoads {
    const void *ids;               // [tokens, top_k]
    int32_t ids_bytes;
    int32_t tokens;
    const int32_t *tokens_device;  // nullptr, or a bound on tokens read on the device
    int32_t top_k;
    ExpertRanks owners;
    int64_t *counts;               // [experts]
    Entry entry;
};

namespace host {

// A fault when more rows came than there is room for; nothing is written behind the last.
Fault arrange(const ArrangeParams &params);
void gather_experts(const GatherExperts &params);
void unpack(const Unpack &params);
void count_loads(const CountLoads &params);

}  // namespace host

namespace cuda {

Result arrange(const ArrangeParams &params, CUstream_st *stream);
Result gather_experts(const GatherExperts &params, CUstream_st *stream);
Result unpack(const Unpack &params, CUstream_st *stream);
Result count_loads(const CountLoads &params, CUstream_st *stream);

}  // namespace cuda

}  // namespace moelink::kernels
