#include "eplb/figures.hpp"

#include "base/error.hpp"
#include "eplb/bound.hpp"
#include "eplb/home.hpp"
#include "eplb/maps.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

namespace moelink::eplb {

namespace {

double balance(double even, double time) {
    if (time < 0) return 0;
    return time == 0 ? 1 : even / time;
}

// Copies, costs and sources of the change from the previous map to `fresh`, both on active ranks.
class Transfers {
public:
    Transfers(const Request &request, std::span<const double> load, std::vector<int32_t> before)
        : request_(request), cluster_(request.cluster), before_(std::move(before)), layout_(cluster_, load), home_(&layout_) {
        for (int slot = 0; slot < cluster_.slots(); ++slot) {
            int32_t expert = before_[size_t(slot)];
            if (expert < 0 || !layout_.held(cluster_.rank_of(slot), expert)) layout_.set(slot, expert);
        }
    }

    // sources [slots of active ranks], or empty.
    void count(const std::vector<int32_t> &fresh, LayerFigures &figures, std::span<int32_t> sources) {
        for (int rank = 0; rank < cluster_.ranks; ++rank) count_rank(rank, fresh, figures, sources);
    }

private:
    void count_rank(int rank, const std::vector<int32_t> &fresh, LayerFigures &figures, std::span<int32_t> sources) {
        int start = rank * cluster_.capacity;
        // Of two copies on a rank the second is a local one.
        std::vector<int32_t> incoming;
        for (int slot = start; slot < start + cluster_.capacity; ++slot) {
            int32_t expert = fresh[size_t(slot)];
            bool seen = std::find(incoming.begin(), incoming.end(), expert) != incoming.end();
            if (expert >= 0 && !layout_.held(rank, expert) && !seen) incoming.push_back(expert);
        }
        std::vector<int> from;
        if (!home_.sources(rank, incoming, cluster_.max_pair_copies, from)) home_.sources(rank, incoming, 0, from);
        std::map<int, int32_t> uses;
        for (size_t i = 0; i < incoming.size(); ++i) {
            figures.result.cost += home_.cost(incoming[i], rank);
            if (from[i] < 0) continue;
            ++figures.result.copies;
            figures.largest_pair = std::max(figures.largest_pair, ++uses[from[i]]);
            const Shape &shape = request_.shape;
            if (shape.node_of(cluster_.rank_id[size_t(from[i])]) != shape.node_of(cluster_.rank_id[size_t(rank)])) ++figures.node_copies;
        }

        std::vector<uint8_t> counted(incoming.size(), 0);
        for (int slot = start; slot < start + cluster_.capacity; ++slot) {
            int32_t expert = fresh[size_t(slot)];
            int32_t source = -1;
            if (expert >= 0 && before_[size_t(slot)] == expert) {
                source = slot;
            } else if (expert >= 0 && layout_.held(rank, expert)) {
                ++figures.result.local;
                source = slot_on(rank, expert);
            } else if (expert >= 0) {
                size_t which = size_t(std::find(incoming.begin(), incoming.end(), expert) - incoming.begin());
                if (from[which] >= 0) {
                    source = slot_on(from[which], expert);
                    if (counted[which]) ++figures.result.local;
                } else {
                    ++figures.result.lost;
                }
                counted[which] = 1;
            }
            if (!sources.empty()) sources[size_t(slot)] = source;
        }
    }

    int32_t slot_on(int rank, int32_t expert) const {
        int slot = layout_.first(expert);
        while (cluster_.rank_of(slot) != rank) slot = layout_.next(slot);
        return slot;
    }

