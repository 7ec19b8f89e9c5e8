// Single moves that relieve a hot rank.
#pragma once

#include "eplb/home.hpp"
#include "eplb/layout.hpp"

#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace moelink::eplb {

// What no move may touch or break, beside what Cluster says.
struct Rules {
    std::vector<uint8_t> fixed;      // [slots] not 0: pinned
    std::vector<int> zone;           // [experts] the zone each expert must stay in; empty: any
    const Home *origin = nullptr;    // where weights really are, for the cap on pairs
};

struct Move {
    int count = 0;
    std::array<std::pair<int, int32_t>, 2> writes;  // slot, its new expert
    double gain = 0;                                // excess that it removes
    double cost = 0;                                // may be negative: an expert comes home
};

// Looks for the move that removes most excess for its cost. The excess of a rank is the square of its time above the goal, summed over
// steps: squares, because only the slowest rank counts in the end.
class Search {
public:
    Search(const Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals);

    // The best move that takes load off `rank`; count 0: none.
    Move relieve(int rank);
    // The least harmful slot for an expert that has no copy; count 0: none.
    Move settle(int expert);
    double excess(int rank) const { return excess_of(layout_.time(rank)); }

private:
    double excess_of(const double *time) const;
    bool may_hold(int rank, int expert) const {
        return !layout_.held(rank, expert) &&
               (rules_.zone.empty() || rules_.zone[size_t(expert)] == cluster_.zone[size_t(rank)]);
    }
    bool movable(int slot) const {
        return rules_.fixed[size_t(slot)] == 0 && layout_.slots()[size_t(slot)] != closed_slot;
    }
    void swaps(int rank);
    void steals(int rank);
    void steal(int slot, int32_t expert);
    void add(int rank, const double *share, double factor);
    void offer(const Move &move);
    bool pairs_allow(const Move &move) const;

    const Layout &layout_;
    const Cluster &cluster_;
    const Home &home_;
    const Rules &rules_;
    std::span<const double> goals_;
    size_t steps_;
    Move best_;
    double best_score_ = 0;
    double least_gain_ = 0;
    std::vector<double> changed_;  // [ranks, steps] new times of touched ranks
    std::vector<uint8_t> is_touched_;
    std::vector<int> touched_;
};

}  // namespace moelink::eplb
