#include "eplb/bound.hpp"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

namespace moelink::eplb {

std::vector<double> lower_bounds(const Cluster &cluster, std::span<const double> load) {
    // With up to c copies on distinct ranks an expert's time is at least its load / reach[c]: its slowest copy is no faster than
    // the c-th fastest rank, and fewer copies may do better.
    std::vector<double> speed;
    for (double slowness : cluster.slowness) speed.push_back(1 / slowness);
    std::sort(speed.begin(), speed.end(), std::greater<>{});
    std::vector<double> reach(speed.size() + 1, 0.0);
    double total_speed = 0;
    for (size_t copies = 1; copies <= speed.size(); ++copies) {
        reach[copies] = std::max(reach[copies - 1], double(copies) * speed[copies - 1]);
        total_speed += speed[copies - 1];
    }

    size_t experts = size_t(cluster.experts);
    size_t steps = size_t(cluster.steps);
    std::vector<double> bounds(steps);
    std::vector<std::pair<double, size_t>> heap(experts);
    std::vector<size_t> copies(experts);
    for (size_t step = 0; step < steps; ++step) {
        double sum = 0;
        for (size_t expert = 0; expert < experts; ++expert) {
            sum += load[expert * steps + step];
            heap[expert] = {load[expert * steps + step] / reach[1], expert};
        }
        std::fill(copies.begin(), copies.end(), size_t{1});
        std::make_heap(heap.begin(), heap.end());
        double even = sum / total_speed;
        for (int spare = cluster.slots() - cluster.experts; spare > 0 && heap.front().first > even; --spare) {
            size_t expert = heap.front().second;
            if (copies[expert] == speed.size()) break;
            std::pop_heap(heap.begin(), heap.end());
            heap.back().first = load[expert * steps + step] / reach[++copies[expert]];
            std::push_heap(heap.begin(), heap.end());
        }
        bounds[step] = std::max(even, heap.front().first);
    }
    return bounds;
}

double even_time(const Cluster &cluster, std::span<const double> load) {
    double speed = 0;
    for (double slowness : cluster.slowness) speed += 1 / slowness;
    return std::accumulate(load.begin(), load.end(), 0.0) / speed;
}

}  // namespace moelink::eplb
