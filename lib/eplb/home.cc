#include "eplb/home.hpp"

#include <algorithm>
#include <climits>
#include <tuple>

namespace moelink::eplb {

double Home::distance(int from, int to) const {
    const Cluster &cluster = layout_->cluster();
    return cluster.distance.empty() ? 1.0 : cluster.distance[size_t(from) * size_t(cluster.ranks) + size_t(to)];
}

double Home::cost(int expert, int rank) const {
    if (layout_ == nullptr || layout_->held(rank, expert)) return 0;
    const Cluster &cluster = layout_->cluster();
    if (cluster.distance.empty() || layout_->count(expert) == 0) return 1;
    double nearest = distance(cluster.rank_of(layout_->first(expert)), rank);
    for (int slot = layout_->first(expert); slot >= 0; slot = layout_->next(slot)) {
        nearest = std::min(nearest, distance(cluster.rank_of(slot), rank));
    }
    return nearest;
}

// One more expert gets a source; where all of its sources are used up, one of their experts looks for another (an augmenting path
// of bipartite matching).
bool Home::assign(int rank, const std::vector<int32_t> &experts, size_t which, int cap, std::vector<int> &used, std::vector<int> &out,
                  std::vector<uint8_t> &tried) const {
    std::vector<std::tuple<double, int, int>> choices;
    for (int slot = layout_->first(experts[which]); slot >= 0; slot = layout_->next(slot)) {
        int from = layout_->cluster().rank_of(slot);
        choices.emplace_back(distance(from, rank), used[size_t(from)], from);
    }
    std::sort(choices.begin(), choices.end());
    for (auto [far, uses, from] : choices) {
        if (used[size_t(from)] >= cap) continue;
        ++used[size_t(from)];
        out[which] = from;
        return true;
    }
    for (auto [far, uses, from] : choices) {
        if (tried[size_t(from)]) continue;
        tried[size_t(from)] = 1;
        for (size_t other = 0; other < experts.size(); ++other) {
            if (out[other] != from || other == which) continue;
            if (assign(rank, experts, other, cap, used, out, tried)) {
                out[which] = from;  // the other one's place; its new source has counted itself
                return true;
            }
        }
    }
    return false;
}

bool Home::sources(int rank, const std::vector<int32_t> &experts, int max_pair_copies, std::vector<int> &out) const {
    out.assign(experts.size(), -1);
    if (layout_ == nullptr) return true;
    std::vector<int> used(size_t(layout_->cluster().ranks), 0);
    std::vector<uint8_t> tried(used.size());
    int cap = max_pair_copies == 0 ? INT_MAX : max_pair_copies;
    for (size_t i = 0; i < experts.size(); ++i) {
        if (experts[i] < 0 || !crosses(experts[i], rank)) continue;
        std::fill(tried.begin(), tried.end(), uint8_t{0});
        if (!assign(rank, experts, i, cap, used, out, tried)) return false;
    }
    return true;
}

}  // namespace moelink::eplb
