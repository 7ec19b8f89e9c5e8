#include "eplb/choice.hpp"

#include <algorithm>
#include <queue>
#include <tuple>

namespace moelink::eplb {

namespace {

// A gain below this part of the time is rounding.
constexpr double least_gain = 1e-9;
// What costs nothing, or less, counts as this much.
constexpr double least_cost = 1e-6;

}  // namespace

size_t choose(const std::vector<Option> &options, double worth) {
    size_t now = 0;
    for (;;) {
        size_t best = now;
        double best_bargain = 0;
        for (size_t i = 0; i < options.size(); ++i) {
            double gain = options[now].peak - options[i].peak;
            if (gain <= least_gain * options[now].peak) continue;
            double bargain = gain / std::max(options[i].cost - options[now].cost, least_cost);
            if (bargain >= worth && bargain > best_bargain) {
                best = i;
                best_bargain = bargain;
            }
        }
        if (best == now) return now;
        now = best;
    }
}

std::vector<size_t> choose_within(const std::vector<const std::vector<Option> *> &layers, int64_t budget) {
    std::vector<size_t> chosen(layers.size(), 0);
    for (const std::vector<Option> *options : layers) budget -= options->front().copies;

    using Bargain = std::tuple<double, size_t, size_t>;  // gain a copy, -layer, state
    // The best that the budget leaves a layer.
    auto next = [&](size_t layer) {
        const std::vector<Option> &options = *layers[layer];
        const Option &now = options[chosen[layer]];
        Bargain best{0.0, ~layer, 0};
        for (size_t i = 0; i < options.size(); ++i) {
            double gain = now.peak - options[i].peak;
            int64_t copies = options[i].copies - now.copies;
            if (gain <= least_gain * now.peak || copies > std::max<int64_t>(budget, 0)) continue;
            best = std::max(best, Bargain{gain / std::max(double(copies), least_cost), ~layer, i});
        }
        return best;
    };
    std::priority_queue<Bargain> queue;
    for (size_t layer = 0; layer < layers.size(); ++layer) queue.push(next(layer));
    while (!queue.empty()) {
        auto [bargain, negative, state] = queue.top();
        queue.pop();
        if (bargain <= 0) break;
        size_t layer = ~negative;
        int64_t copies = (*layers[layer])[state].copies - (*layers[layer])[chosen[layer]].copies;
        if (copies <= std::max<int64_t>(budget, 0)) {
            chosen[layer] = state;
            budget -= copies;
        }
        queue.push(next(layer));
    }
    return chosen;
}

}  // namespace moelink::eplb
