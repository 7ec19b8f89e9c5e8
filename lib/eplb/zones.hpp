// Hierarchical plans: which node each group of experts lives in.
#pragma once

#include "eplb/layout.hpp"

#include <vector>

namespace moelink::eplb {

// The zone of each expert as a layout has it; empty when a group is in no zone or in several, or a zone has more groups than another.
std::vector<int> zones_of(const Layout &layout);

// Groups packed to zones by load. Zones are named so that most groups stay where `before` (empty: nowhere) has them.
std::vector<int> pack_zones(const Layout &layout, const std::vector<int> &before);

}  // namespace moelink::eplb
