// What a map brings and costs.
#pragma once

#include "eplb/request.hpp"

#include <cstdint>
#include <span>

namespace moelink::eplb {

// One layer's figures, and those that moelink_eplb_layer_result has no room for.
struct LayerFigures {
    moelink_eplb_layer_result result = {};
    double even = 0;  // even_time
    int64_t node_copies = 0;
    int32_t largest_pair = 0;
    bool changed = false;
};

// Slowest rank's time summed over steps; below 0 when an expert that has load is on no active rank.
double map_time(const Cluster &cluster, std::span<const double> load, std::span<const int32_t> active);

// sources [slots], or empty. Throws when an expert that has load has no copy.
LayerFigures rate_layer(const Request &request, int layer, std::span<const int32_t> phy2log, std::span<int32_t> sources);

// Sums and means over layers.
moelink_eplb_plan_result sum_up(const Request &request, std::span<const LayerFigures> layers);

}  // namespace moelink::eplb
