// The moves that take one layer from the old map to the new one.
#pragma once

#include "eplb/topology.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace moelink::eplb {

struct LayerMoves {
    struct Batch {
        int64_t end = 0;     // its moves are moves[previous end .. end)
        int32_t rounds = 0;  // its transfers have rounds 0 .. rounds-1
        bool whole = false;  // nothing is staged when it ends
        bool early = false;  // its transfers take nothing that the batch before it fills, and land where that stages nothing
    };
    std::vector<moelink_eplb_move> moves;  // layer and step are left 0; batch and round are the layer's own
    std::vector<Batch> batches;
    std::vector<int32_t> final_map;        // the new map, -1 where the expert is lost
    int32_t most_received = 0;             // by one rank
    int32_t lost = 0;
};

struct LayerTask {
    const Topology &topology;
    int staging = 0;  // 1 or more
    int experts = 0;
    int layer = 0;    // for errors
    bool skip_lost = false;
    bool overlap = false;  // as MOELINK_EPLB_TRANSFER_F_OVERLAP; staging is 2 or more
    std::span<const int32_t> old_map;  // [slots]
    std::span<const int32_t> new_map;
};

// Throws INVALID_ARGUMENT for an expert without a source, unless they are skipped.
LayerMoves move_layer(const LayerTask &task);

}  // namespace moelink::eplb
