// Maps made from maps.
#pragma once

#include <cstdint>
#include <span>

namespace moelink::eplb {

// Copies of each expert.
void count_copies(std::span<const int32_t> phy2log, std::span<int32_t> counts);

// log2phy [experts, width]: the copy with replica number i of an expert stands at column i. No replica numbers: slots ascending.
void invert_map(std::span<const int32_t> phy2log, std::span<const int32_t> replica, int width, std::span<int32_t> log2phy);

// One layer; out may be phy2log.
void preserve_slots(std::span<const int32_t> previous, std::span<const int32_t> phy2log, int rank_slots, std::span<int32_t> out);

}  // namespace moelink::eplb
