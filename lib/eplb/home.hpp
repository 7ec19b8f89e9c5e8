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

    bool free() const { return layout_ == nullptr; }
    // What a copy of the expert on this rank costs: 0 where it is already, else its distance from the nearest that
    // has it, or 1 when none has.
    double cost(int expert, int rank) const {
        if (layout_ == nullptr || layout_->held(rank, expert)) return 0;
        return layout_->cluster().distance.empty() ? 1 : nearest(expert, rank);
    }
    // No copy on this rank costs less, unless the expert was there.
    double least_cost(int rank) const;
    // Whether weights must come from another rank.
    bool crosses(int expert, int rank) const {
        return layout_ != nullptr && !layout_->held(rank, expert) && layout_->count(expert) > 0;
    }
    // Experts that a rank had.
    int held_at(int rank) const { return layout_ == nullptr ? 0 : layout_->experts_at(rank); }

    // A source rank for each of `experts`, which are to come to `rank`, none used more than max_pair_copies times (0: no cap): the
    // nearest, of equals the one used least so far. -1 for experts that are there or lost. False when the cap cannot be kept.
    bool sources(int rank, const std::vector<int32_t> &experts, int max_pair_copies, std::vector<int> &out) const;

private:
    double nearest(int expert, int rank) const;
    double distance(int from, int to) const;
    bool assign(int rank, const std::vector<int32_t> &experts, size_t which, int cap, std::vector<int> &used, std::vector<int> &out,
                std::vector<uint8_t> &tried) const;

    const Layout *layout_;
};

}  // namespace moelink::eplb
