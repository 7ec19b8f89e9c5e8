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

}  // namespace

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

Trail improve(Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals) {
    Trail trail;
    trail.options.push_back({0, layout.peak(), count_cost(layout, home), count_crossing(layout, *rules.origin)});
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
        if (move.count == 0) break;
        for (int i = 0; i < move.count; ++i) {
            layout.set(move.writes[size_t(i)].first, move.writes[size_t(i)].second);
            trail.log.push_back(move.writes[size_t(i)]);
        }
        layout.refresh();
        trail.options.push_back({trail.log.size(), layout.peak(), count_cost(layout, home), count_crossing(layout, *rules.origin)});
    }
    return trail;
}

}  // namespace moelink::eplb
