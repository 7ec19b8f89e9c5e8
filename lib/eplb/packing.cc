#include "eplb/packing.hpp"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace moelink::eplb {

void pack_items(std::span<const float> load, int packs, std::span<int32_t> pack, std::span<int32_t> place) {
    int items = int(load.size());
    int capacity = items / packs;
    if (capacity == 1) {
        std::iota(pack.begin(), pack.end(), 0);
        std::fill(place.begin(), place.end(), 0);
        return;
    }
    std::vector<std::pair<float, int>> order;
    order.reserve(size_t(items));
    for (int item = 0; item < items; ++item) order.emplace_back(-load[size_t(item)], item);
    std::sort(order.begin(), order.end());

    // The packs with room, the lightest on top.
    std::vector<std::pair<float, int>> heap;
    std::vector<int32_t> filled(size_t(packs), 0);
    for (int i = 0; i < packs; ++i) heap.emplace_back(0.0f, i);
    for (auto [negative, item] : order) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
        auto &[weight, lightest] = heap.back();
        pack[size_t(item)] = lightest;
        place[size_t(item)] = filled[size_t(lightest)]++;
        weight -= negative;
        if (filled[size_t(lightest)] == capacity) {
            heap.pop_back();
        } else {
            std::push_heap(heap.begin(), heap.end(), std::greater<>{});
        }
    }
}

}  // namespace moelink::eplb