    const Request &request_;
    const Cluster &cluster_;
    std::vector<int32_t> before_;
    Layout layout_;
    Home home_;
};

}  // namespace

double map_time(const Cluster &cluster, std::span<const double> load, std::span<const int32_t> active) {
    std::vector<int32_t> counts(static_cast<size_t>(cluster.experts));
    count_copies(active, counts);
    size_t steps = size_t(cluster.steps);
    for (size_t i = 0; i < load.size(); ++i) {
        if (load[i] > 0 && counts[i / steps] == 0) return -1;
    }
    std::vector<double> most(steps, 0.0);
    std::vector<double> time(steps);
    for (int rank = 0; rank < cluster.ranks; ++rank) {
        std::fill(time.begin(), time.end(), 0.0);
        for (int slot = rank * cluster.capacity; slot < (rank + 1) * cluster.capacity; ++slot) {
            if (active[size_t(slot)] < 0) continue;
            size_t expert = size_t(active[size_t(slot)]);
            for (size_t step = 0; step < steps; ++step) time[step] += load[expert * steps + step] / counts[expert];
        }
        for (size_t step = 0; step < steps; ++step) most[step] = std::max(most[step], time[step] * cluster.slowness[size_t(rank)]);
    }
    return std::accumulate(most.begin(), most.end(), 0.0);
}

LayerFigures rate_layer(const Request &request, int layer, std::span<const int32_t> phy2log, std::span<int32_t> sources) {
    const Cluster &cluster = request.cluster;
    std::vector<double> load = request.layer_load(layer);
    std::vector<double> bounds = lower_bounds(cluster, load);
    std::vector<int32_t> fresh = request.to_active(phy2log);
    LayerFigures figures;
    figures.even = even_time(cluster, load);
    figures.result.bound = std::accumulate(bounds.begin(), bounds.end(), 0.0);
    figures.result.time_after = map_time(cluster, load, fresh);
    if (figures.result.time_after < 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "phy2log has an expert in layer {} that has load, but no copy on an active rank", layer);
    }
    figures.result.balance_after = balance(figures.even, figures.result.time_after);
    figures.changed = true;
    std::vector<int32_t> active_sources(sources.empty() ? 0 : fresh.size(), -1);
    std::span<const int32_t> previous = request.previous(layer);
    if (!previous.empty()) {
        std::vector<int32_t> before = request.to_active(previous);
        double time = map_time(cluster, load, before);
        figures.result.time_before = std::max(0.0, time);
        figures.result.balance_before = balance(figures.even, time);
        figures.changed = !std::equal(previous.begin(), previous.end(), phy2log.begin());
        Transfers(request, load, before).count(fresh, figures, active_sources);
    }
    if (!sources.empty()) {
        // From slots of active ranks to the caller's.
        for (int32_t &source : active_sources) {
            if (source < 0) continue;
            int rank = cluster.rank_of(source);
            source += (cluster.rank_id[size_t(rank)] - rank) * cluster.capacity;
        }
        request.from_active(active_sources, sources);
    }
    return figures;
}

moelink_eplb_plan_result sum_up(const Request &request, std::span<const LayerFigures> layers) {
    moelink_eplb_plan_result sum = MOELINK_EPLB_PLAN_RESULT_INIT;
    double count = double(layers.size());
    bool complete = true;
    for (const LayerFigures &layer : layers) {
        const moelink_eplb_layer_result &one = layer.result;
        sum.flags |= one.flags;
        sum.bound += one.bound;
        sum.time_before += one.time_before;
        sum.time_after += one.time_after;
        if (one.balance_before == 0) complete = false;
        sum.balance_before += one.balance_before / count;
        sum.balance_after += one.balance_after / count;
        sum.balance_bound += balance(layer.even, one.bound) / count;
        sum.cost += one.cost;
        sum.copies += one.copies;
        sum.lost += one.lost;
        sum.local += one.local;
        sum.node_copies += layer.node_copies;
        sum.largest_pair = std::max(sum.largest_pair, layer.largest_pair);
        if (layer.changed) ++sum.changed_layers;
    }
    if (!complete) sum.time_before = 0;
    if (sum.time_before > 0) sum.gain = 1 - sum.time_after / sum.time_before;
    sum.bytes = uint64_t(sum.copies) * request.params.expert_bytes;
    sum.node_bytes = uint64_t(sum.node_copies) * request.params.expert_bytes;
    return sum;
}

}  // namespace moelink::eplb
