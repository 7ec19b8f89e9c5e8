// The published algorithm as a whole, one layer.
#pragma once

#include "eplb/shape.hpp"

#include <span>

namespace moelink::eplb {

// phy2log and replica [slots], counts [experts]; replica says which of its expert's copies a slot is. Needs slots >= experts, and
// as many in each node.
void rebalance_layer(const Shape &shape, std::span<const float> load, std::span<int32_t> phy2log, std::span<int32_t> replica,
                     std::span<int32_t> counts);

}  // namespace moelink::eplb
