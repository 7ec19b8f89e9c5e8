// What a caller asks for, checked, and both maps brought to one numbering of ranks.
#include "base/error.hpp"
#include "base/guard.hpp"
#include "base/params.hpp"
#include "eplb/transfer_plan.hpp"

#include <algorithm>
#include <cmath>
#include <map>

namespace moelink::eplb {

namespace {

void check_ranks(const Shape &shape, moelink_eplb_transfer_params &params) {
    for (int32_t *ranks : {&params.old_ranks, &params.new_ranks}) {
        if (*ranks == 0) *ranks = shape.ranks;
        check_size(*ranks, MOELINK_EPLB_MAX_RANKS, ranks == &params.old_ranks ? "params.old_ranks" : "params.new_ranks");
    }
    if (params.rank_mapping == nullptr) {
        if (params.old_ranks != shape.ranks || params.new_ranks != shape.ranks) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "{} old and {} new ranks are not the {} of shape; that needs a rank_mapping", params.old_ranks,
                 params.new_ranks, shape.ranks);
        }
        return;
    }
    if (params.new_ranks != shape.ranks && (params.old_ranks != shape.ranks || params.new_ranks > shape.ranks)) {
        fail(MOELINK_ERR_INVALID_ARGUMENT,
             "shape has {} ranks; they must be the new ranks ({}), or the old ones ({}) where there are fewer new ones", shape.ranks,
             params.new_ranks, params.old_ranks);
    }
    std::vector<int> taken(size_t(params.new_ranks), -1);
    for (int rank = 0; rank < params.old_ranks; ++rank) {
        int32_t to = params.rank_mapping[rank];
        if (to < -1 || to >= params.new_ranks) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_mapping has {} for old rank {}; it must be -1 or one of {} new ranks", to, rank,
                 params.new_ranks);
        }
        if (to < 0) continue;
        if (taken[size_t(to)] >= 0) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_mapping makes new rank {} of both old rank {} and old rank {}", to, taken[size_t(to)],
                 rank);
        }
        taken[size_t(to)] = rank;
    }
    auto missing = std::find(taken.begin(), taken.end(), -1);
    if (params.new_ranks != shape.ranks && missing != taken.end()) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_mapping makes no old rank new rank {}; scaling down, every new rank must be an old one",
             missing - taken.begin());
    }
}

// [layers, slots] of a map [layers, ranks * slots a rank]; to [ranks]: the rank in the result of each, or -1 to leave it out.
std::vector<int32_t> renumber(const Shape &shape, const int32_t *map, int ranks, const std::vector<int> &to) {
    std::vector<int32_t> result(shape.all_slots(), -1);
    int64_t width = shape.rank_slots();
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
        for (int rank = 0; rank < ranks; ++rank) {
            if (to[size_t(rank)] < 0) continue;
            std::copy_n(map + (layer * ranks + rank) * width, width,
                        result.begin() + layer * shape.slots + int64_t{to[size_t(rank)]} * width);
        }
    }
    return result;
}

void check_given_map(const Shape &shape, const int32_t *map, int ranks, const char *name) {
    Shape own = shape;
    own.ranks = ranks;
    own.slots = ranks * shape.rank_slots();
    check_size(own.slots, MOELINK_EPLB_MAX_SLOTS, "the slots of all ranks");
    check_map(own, not_null(map, name), name);
}

void read_maps(TransferTask &task) {
    const moelink_eplb_transfer_params &params = task.params;
    check_given_map(task.shape, params.old_map, params.old_ranks, "old_map");
    check_given_map(task.shape, params.new_map, params.new_ranks, "new_map");
    std::vector<int> old_to(size_t(params.old_ranks)), new_to(size_t(params.new_ranks));
    for (int rank = 0; rank < params.old_ranks; ++rank) old_to[size_t(rank)] = rank;
    for (int rank = 0; rank < params.new_ranks; ++rank) new_to[size_t(rank)] = rank;
    if (params.rank_mapping != nullptr) {
        bool act_as_new = params.new_ranks == task.shape.ranks;
        for (int rank = 0; rank < params.old_ranks; ++rank) {
            int32_t to = params.rank_mapping[rank];
            if (act_as_new) old_to[size_t(rank)] = to;
            if (!act_as_new && to >= 0) new_to[size_t(to)] = rank;
        }
    }
    task.old_map = renumber(task.shape, params.old_map, params.old_ranks, old_to);
    task.new_map = renumber(task.shape, params.new_map, params.new_ranks, new_to);
}

void read_topology(TransferTask &task) {
    const Shape &shape = task.shape;
    task.topology.ranks = shape.ranks;
    task.topology.rank_slots = shape.rank_slots();
    std::map<int32_t, int> node_of_gpu;
    for (int rank = 0; rank < shape.ranks; ++rank) {
        int32_t gpu = task.params.rank_gpu == nullptr ? rank : task.params.rank_gpu[rank];
        int node = shape.node_of(rank);
        auto [known, fresh] = node_of_gpu.emplace(gpu, node);
        if (!fresh && known->second != node) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "rank_gpu has GPU {} in node {} and, with rank {}, in node {}", gpu, known->second, rank, node);
        }
        task.topology.gpu.push_back(gpu);
        task.topology.node.push_back(node);
    }
}

void check_rates(const moelink_eplb_transfer_params &params) {
    for (double rate : {params.gpu_rate, params.node_rate, params.net_rate}) {
        if (!std::isfinite(rate) || rate < 0) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "a rate is {} bytes/s; rates must be finite and 0 or more", rate);
        }
    }
    if (params.expert_bytes == nullptr && (params.step_bytes > 0 || params.step_ns > 0)) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.step_bytes is {} and step_ns {}, but expert_bytes is NULL", params.step_bytes, params.step_ns);
    }
}

}  // namespace

TransferTask read_transfer(const moelink_eplb_shape *given, const moelink_eplb_transfer_params *params) {
    const moelink_eplb_transfer_params defaults = MOELINK_EPLB_TRANSFER_PARAMS_INIT;
    TransferTask task;
    task.shape = read_shape(given);
    task.params = read_params(params, defaults, "params");
    if ((task.params.flags & ~uint32_t{MOELINK_EPLB_TRANSFER_F_SKIP_LOST | MOELINK_EPLB_TRANSFER_F_OVERLAP}) != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.flags has {:#x}, of which not all is known", task.params.flags);
    }
    if (task.params.reserved != 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "params.reserved is {}; it must be 0", task.params.reserved);
    check_size(task.params.staging, MOELINK_EPLB_MAX_SLOTS, "params.staging");
    check_rates(task.params);
    check_ranks(task.shape, task.params);
    read_maps(task);
    read_topology(task);
    if (task.params.expert_bytes != nullptr) {
        task.expert_bytes.assign(task.params.expert_bytes, task.params.expert_bytes + task.shape.layers);
    }
    return task;
}

}  // namespace moelink::eplb
