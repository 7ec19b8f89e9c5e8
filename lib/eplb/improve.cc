#include "eplb/improve.hpp"

#include <algorithm>

namespace moelink::eplb {

namespace {

// The slowest rank of each step, the one with most excess first; each once.
std::vector<int> hot_ranks(const Layout &layout, const Search &search) {
    const Cluster &cluster = layout.cluster();
    std::vector<std::pair<double, int>> hot;
    for (int step = 0; step < cluster.steps; ++step) {
        int most = 0;
        for (int rank = 1; rank < cluster.ranks; ++rank) {
            if (layout.time(rank)[step] > layout.time(most)[step]) most = rank;
        }
        hot.emplace_back(-search.excess(most), most);
    }
    std::sort(hot.begin(), hot.end());
    std::vector<int> ranks;
    for (auto [excess, rank] : hot) {
        if (excess < 0 && std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) ranks.push_back(rank);
    }
    return ranks;
}

// Two moves that help together where neither helps alone: one takes load off the rank, and the next takes it off where it went.
Move relieve_by_two(const Layout &layout, Search &search, int rank) {
    const Cluster &cluster = layout.cluster();
    double least_gain = 1e-9 * search.excess(rank);
    Move best;
    for (const Move &first : search.shift(rank)) {
        if (cluster.late()) break;
        Layout between = layout;
        apply(first, between);
        Search next(between, search);
        int hot = 0;
        for (int other = 1; other < cluster.ranks; ++other) {
            if (next.excess(other) > next.excess(hot)) hot = other;
        }
        Move second = next.relieve(hot);
        Move both = first;
        both.gain += second.gain;
        both.cost += second.cost;
        for (int i = 0; i < second.count; ++i) both.writes[size_t(both.count++)] = second.writes[size_t(i)];
        bool better = best.count == 0 || both.gain * std::max(best.cost, 1.0) > best.gain * std::max(both.cost, 1.0);
        if (both.gain > least_gain && better) best = both;
    }
    return best;
}

// Copies that must cross ranks to make the layout from home.
int64_t count_crossing(const Layout &layout, const Home &home) {
    int64_t copies = 0;
    for (int slot = 0; slot < layout.cluster().slots(); ++slot) {
        int32_t expert = layout.slots()[size_t(slot)];
        if (expert >= 0 && home.crosses(expert, layout.cluster().rank_of(slot))) ++copies;
    }
    return copies;
}

double count_cost(const Layout &layout, const Home &home) {
    double cost = 0;
    for (int slot = 0; slot < layout.cluster().slots(); ++slot) {
        int32_t expert = layout.slots()[size_t(slot)];
        if (expert >= 0) cost += home.cost(expert, layout.cluster().rank_of(slot));
    }
    return cost;
}

}  // namespace

Option state_of(size_t writes, const Layout &layout, const Home &home, const Home &origin) {
    return {writes, layout.peak(), count_cost(layout, home), count_crossing(layout, origin)};
}

Trail improve(Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals) {
    Trail trail;
    trail.options.push_back(state_of(0, layout, home, *rules.origin));
    Search search(layout, home, rules, goals);
    // Excess falls with every move, so the way ends by itself; this only bounds the time of a long one.
    for (int moves = 4 * layout.cluster().slots(); moves > 0; --moves) {
        Move move;
        for (int rank : hot_ranks(layout, search)) {
            if (layout.cluster().late()) {
                trail.late = true;
                return trail;
            }
            move = search.relieve(rank);
            if (move.count > 0) break;
        }
        // Where nothing is anywhere yet, a layout is good enough without.
        if (move.count == 0 && !home.free()) {
            std::vector<int> hot = hot_ranks(layout, search);
            if (!hot.empty()) move = relieve_by_two(layout, search, hot.front());
        }
        if (move.count == 0) break;
        apply(move, layout);
        trail.log.insert(trail.log.end(), move.writes.begin(), move.writes.begin() + move.count);
        trail.options.push_back(state_of(trail.log.size(), layout, home, *rules.origin));
    }
    return trail;
}

}  // namespace moelink::eplb
