// The planner's parameters, checked, with the active ranks numbered anew.
#pragma once

#include "eplb/layout.hpp"
#include "eplb/shape.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace moelink::eplb {

struct Request {
    Shape shape;
    moelink_eplb_plan_params params;
    Cluster cluster;

    // [experts, steps] of one layer.
    std::vector<double> layer_load(int layer) const;
    // Between a layer's slots as the caller numbers them and those of active ranks.
    std::vector<int32_t> to_active(std::span<const int32_t> slots) const;
    void from_active(std::span<const int32_t> active, std::span<int32_t> slots) const;
    // One layer's part of params.previous; empty when there is none.
    std::span<const int32_t> previous(int layer) const;
};

// All of it checked, or for rate only what rating reads.
Request read_request(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params, bool for_plan);

}  // namespace moelink::eplb
