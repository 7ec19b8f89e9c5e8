// The published algorithm's packing: equal numbers of items into packs of even weight.
#pragma once

#include <cstdint>
#include <span>

namespace moelink::eplb {

// One layer. items is a multiple of packs. Equal loads: the lower index first; equal packs: the lower index.
void pack_items(std::span<const float> load, int packs, std::span<int32_t> pack, std::span<int32_t> place);

}  // namespace moelink::eplb
