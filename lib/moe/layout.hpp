// Where everything lies in a one-sided workspace; the same arithmetic on every rank.
#pragma once

#include "kernels/launch.hpp"
#include "moe/config.hpp"

#include <vector>

namespace moelink {

struct WorkspaceLayout {
    kernels::SlotLayout slot{};
    int32_t max_distinct = 0;
    std::vector<uint64_t> plane_strides;  // [bytes] from row to row, by payload
    std::vector<uint32_t> packet_beside, packet_vectors;  // [bytes] offsets of each payload's parts in a row's packets
    int32_t dispatch_packet_rows = 0, combine_packet_rows = 0;
    uint32_t dispatch_packet_bytes = 0;  // of one row
    uint32_t combine_packet_bytes = 0;
    uint32_t combine_packet_vectors = 0;
    uint64_t control_bytes = 0;   // of one slot
    uint64_t dispatch_bytes = 0;  // of one slot
    uint64_t combine_bytes = 0;   // of one slot
    uint64_t bytes = 0;           // of all slots
};

// `to_all`: any rank may send a row back for any token. Throws OUT_OF_MEMORY when the sizes do not fit 64 bits.
WorkspaceLayout make_layout(const Config &config, int ranks, bool on_cuda, bool to_all);

moelink_manager_sizes sizes_from(const WorkspaceLayout &layout, const Config &config);

}  // namespace moelink
