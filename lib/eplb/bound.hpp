// The certificate: a time below which no map can be.
#pragma once

#include "eplb/layout.hpp"

#include <span>
#include <vector>

namespace moelink::eplb {

// [steps] for load [experts, steps]. The larger of two: work spread evenly over all speeds, and the best replication that the slots
// allow, if each copy could have the fastest ranks.
std::vector<double> lower_bounds(const Cluster &cluster, std::span<const double> load);

// Time if all speeds were fully used, summed over steps.
double even_time(const Cluster &cluster, std::span<const double> load);

}  // namespace moelink::eplb
