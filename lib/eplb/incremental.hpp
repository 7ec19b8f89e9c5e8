// One layer's plan.
#pragma once

#include "eplb/improve.hpp"

#include <moelink/eplb.h>

#include <cstdint>
#include <span>
#include <vector>

namespace moelink::eplb {

struct LayerInput {
    const Cluster *cluster = nullptr;
    std::span<const double> load;      // [experts, steps]
    std::vector<int32_t> previous;     // [ranks, capacity], or empty: none
    std::vector<uint8_t> fixed;        // [ranks, capacity]
    bool from_scratch = false;
    double target = 1;
    double move_cost = 0;              // in parts of the mean rank time
};

// A start, and what may be done from there. All slots are [ranks, capacity].
struct LayerPlan {
    std::vector<int32_t> previous;             // as in the input, without second copies on a rank
    std::vector<int32_t> start;                // the previous map, mended; or a plan from scratch
    std::vector<std::pair<int, int32_t>> log;  // writes from start on
    std::vector<Option> options;               // states on the way; the last is the best
    uint32_t flags = 0;                        // MOELINK_EPLB_RESULT_REPAIRED, _DEADLINE, _ANEW
    size_t anew_from = 0;                      // options from this one on contain a plan from scratch; 0: none does

    std::vector<int32_t> slots(size_t option) const;
};

LayerPlan plan_layer(const LayerInput &input);

}  // namespace moelink::eplb
