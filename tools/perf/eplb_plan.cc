#include "eplb_plan.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <moelink/moelink.h>

#include "loads.hpp"
#include "report.hpp"
#include "session.hpp"

namespace perf {

namespace {

using Map = std::vector<int32_t>;  // phy2log [layers, slots]; empty: none

// A map by one of the two planners, and what it does to the loads that it was made for.
struct Planned {
    Map map;
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    std::vector<moelink_eplb_layer_result> layers;
    double ms = 0;
};

double median_ms(int repeat, const std::function<void()> &body) {
    std::vector<double> times;
    for (int i = 0; i < repeat; ++i) {
        const auto start = std::chrono::steady_clock::now();
        body();
        times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

class Planner {
public:
    Planner(const EplbPlanOptions &options, const LoadTrace &trace) : options_(options) {
        shape_.layers = trace.layers;
        shape_.experts = trace.experts;
        shape_.ranks = options.ranks;
        shape_.slots = options.slots;
        shape_.nodes = options.nodes;
        shape_.groups = options.groups;
        shape_.threads = options.threads;
        if (shape_.slots == 0) {
            shape_.slots = default_slots(trace.experts, options.ranks);
        }
    }

    const moelink_eplb_shape &shape() const { return shape_; }

    // Loads are [steps, layers, experts].
    Planned plan(const std::vector<double> &loads, int steps, const Map &previous) const {
        moelink_eplb_plan_params params = params_of(loads, steps, previous);
        params.target = options_.target;
        params.move_cost = options_.move_cost;
        params.min_gain = options_.min_gain;
        params.max_copies = options_.max_copies;
        params.max_pair_copies = options_.max_pair_copies;
        params.deadline_ns = static_cast<uint64_t>(options_.deadline_ms * 1e6);
        Planned planned = empty();
        planned.ms = median_ms(
            options_.repeat, [&] { must(moelink_eplb_plan(&shape_, &params, planned.map.data(), &planned.result), "moelink_eplb_plan"); });
        return planned;
    }

    // The published algorithm, from scratch as it is, with experts that stay on a rank kept in their slots.
    Planned reference(const std::vector<double> &loads, int steps, const Map &previous) const {
        std::vector<double> sum(loads.size() / static_cast<size_t>(steps));
        for (size_t i = 0; i < loads.size(); ++i) {
            sum[i % sum.size()] += loads[i];
        }
        Planned planned = empty();
        planned.ms = median_ms(options_.repeat, [&] {
            must(moelink_eplb_rebalance(&shape_, sum.data(), planned.map.data(), nullptr, 0, nullptr), "moelink_eplb_rebalance");
            if (!previous.empty()) {
                must(moelink_eplb_preserve(&shape_, previous.data(), planned.map.data(), planned.map.data()), "moelink_eplb_preserve");
            }
        });
        const moelink_eplb_plan_params params = params_of(loads, steps, previous);
        must(moelink_eplb_rate(&shape_, &params, planned.map.data(), &planned.result), "moelink_eplb_rate");
        return planned;
    }

private:
    Planned empty() const {
        Planned planned;
        planned.map.resize(static_cast<size_t>(shape_.layers) * static_cast<size_t>(std::max(shape_.slots, 0)));
        planned.layers.resize(static_cast<size_t>(shape_.layers));
        planned.result.layers = planned.layers.data();
        return planned;
    }

    moelink_eplb_plan_params params_of(const std::vector<double> &loads, int steps, const Map &previous) const {
        moelink_eplb_plan_params params = MOELINK_EPLB_PLAN_PARAMS_INIT;
        params.load = loads.data();
        params.steps = steps;
        params.previous = previous.empty() ? nullptr : previous.data();
        params.expert_bytes = options_.expert_bytes;
        return params;
    }

    const EplbPlanOptions &options_;
    moelink_eplb_shape shape_ = MOELINK_EPLB_SHAPE_INIT;
};

Map read_plan(const std::string &path, const moelink_eplb_shape &shape) {
    moelink_eplb_shape found = MOELINK_EPLB_SHAPE_INIT;
    must(moelink_eplb_plan_load(path.c_str(), &found, nullptr, 0), "moelink_eplb_plan_load");
    if (found.layers != shape.layers || found.experts != shape.experts || found.slots != shape.slots) {
        throw std::invalid_argument(
            fmt::format("{} is a plan of {} layers, {} experts and {} slots; the loads and --slots make {}, {} and {}", path, found.layers,
                        found.experts, found.slots, shape.layers, shape.experts, shape.slots));
    }
    Map map(static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.slots));
    must(moelink_eplb_plan_load(path.c_str(), &found, map.data(), map.size()), "moelink_eplb_plan_load");
    return map;
}

nlohmann::json figures(const Planned &planned, bool had_map) {
    const auto &result = planned.result;
    nlohmann::json row = {{"balance_after", result.balance_after}, {"copies", result.copies},
                          {"node_copies", result.node_copies},     {"local_copies", result.local},
                          {"bytes", result.bytes},                 {"node_bytes", result.node_bytes},
                          {"largest_pair", result.largest_pair},   {"changed_layers", result.changed_layers},
                          {"ms", planned.ms}};
    row["balance_before"] = had_map ? nlohmann::json(result.balance_before) : nlohmann::json(nullptr);
    return row;
}

nlohmann::json plan_row(const std::string &name, const Planned &planned, const Planned &reference, bool had_map) {
    nlohmann::json row = figures(planned, had_map);
    row["step"] = name;
    row["balance_bound"] = planned.result.balance_bound;
    row["time_after"] = planned.result.time_after;
    row["time_bound"] = planned.result.bound;
    row["skipped"] = (planned.result.flags & MOELINK_EPLB_RESULT_SKIPPED) != 0;
    row["cut_short"] = (planned.result.flags & MOELINK_EPLB_RESULT_DEADLINE) != 0;
    row["reference"] = figures(reference, had_map);
    row["layers"] = nlohmann::json::array();
    for (const auto &layer : planned.layers) {
        row["layers"].push_back({{"balance_before", had_map ? nlohmann::json(layer.balance_before) : nlohmann::json(nullptr)},
                                 {"balance_after", layer.balance_after},
                                 {"time_after", layer.time_after},
                                 {"time_bound", layer.bound},
                                 {"copies", layer.copies}});
    }
    return row;
}

std::string cell_of(const nlohmann::json &value) { return value.is_null() ? "-" : fmt::format("{:.4f}", value.get<double>()); }

// Columns of the planner, then those of the published algorithm.
constexpr const char *heads = "{:<20} {:>7} {:>7} {:>7} {:>7} {:>9} {:>9}   {:>7} {:>7} {:>7} {:>9}\n";

void print_head(const moelink_eplb_shape &shape, const EplbPlanOptions &options) {
    fmt::print("MoELink {}\n{} layer{} of {} experts in {} slots on {} ranks", moelink_version_string(), shape.layers,
               shape.layers == 1 ? "" : "s", shape.experts, shape.slots, shape.ranks);
    if (shape.nodes > 1) {
        fmt::print(", {} nodes, {} groups", shape.nodes, shape.groups);
    }
    fmt::print("; {}\n\n", options.loads);
    fmt::print(heads, "", "balance", "", "", "copies", "MiB", "time", "reference", "", "copies", "time");
    fmt::print(heads, "step", "before", "after", "at most", "crossed", "crossed", "ms", "before", "after", "crossed", "ms");
}

void print_row(const nlohmann::json &row, bool with_bytes) {
    const auto &reference = row["reference"];
    std::string name = row["step"];
    if (name.size() > 20) {
        name = name.substr(0, 17) + "...";
    }
    fmt::print(heads, name, cell_of(row["balance_before"]), cell_of(row["balance_after"]), cell_of(row["balance_bound"]),
               row["copies"].get<int64_t>(), with_bytes ? fmt::format("{:.1f}", row["bytes"].get<double>() / (1 << 20)) : "-",
               fmt::format("{:.3f}", row["ms"].get<double>()), cell_of(reference["balance_before"]), cell_of(reference["balance_after"]),
               reference["copies"].get<int64_t>(), fmt::format("{:.3f}", reference["ms"].get<double>()));
    std::fflush(stdout);
}

constexpr const char *legend = R"(
balance    mean over largest rank load, mean over layers; 1 is even. Before: the last step's map under this step's load
at most    certificate: no map of this shape does better
crossed    expert copies that moved between ranks; a first map is not counted
time       of one call, median
reference  the published algorithm, from scratch each step, experts that stay on a rank keep their slot
)";

}  // namespace

int run_eplb_plan(const EplbPlanOptions &options, const std::string &command) {
    check_writable(options.json);
    LoadTrace trace = read_loads(options.loads);
    if (!options.replay) {
        LoadStep all{trace.steps.size() == 1 ? trace.steps.front().name : fmt::format("all {} steps", trace.steps.size()), {}};
        for (const LoadStep &step : trace.steps) {
            all.loads.insert(all.loads.end(), step.loads.begin(), step.loads.end());
        }
        trace.steps = {std::move(all)};
    }
    const Planner planner(options, trace);
    const auto &shape = planner.shape();
    nlohmann::json document = document_head(command);
    document["what"] = "eplb-plan";
    document["loads"] = options.loads;
    document["shape"] = {{"layers", shape.layers}, {"experts", shape.experts}, {"slots", shape.slots},
                         {"ranks", shape.ranks},   {"nodes", shape.nodes},     {"groups", shape.groups}};
    document["expert_bytes"] = options.expert_bytes;
    document["rows"] = nlohmann::json::array();
    const bool show = options.json != "-";
    Map map = options.from.empty() ? Map() : read_plan(options.from, shape);
    Map reference_map = map;
    for (const LoadStep &step : trace.steps) {
        const int steps = static_cast<int>(step.loads.size()) / (trace.layers * trace.experts);
        Planned planned = planner.plan(step.loads, steps, map);
        Planned reference = planner.reference(step.loads, steps, reference_map);
        if (show && document["rows"].empty()) {
            print_head(shape, options);
        }
        document["rows"].push_back(plan_row(step.name, planned, reference, !map.empty()));
        if (show) {
            print_row(document["rows"].back(), options.expert_bytes > 0);
        }
        map = std::move(planned.map);
        reference_map = std::move(reference.map);
    }
    if (show) {
        fmt::print("{}", legend);
    }
    if (!options.save.empty()) {
        must(moelink_eplb_plan_save(options.save.c_str(), &shape, map.data()), "moelink_eplb_plan_save");
    }
    if (!options.json.empty()) {
        write_json(options.json, document);
    }
    return 0;
}

}  // namespace perf
