// The published algorithm's replication: one more copy at a time for the expert with the largest load per copy.
#pragma once

#include <cstdint>
#include <span>

namespace moelink::eplb {

// One layer. phy2log and replica [slots], counts [experts]. Equal loads per copy: the lower index.
void replicate_experts(std::span<const float> load, std::span<int32_t> phy2log, std::span<int32_t> replica, std::span<int32_t> counts);

}  // namespace moelink::eplb
