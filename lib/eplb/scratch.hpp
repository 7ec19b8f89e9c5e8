// A layout from nothing, by the published algorithm's way with two rules more: no expert twice on a rank, no more copies than ranks.
#pragma once

#include "eplb/moves.hpp"

#include <span>

namespace moelink::eplb {

// Fills the open slots of a layout that holds pinned experts only, then improves it towards goals [steps]. Throws INVALID_ARGUMENT
// when a zone has too few slots. Returns whether the deadline cut the improvement short.
bool fill_from_scratch(Layout &layout, const Rules &rules, std::span<const double> goals);

// Gives ranks other names, among equals, so that most experts stay on the rank where `before` has them.
void relabel(Layout &layout, const Layout &before, const Rules &rules);

}  // namespace moelink::eplb
