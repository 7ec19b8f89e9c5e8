// New sets get the names of old ones, so that most members stay where they are.
#pragma once

#include <vector>

namespace moelink::eplb {

// A member that the new set `fresh` and the old set `old` share.
struct Overlap {
    int fresh;
    int old;
};

// A name (an old set) for each new set, all different. kind [sets]: a set takes only the name of a set of its own kind; a negative
// kind keeps its own. The largest overlap first, of equals the lower numbers.
std::vector<int> match(const std::vector<Overlap> &overlaps, const std::vector<int> &kind);

}  // namespace moelink::eplb
