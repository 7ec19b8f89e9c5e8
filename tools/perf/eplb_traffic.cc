#include "eplb_traffic.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>

#include <fmt/format.h>

#include "loads.hpp"
#include "routing.hpp"

namespace perf {

namespace {

constexpr int turn = 37;  // experts by which a repeated layer is turned: shares no factor with usual numbers of experts

std::vector<double> stretch(const std::vector<double> &loads, int layers, int experts, const EplbOptions &options) {
    std::vector<double> result(static_cast<size_t>(options.layers) * static_cast<size_t>(options.experts));
    for (int layer = 0; layer < options.layers; ++layer) {
        for (int expert = 0; expert < experts; ++expert) {
            const int turned = (expert + layer / layers * turn) % experts;
            result[static_cast<size_t>(layer) * static_cast<size_t>(options.experts) + static_cast<size_t>(turned % options.experts)] +=
                loads[static_cast<size_t>(layer % layers) * static_cast<size_t>(experts) + static_cast<size_t>(expert)];
        }
    }
    return result;
}

}  // namespace

std::vector<Topic> read_topics(EplbOptions &options) {
    const LoadTrace trace = read_loads(options.loads);
    options.layers = options.layers == 0 ? trace.layers : options.layers;
    options.experts = options.experts == 0 ? trace.experts : options.experts;
    if (options.experts > trace.experts) {
        throw std::invalid_argument(
            fmt::format("--experts is {} but {} has loads of {} experts only", options.experts, options.loads, trace.experts));
    }
    const int changes = static_cast<int>(trace.steps.size()) - 1;
    if (changes < 1) {
        throw std::invalid_argument(fmt::format("{} has one step; traffic that changes needs at least two", options.loads));
    }
    options.changes = options.changes == 0 ? changes : std::min(options.changes, changes);
    options.slots = options.slots == 0 ? default_slots(options.experts, options.ranks) : options.slots;
    if (options.topk > std::min<int>(options.experts, MOELINK_MAX_TOP_K)) {
        throw std::invalid_argument(fmt::format("--topk is {}; at most {} works with {} experts", options.topk,
                                                std::min<int>(options.experts, MOELINK_MAX_TOP_K), options.experts));
    }
    std::vector<Topic> topics;
    for (const LoadStep &step : trace.steps) {
        topics.push_back({step.name, stretch(step.loads, trace.layers, trace.experts, options)});
    }
    return topics;
}

moelink_eplb_shape shape_of(const EplbOptions &options) {
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.layers = options.layers;
    shape.experts = options.experts;
    shape.slots = options.slots;
    shape.ranks = options.ranks;
    shape.threads = 0;  // one a core
    return shape;
}

int32_t policy_of(const std::string &name) {
    if (name == "round-robin") {
        return MOELINK_EPLB_ROUND_ROBIN;
    }
    if (name == "hashed") {
        return MOELINK_EPLB_HASHED;
    }
    if (name == "capacity") {
        return MOELINK_EPLB_CAPACITY;
    }
    throw std::invalid_argument(fmt::format("unknown policy \"{}\"; choose round-robin, hashed or capacity", name));
}

PairOptions pair_of(const EplbOptions &options) {
    PairOptions pair;
    static_cast<RunOptions &>(pair) = options;
    pair.manager = options.manager;
    pair.tokens = {options.tokens};
    pair.topk = options.topk;
    pair.experts = options.slots;
    pair.hidden = options.hidden;
    pair.dtype = options.dtype;
    pair.iterations = options.iterations;
    pair.warmup = options.warmup;
    return pair;
}

World traffic(const Session &session, const EplbOptions &options, const Topic &topic, const Map &map) {
    Routing routing{topic.name, {topic.loads.begin(), topic.loads.begin() + options.experts}, nullptr, ""};
    lift_zeros(routing, options.topk);
    World world(pair_of(options), routing, options.tokens);

    moelink_eplb_map *made = nullptr;
    const moelink_eplb_shape shape = shape_of(options);
    must(moelink_eplb_map_create(session.group(), &shape, map.data(), &made), "moelink_eplb_map_create");
    const std::unique_ptr<moelink_eplb_map, decltype(&moelink_eplb_map_destroy)> owner(made, &moelink_eplb_map_destroy);
    auto &mine = world.ids[static_cast<size_t>(session.rank())];
    const uint64_t bytes = mine.size() * sizeof(int32_t);
    Device &device = session.device();
    void *ids = device.alloc(bytes);
    device.copy_in(ids, mine.data(), bytes);
    moelink_eplb_route_args args = MOELINK_EPLB_ROUTE_ARGS_INIT;
    args.policy = policy_of(options.policy);
    args.num_tokens = options.tokens;
    args.top_k = options.topk;
    args.seed = static_cast<uint64_t>(session.rank());
    args.logical_ids = ids;
    args.physical_ids = ids;
    must(moelink_eplb_route(made, &args, device.stream()), "moelink_eplb_route");
    device.sync();
    device.copy_out(mine.data(), ids, bytes);
    device.free_all();
    std::vector<int32_t> all(mine.size() * static_cast<size_t>(options.ranks));
    must(moelink_group_allgather(session.group(), mine.data(), all.data(), bytes), "moelink_group_allgather");
    for (size_t rank = 0; rank < world.ids.size(); ++rank) {
        world.ids[rank].assign(all.begin() + static_cast<ptrdiff_t>(rank * mine.size()),
                               all.begin() + static_cast<ptrdiff_t>((rank + 1) * mine.size()));
    }
    return world;
}

}  // namespace perf
