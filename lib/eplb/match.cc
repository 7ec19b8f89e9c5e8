#include "eplb/match.hpp"

#include <algorithm>
#include <tuple>

namespace moelink::eplb {

std::vector<int> match(const std::vector<Overlap> &overlaps, const std::vector<int> &kind) {
    size_t sets = kind.size();
    std::vector<int> name(sets, -1);
    std::vector<int> taken(sets, 0);
    auto give = [&](size_t fresh, size_t old) {
        name[fresh] = int(old);
        taken[old] = 1;
    };
    for (size_t set = 0; set < sets; ++set) {
        if (kind[set] < 0) give(set, set);
    }

    std::vector<std::pair<int, int>> pairs;
    for (Overlap overlap : overlaps) {
        if (kind[size_t(overlap.fresh)] == kind[size_t(overlap.old)]) pairs.emplace_back(overlap.fresh, overlap.old);
    }
    std::sort(pairs.begin(), pairs.end());
    std::vector<std::tuple<int, int, int>> order;  // -members, fresh, old
    for (size_t i = 0; i < pairs.size();) {
        size_t end = i;
        while (end < pairs.size() && pairs[end] == pairs[i]) ++end;
        order.emplace_back(-int(end - i), pairs[i].first, pairs[i].second);
        i = end;
    }
    std::sort(order.begin(), order.end());
    for (auto [members, fresh, old] : order) {
        if (name[size_t(fresh)] < 0 && !taken[size_t(old)]) give(size_t(fresh), size_t(old));
    }
    for (size_t set = 0; set < sets; ++set) {
        if (name[set] < 0 && !taken[set]) give(set, set);
    }
    for (size_t set = 0; set < sets; ++set) {
        for (size_t old = 0; name[set] < 0; ++old) {
            if (!taken[old] && kind[old] == kind[set]) give(set, old);
        }
    }
    return name;
}

}  // namespace moelink::eplb
