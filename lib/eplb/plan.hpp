// Plans and their figures over all layers.
#pragma once

#include "eplb/figures.hpp"
#include "eplb/request.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace moelink::eplb {

struct Plan {
    std::vector<int32_t> phy2log;  // [layers, slots]; empty when a map was only rated
    std::vector<int32_t> sources;  // [layers, slots]
    std::vector<moelink_eplb_layer_result> layers;
    moelink_eplb_plan_result result = {};
};

Plan make_plan(const Request &request);
Plan rate_map(const Request &request, std::span<const int32_t> phy2log);

}  // namespace moelink::eplb
