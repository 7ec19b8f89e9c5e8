#include "eplb/maps.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace moelink::eplb {

void count_copies(std::span<const int32_t> phy2log, std::span<int32_t> counts) {
    std::fill(counts.begin(), counts.end(), 0);
    for (int32_t expert : phy2log) {
        if (expert >= 0) ++counts[size_t(expert)];
    }
}

void invert_map(std::span<const int32_t> phy2log, std::span<const int32_t> replica, int width, std::span<int32_t> log2phy) {
    std::fill(log2phy.begin(), log2phy.end(), -1);
    std::vector<int32_t> seen(replica.empty() ? log2phy.size() / size_t(width) : 0, 0);
    for (size_t slot = 0; slot < phy2log.size(); ++slot) {
        if (phy2log[slot] < 0) continue;
        size_t expert = size_t(phy2log[slot]);
        int32_t column = replica.empty() ? seen[expert]++ : replica[slot];
        log2phy[expert * size_t(width) + size_t(column)] = int32_t(slot);
    }
}

void preserve_slots(std::span<const int32_t> previous, std::span<const int32_t> phy2log, int rank_slots, std::span<int32_t> out) {
    size_t slots = size_t(rank_slots);
    std::vector<std::pair<int32_t, int32_t>> fresh(slots);  // the rank's new experts, sorted, each with its place
    std::vector<uint8_t> used(slots);
    std::vector<int32_t> result(slots);
    for (size_t start = 0; start < phy2log.size(); start += slots) {
        for (size_t i = 0; i < slots; ++i) fresh[i] = {phy2log[start + i], int32_t(i)};
        std::sort(fresh.begin(), fresh.end());
        std::fill(used.begin(), used.end(), uint8_t{0});
        std::vector<size_t> open;
        for (size_t i = 0; i < slots; ++i) {
            // Of several copies the first that is left.
            auto found = std::lower_bound(fresh.begin(), fresh.end(), std::pair{previous[start + i], int32_t{0}});
            while (found != fresh.end() && found->first == previous[start + i] && used[size_t(found->second)]) ++found;
            if (found == fresh.end() || found->first != previous[start + i]) {
                open.push_back(i);
                continue;
            }
            used[size_t(found->second)] = 1;
            result[i] = previous[start + i];
        }
        auto next = open.begin();
        for (size_t i = 0; i < slots; ++i) {
            if (!used[i]) result[*next++] = phy2log[start + i];
        }
        std::copy(result.begin(), result.end(), out.begin() + ptrdiff_t(start));
    }
}

}  // namespace moelink::eplb
