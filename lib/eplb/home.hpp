// Where experts came from, and what it costs to bring them elsewhere.
#pragma once

#include "eplb/layout.hpp"

#include <cstdint>
#include <vector>

namespace moelink::eplb {

// The placement that weights are copied from. None: everything is free.
class Home {
public:
    explicit Home(const Layout *layout) : layout_(layout) {}

    // What a copy of the expert on this rank costs: 0 where it is already, else its distance from the nearest that has it.
    double cost(int expert, int rank) const;
    // Whether weights must come from another rank.
    bool crosses(int expert, int rank) const {
        return layout_ != nullptr && !layout_->held(rank, expert) && layout_->count(expert) > 0;
    }
    bool lost(int expert) const { return layout_ != nullptr && layout_->count(expert) == 0; }

    // A source rank for each of `experts`, which are to come to `rank`, none used more than max_pair_copies times (0: no cap): the
    // nearest, of equals the one used least so far. -1 for experts that are there or lost. False when the cap cannot be kept.
    bool sources(int rank, const std::vector<int32_t> &experts, int max_pair_copies, std::vector<int> &out) const;

private:
    double distance(int from, int to) const;
    bool assign(int rank, const std::vector<int32_t> &experts, size_t which, int cap, std::vector<int> &used, std::vector<int> &out,
                std::vector<uint8_t> &tried) const;

    const Layout *layout_;
};

}  // namespace moelink::eplb
