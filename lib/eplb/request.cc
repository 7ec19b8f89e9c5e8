#include "eplb/request.hpp"

#include "base/error.hpp"
#include "base/params.hpp"
#include "eplb/loads.hpp"

#include <algorithm>
#include <cmath>

namespace moelink::eplb {

namespace {

void check_number(double value, double least, const char *name) {
    if (!std::isfinite(value) || value < least) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.{} is {}; it must be finite and {} or more", name, value, least);
    }
}

void check_plan_params(const Shape &shape, const moelink_eplb_plan_params &params) {
    if ((params.flags & ~uint32_t{MOELINK_EPLB_PLAN_F_FROM_SCRATCH}) != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.flags has {:#x}, of which not all is known", params.flags);
    }
    check_number(params.target, 1, "target");
    check_number(params.move_cost, 0, "move_cost");
    check_number(params.min_gain, 0, "min_gain");
    if (params.max_copies < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "params.max_copies is {}; it must be 0 or more", params.max_copies);
    if (params.max_pair_copies < 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.max_pair_copies is {}; it must be 0 or more", params.max_pair_copies);
    }
    if (params.max_bytes > 0 && params.expert_bytes == 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.max_bytes is {}, but expert_bytes is 0", params.max_bytes);
    }
    if (params.pinned == nullptr) return;
    if (params.previous == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "params.pinned is given, but previous is NULL");
    std::vector<int> pinned_at(size_t(shape.experts), -1);  // the rank, of all layers, that pins the expert
    for (size_t i = 0; i < shape.all_slots(); ++i) {
        int32_t expert = params.previous[i];
        if (params.pinned[i] == 0 || expert < 0) continue;
        int rank = int(i / size_t(shape.rank_slots()));
        if (pinned_at[size_t(expert)] == rank) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "layer {} has expert {} pinned twice on rank {}", i / size_t(shape.slots), expert,
                 rank % shape.ranks);
        }
        pinned_at[size_t(expert)] = rank;
    }
}

void read_ranks(const Shape &shape, const moelink_eplb_plan_params &params, Cluster &cluster) {
    for (int rank = 0; rank < shape.ranks; ++rank) {
        if (params.rank_active != nullptr && params.rank_active[rank] == 0) continue;
        double speed = params.rank_speed == nullptr ? 1.0 : params.rank_speed[rank];
        if (!std::isfinite(speed) || speed < 1e-6 || speed > 1e6) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "params.rank_speed of rank {} is {}; it must be in 1e-6 .. 1e6", rank, speed);
        }
        cluster.rank_id.push_back(rank);
        cluster.slowness.push_back(1 / speed);
        cluster.zone.push_back(shape.hierarchical() ? shape.node_of(rank) : 0);
    }
    cluster.ranks = int(cluster.rank_id.size());
    if (cluster.ranks == 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "none of {} ranks is active", shape.ranks);
}

void read_distances(const Shape &shape, const moelink_eplb_plan_params &params, Cluster &cluster) {
    check_number(params.node_distance, 1, "node_distance");
    if (params.distance == nullptr && (shape.nodes == 1 || params.node_distance == 1.0)) return;
    for (int from : cluster.rank_id) {
        for (int to : cluster.rank_id) {
            double distance = shape.node_of(from) == shape.node_of(to) ? 1.0 : params.node_distance;
            if (params.distance != nullptr) distance = params.distance[size_t(from) * size_t(shape.ranks) + size_t(to)];
            if (!std::isfinite(distance) || distance < 0) {
                fail(MOELINK_ERR_INVALID_ARGUMENT, "params.distance from rank {} to {} is {}; it must be finite and 0 or more", from, to,
                     distance);
            }
            cluster.distance.push_back(distance);
        }
    }
}

}  // namespace

Request read_request(const moelink_eplb_shape *given_shape, const moelink_eplb_plan_params *given, bool for_plan) {
    Request request;
    request.shape = read_shape(given_shape);
    const Shape &shape = request.shape;
    const moelink_eplb_plan_params defaults = MOELINK_EPLB_PLAN_PARAMS_INIT;
    request.params = read_params(given, defaults, "params");
    const moelink_eplb_plan_params &params = request.params;
    check_size(params.steps, MOELINK_EPLB_MAX_STEPS, "params.steps");
    if (params.previous != nullptr) check_map(shape, params.previous, "params.previous");
    if (for_plan) check_plan_params(shape, params);

    Cluster &cluster = request.cluster;
    cluster.experts = shape.experts;
    cluster.capacity = shape.rank_slots();
    cluster.steps = params.steps;
    cluster.zones = shape.hierarchical() ? shape.nodes : 1;
    cluster.groups = shape.groups;
    cluster.max_pair_copies = params.max_pair_copies;
    read_ranks(shape, params, cluster);
    read_distances(shape, params, cluster);
    if (for_plan && cluster.slots() < shape.experts) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} active ranks have {} slots, fewer than {} experts", cluster.ranks, cluster.slots(),
             shape.experts);
    }
    check_loads(params.load, params.steps, shape.layers, shape.experts);
    return request;
}

std::vector<double> Request::layer_load(int layer) const {
    size_t experts = size_t(shape.experts);
    size_t steps = size_t(params.steps);
    std::vector<double> load(experts * steps);
    for (size_t step = 0; step < steps; ++step) {
        const double *from = params.load + (step * size_t(shape.layers) + size_t(layer)) * experts;
        for (size_t expert = 0; expert < experts; ++expert) load[expert * steps + step] = from[expert];
    }
    return load;
}

std::vector<int32_t> Request::to_active(std::span<const int32_t> slots) const {
    std::vector<int32_t> active(static_cast<size_t>(cluster.slots()));
    for (int rank = 0; rank < cluster.ranks; ++rank) {
        std::copy_n(slots.begin() + ptrdiff_t(cluster.rank_id[size_t(rank)]) * cluster.capacity, cluster.capacity,
                    active.begin() + ptrdiff_t(rank) * cluster.capacity);
    }
    return active;
}

void Request::from_active(std::span<const int32_t> active, std::span<int32_t> slots) const {
    std::fill(slots.begin(), slots.end(), empty_slot);
    for (int rank = 0; rank < cluster.ranks; ++rank) {
        std::copy_n(active.begin() + ptrdiff_t(rank) * cluster.capacity, cluster.capacity,
                    slots.begin() + ptrdiff_t(cluster.rank_id[size_t(rank)]) * cluster.capacity);
    }
}

std::span<const int32_t> Request::previous(int layer) const {
    if (params.previous == nullptr) return {};
    return {params.previous + size_t(layer) * size_t(shape.slots), size_t(shape.slots)};
}

}  // namespace moelink::eplb
