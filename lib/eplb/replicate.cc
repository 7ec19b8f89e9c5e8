#include "eplb/replicate.hpp"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace moelink::eplb {

void replicate_experts(std::span<const float> load, std::span<int32_t> phy2log, std::span<int32_t> replica, std::span<int32_t> counts) {
    size_t experts = load.size();
    std::iota(phy2log.begin(), phy2log.begin() + ptrdiff_t(experts), 0);
    std::fill(replica.begin(), replica.begin() + ptrdiff_t(experts), 0);
    std::fill(counts.begin(), counts.end(), 1);

    // (load per copy, -expert): the largest on top, of equals the lower index.
    std::vector<std::pair<float, int>> heap;
    heap.reserve(experts);
    for (size_t expert = 0; expert < experts; ++expert) heap.emplace_back(load[expert], -int(expert));
    std::make_heap(heap.begin(), heap.end());
    for (size_t slot = experts; slot < phy2log.size(); ++slot) {
        std::pop_heap(heap.begin(), heap.end());
        auto &[per_copy, negative] = heap.back();
        size_t expert = size_t(-negative);
        phy2log[slot] = int32_t(expert);
        replica[slot] = counts[expert]++;
        per_copy = load[expert] / float(counts[expert]);
        std::push_heap(heap.begin(), heap.end());
    }
}

}  // namespace moelink::eplb
