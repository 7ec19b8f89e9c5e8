// Move after move, from a layout towards its goals.
#pragma once

#include "eplb/moves.hpp"

#include <span>
#include <utility>
#include <vector>

namespace moelink::eplb {

// A state on the way: the first `writes` writes of the log made it.
struct Option {
    size_t writes = 0;
    double peak = 0;
    double cost = 0;     // distance-weighted, against where the weights were at the start of the search
    int64_t copies = 0;  // across ranks, against the previous map
};

// A way from a layout on.
struct Trail {
    std::vector<std::pair<int, int32_t>> log;  // slot, expert
    std::vector<Option> options;               // the first: nothing done
    bool late = false;                         // the deadline came first
};

// A layout as a state: costs count from home, copies from origin.
Option state_of(size_t writes, const Layout &layout, const Home &home, const Home &origin);

// Moves until every rank is at its goal ([steps]) in every step, or no move helps a slowest rank. Leaves layout at the last option.
Trail improve(Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals);

}  // namespace moelink::eplb
