// Single moves that relieve a hot rank.
#pragma once

#include "eplb/home.hpp"
#include "eplb/layout.hpp"

#include <algorithm>
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
    std::array<std::pair<int, int32_t>, 4> writes;  // slot, its new expert; four: two moves in one
    double gain = 0;                                // excess that it removes
    double cost = 0;                                // may be negative: an expert comes home
};

void apply(const Move &move, Layout &layout);

// Looks for the move that removes most excess for its cost. The excess of a rank is the square of its time above the goal, summed over
// steps: squares, because only the slowest rank counts in the end.
class Search {
public:
    Search(const Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals);
    // The same search over another layout.
    Search(const Layout &layout, const Search &other);

    // The best move that takes load off `rank`; count 0: none.
    Move relieve(int rank);
    // Moves that take most of the excess off `rank` but put as much, or more, elsewhere: those that do least harm first. Where no
    // move helps, one of these may, with a second that clears up behind it.
    std::vector<Move> shift(int rank);
    // The least harmful slot for one more copy of an expert: an empty one, or one of an expert that has a copy to spare, or more copies
    // than its entry in `counts`, where that is given. Count 0: none.
    Move settle(int expert, const std::vector<int> *counts = nullptr);
    double excess(int rank) const { return excess_of(layout_.time(rank)); }

private:
    Search(const Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals, std::vector<double> least);

    // Sum of squares of what is above the goals; time(step) is a rank's time.
    template <class Time>
    double excess_with(Time &&time) const {
        double sum = 0;
        for (size_t step = 0; step < steps_; ++step) {
            double above = std::max(0.0, time(step) - goals_[step]);
            sum += above * above;
        }
        return sum;
    }
    double excess_of(const double *time) const {
        return excess_with([time](size_t step) { return time[step]; });
    }
    bool may_hold(int rank, int expert) const {
        return !layout_.held(rank, expert) &&
               (rules_.zone.empty() || rules_.zone[size_t(expert)] == cluster_.zone[size_t(rank)]);
    }
    bool movable(int slot) const { return rules_.fixed[size_t(slot)] == 0 && slots_[slot] != closed_slot; }
    bool beats(double gain, double cost) const;
    double score(double gain, double cost) const;
    void keep(const Move &move);
    void prepare();
    void prepare_steals();
    double least_swap_cost(int rank, int other) const;
    void swaps(int rank);
    void swaps_with(int rank, int other);
    void steals(int rank);
    void steal(int slot, int32_t expert);
    double steal_limit(int slot, int32_t expert) const;
    double excess_after_steal(int slot, int32_t expert) const;
    void offer(const Move &move);
    bool pairs_allow(const Move &move) const;

    const Layout &layout_;
    const Cluster &cluster_;
    const Home &home_;
    const Rules &rules_;
    const int32_t *slots_;
    const double *goals_;
    size_t steps_;
    Move best_;
    double best_score_ = 0;
    double least_gain_ = 0;
    int shifted_ = -1;          // the rank that shift is about
    double left_ = 0;           // its excess after the move on offer
    std::vector<Move> shifts_;  // a heap, the most harmful first
    std::vector<double> excess_;   // [ranks]
    std::vector<double> least_;    // [ranks] cost of a copy that was never there
    std::vector<double> refund_;   // [ranks] most cost that taking an expert away saves
    std::vector<uint8_t> misses_;  // [ranks] not 0: an expert that was there is not
    std::vector<double> relief_;   // [experts] excess that one more copy would take off its present holders
    std::vector<std::pair<double, int>> coldest_;  // ranks, those with least time first
    std::vector<double> nothing_;  // [steps] load of an empty slot
};

}  // namespace moelink::eplb
