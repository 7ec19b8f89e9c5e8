#include "moe/layout.hpp"

#include "moe/cursor.hpp"

#include <algorithm>

namespace moelink {

namespace {

// Tokens up to which rows may travel as packets: what their place costs in all slots is bounded. `row`: of one token.
int32_t choose_packet_rows(uint64_t most_rows, uint64_t capacity, uint64_t slots, uint64_t row) {
    constexpr uint64_t most_bytes = uint64_t{64} << 20;
    return static_cast<int32_t>(std::min({most_rows, capacity, most_bytes / (slots * row)}));
}

}  // namespace

WorkspaceLayout make_layout(const Config &config, int ranks, bool on_cuda, bool to_all) {
    using namespace kernels;
    WorkspaceLayout result;
    SlotLayout &slot = result.slot;
    const auto r = static_cast<uint64_t>(ranks);
    const auto capacity = static_cast<uint64_t>(config.max_tokens);
    const auto top_k = static_cast<uint64_t>(config.top_k);
    result.max_distinct = to_all ? ranks : std::min(ranks, config.top_k);
    const auto distinct = static_cast<uint64_t>(result.max_distinct);

    Cursor cursor;
    slot.lines = cursor.take({r, sizeof(SourceLine)});
    slot.state = cursor.take({sizeof(SlotState)});
    slot.dispatch_base = cursor.take({r, sizeof(uint64_t)});
    slot.recv_counts = cursor.take({r, sizeof(int32_t)});
    slot.send_counts = cursor.take({r, sizeof(int32_t)});
    slot.received = cursor.take({r, sizeof(uint32_t)});
    slot.filled = cursor.take({r, sizeof(Filled)});
    slot.arrived = cursor.take({on_cuda ? capacity : 0, distinct, sizeof(uint32_t)});
    slot.distinct = cursor.take({capacity, sizeof(int32_t)});
    slot.distinct_ranks = cursor.take({on_cuda ? capacity : 0, distinct, sizeof(int32_t)});
    slot.weight_sums = cursor.take({capacity, distinct, sizeof(float)});
    slot.own_ids = cursor.take({capacity, top_k, sizeof(int32_t)});
    slot.own_weights = cursor.take({capacity, top_k, sizeof(float)});
    slot.places = cursor.take({on_cuda ? 0 : capacity, distinct, sizeof(RowPlace)});
    slot.origins = cursor.take({r, capacity, sizeof(RowOrigin)});
    slot.own_rows = cursor.take({on_cuda ? capacity : 0, sizeof(OwnRow)});
    result.control_bytes = cursor.at();
    slot.ids = cursor.take({r, capacity, top_k, sizeof(int32_t)});
    slot.weights = cursor.take({r, capacity, top_k, sizeof(float)});
    for (size_t p = 0; p < config.payload_row_bytes.size(); ++p) {
        result.plane_strides.push_back(plane_stride(config.payload_row_bytes[p]));
        slot.planes[p] = cursor.take({r, capacity, result.plane_strides[p]});
    }
    Cursor dispatch_row, combine_row;
    dispatch_row.take({packet_routing_bytes});
    for (uint64_t row_bytes : config.payload_row_bytes) {
        result.packet_beside.push_back(static_cast<uint32_t>(dispatch_row.take({packet_tiles(row_bytes), packet_tile_beside})));
        result.packet_vectors.push_back(static_cast<uint32_t>(dispatch_row.take({row_bytes})));
    }
    combine_row.take({packet_tiles(config.combine_row_bytes), packet_tile_beside});
    result.combine_packet_vectors = static_cast<uint32_t>(combine_row.take({config.combine_row_bytes}));
    if (on_cuda && dispatch_row.at() <= UINT32_MAX && combine_row.at() <= UINT32_MAX) {
        const auto slots = static_cast<uint64_t>(config.slots);
        result.dispatch_packet_rows = choose_packet_rows(max_dispatch_packet_rows, capacity, slots, r * dispatch_row.at());
        if (config.combine_row_bytes > 0) {
            result.combine_packet_rows = choose_packet_rows(max_combine_packet_bytes / config.combine_row_bytes, capacity, slots, distinct * combine_row.at());
        }
        result.dispatch_packet_bytes = static_cast<uint32_t>(dispatch_row.at());
        result.combine_packet_bytes = static_cast<uint32_t>(combine_row.at());
    }
    slot.dispatch_packets = cursor.take({r, static_cast<uint64_t>(result.dispatch_packet_rows), result.dispatch_packet_bytes});
    result.dispatch_bytes = cursor.at() - result.control_bytes;
    slot.combine_packets = cursor.take({static_cast<uint64_t>(result.combine_packet_rows), distinct, result.combine_packet_bytes});
    slot.combine = cursor.take({capacity, distinct, config.combine_row_bytes});
    result.combine_bytes = cursor.at() - result.control_bytes - result.dispatch_bytes;
    slot.bytes = cursor.at();
    if (__builtin_mul_overflow(slot.bytes, static_cast<uint64_t>(config.slots), &result.bytes)) {
        fail(MOELINK_ERR_OUT_OF_MEMORY, "the workspace of this config does not fit 64-bit sizes");
    }
    return result;
}

moelink_manager_sizes sizes_from(const WorkspaceLayout &layout, const Config &config) {
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    const auto slots = static_cast<uint64_t>(config.slots);
    sizes.slots_per_rank = config.max_tokens;
    sizes.workspace_bytes = layout.bytes;
    sizes.dispatch_bytes = layout.dispatch_bytes * slots;
    sizes.combine_bytes = layout.combine_bytes * slots;
    sizes.control_bytes = layout.control_bytes * slots;
    return sizes;
}

}  // namespace moelink
