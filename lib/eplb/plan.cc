// The planner over all layers: each alone, then what they share (budgets, the gain threshold), then the figures.
#include "eplb/plan.hpp"

#include "base/error.hpp"
#include "eplb/choice.hpp"
#include "eplb/incremental.hpp"
#include "eplb/maps.hpp"
#include "eplb/parallel.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace moelink::eplb {

namespace {

LayerPlan plan_one(const Request &request, int layer) {
    const moelink_eplb_plan_params &params = request.params;
    const Cluster &cluster = request.cluster;
    std::vector<double> load = request.layer_load(layer);
    LayerInput input;
    input.cluster = &cluster;
    input.load = load;
    input.fixed.assign(size_t(cluster.slots()), 0);
    input.from_scratch = (params.flags & MOELINK_EPLB_PLAN_F_FROM_SCRATCH) != 0;
    input.target = params.target;
    input.move_cost = params.move_cost;
    std::span<const int32_t> previous = request.previous(layer);
    bool left = false;  // an inactive rank had experts
    if (!previous.empty()) {
        input.previous = request.to_active(previous);
        const uint8_t *pinned = params.pinned == nullptr ? nullptr : params.pinned + size_t(layer) * size_t(request.shape.slots);
        for (int slot = 0; slot < cluster.slots() && pinned != nullptr; ++slot) {
            int rank = cluster.rank_of(slot);
            if (pinned[slot + (cluster.rank_id[size_t(rank)] - rank) * cluster.capacity] == 0) continue;
            input.fixed[size_t(slot)] = 1;
            if (input.previous[size_t(slot)] < 0) input.previous[size_t(slot)] = closed_slot;
        }
        auto used = [](std::span<const int32_t> slots) {
            return std::count_if(slots.begin(), slots.end(), [](int32_t expert) { return expert >= 0; });
        };
        left = used(previous) > used(input.previous);
    }
    LayerPlan plan;
    try {
        plan = plan_layer(input);
    } catch (const Error &error) {
        throw Error(error.status(), fmt::format("layer {}: {}", layer, error.text()));
    }
    if (left) plan.flags |= MOELINK_EPLB_RESULT_REPAIRED;
    return plan;
}

int64_t copy_budget(const moelink_eplb_plan_params &params) {
    int64_t budget = params.max_copies > 0 ? params.max_copies : std::numeric_limits<int64_t>::max();
    if (params.max_bytes > 0) {
        budget = std::min(budget, int64_t(std::min<uint64_t>(params.max_bytes / params.expert_bytes, uint64_t(INT64_MAX))));
    }
    return budget;
}

// A layer's chosen state as the caller numbers slots.
void write_layer(const Request &request, const LayerPlan &plan, size_t option, std::span<int32_t> out) {
    std::vector<int32_t> slots = plan.slots(option);
    // Experts that stay on a rank keep their slots, which the states' own slots need not show.
    if (!plan.previous.empty()) preserve_slots(plan.previous, slots, request.cluster.capacity, slots);
    for (int32_t &expert : slots) expert = std::max(expert, empty_slot);
    request.from_active(slots, out);
}

}  // namespace

Plan make_plan(const Request &request) {
    const Shape &shape = request.shape;
    size_t layers = size_t(shape.layers);
    std::vector<LayerPlan> plans(layers);
    for_each_layer(shape.layers, shape.threads, [&](int layer) { plans[size_t(layer)] = plan_one(request, layer); });

    std::vector<size_t> chosen;
    int64_t budget = copy_budget(request.params);
    if (budget == std::numeric_limits<int64_t>::max()) {
        for (const LayerPlan &plan : plans) chosen.push_back(plan.options.size() - 1);
    } else {
        std::vector<const std::vector<Option> *> options;
        for (const LayerPlan &plan : plans) options.push_back(&plan.options);
        chosen = choose_within(options, budget);
    }

    Plan plan;
    plan.phy2log.resize(shape.all_slots());
    plan.sources.resize(shape.all_slots());
    std::vector<LayerFigures> figures(layers);
    auto write = [&] {
        for_each_layer(shape.layers, shape.threads, [&](int layer) {
            size_t i = size_t(layer);
            size_t start = i * size_t(shape.slots);
            std::span<int32_t> map(plan.phy2log.data() + start, size_t(shape.slots));
            write_layer(request, plans[i], chosen[i], map);
            figures[i] = rate_layer(request, layer, map, {plan.sources.data() + start, size_t(shape.slots)});
            uint32_t flags = plans[i].flags;
            if (chosen[i] < plans[i].anew_from) flags &= ~uint32_t{MOELINK_EPLB_RESULT_ANEW};
            figures[i].result.flags = flags;
        });
        plan.result = sum_up(request, figures);
    };
    write();

    // Repairs stay in any case; what they alone would bring is not the plan's gain.
    double before = 0, after = 0;
    for (size_t i = 0; i < layers; ++i) {
        before += plans[i].options.front().peak;
        after += plans[i].options[chosen[i]].peak;
    }
    bool from_previous = request.params.previous != nullptr;
    if (from_previous && after > before * (1 - request.params.min_gain) && request.params.min_gain > 0) {
        double gain = plan.result.gain;
        std::fill(chosen.begin(), chosen.end(), size_t{0});
        write();
        plan.result.gain = gain;
        plan.result.flags |= MOELINK_EPLB_RESULT_SKIPPED;
    }
    for (const LayerFigures &one : figures) {
        plan.layers.push_back(one.result);
        plan.layers.back().flags |= plan.result.flags & MOELINK_EPLB_RESULT_SKIPPED;
    }
    return plan;
}

Plan rate_map(const Request &request, std::span<const int32_t> phy2log) {
    const Shape &shape = request.shape;
    Plan plan;
    plan.sources.resize(shape.all_slots());
    std::vector<LayerFigures> figures(static_cast<size_t>(shape.layers));
    for_each_layer(shape.layers, shape.threads, [&](int layer) {
        size_t start = size_t(layer) * size_t(shape.slots);
        figures[size_t(layer)] = rate_layer(request, layer, phy2log.subspan(start, size_t(shape.slots)),
                                            {plan.sources.data() + start, size_t(shape.slots)});
    });
    plan.result = sum_up(request, figures);
    for (const LayerFigures &one : figures) plan.layers.push_back(one.result);
    return plan;
}

}  // namespace moelink::eplb
