// The transfers of all layers, in steps.
#pragma once

#include "eplb/shape.hpp"
#include "eplb/topology.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace moelink::eplb {

// A caller's parameters, checked, with both maps numbered as the ranks act.
struct TransferTask {
    Shape shape;
    Topology topology;
    moelink_eplb_transfer_params params;  // its arrays may be gone after the call
    std::vector<int32_t> old_map, new_map;  // [layers, slots]
    std::vector<uint64_t> expert_bytes;     // [layers]; empty: not counted

    bool overlap() const { return (params.flags & MOELINK_EPLB_TRANSFER_F_OVERLAP) != 0 && params.staging > 1; }
    uint64_t bytes(int layer) const { return expert_bytes.empty() ? 0 : expert_bytes[size_t(layer)]; }
};

TransferTask read_transfer(const moelink_eplb_shape *shape, const moelink_eplb_transfer_params *params);

struct TransferPlan {
    struct Batch {
        int32_t layer = 0;
        int32_t step = 0;
        int64_t begin = 0;     // its moves, transfers first
        int64_t end = 0;
        bool last = false;     // of its layer
        bool whole = false;    // nothing is staged when it ends
        bool early = false;    // its transfers may begin before the local moves of the batch before it
        bool step_end = false;
    };
    Shape shape;
    Topology topology;
    std::vector<int32_t> old_map, final_map;  // [layers, slots]
    std::vector<moelink_eplb_move> moves;
    std::vector<Batch> batches;
    moelink_eplb_transfer_summary summary = {};

    std::span<const moelink_eplb_move> batch_moves(int64_t batch) const;
    // Turns the map in force before a batch into that after it.
    void apply(int64_t batch, std::vector<int32_t> &map) const;
    std::vector<int32_t> map_after(int64_t batch_count) const;
    int64_t step_batches(int steps) const;
};

}  // namespace moelink::eplb
