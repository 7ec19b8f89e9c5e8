#include "eplb/rebalance.hpp"

#include "eplb/packing.hpp"
#include "eplb/replicate.hpp"

#include <vector>

namespace moelink::eplb {

namespace {

// The experts of each node in turn: groups in the order in which they came to the node.
std::vector<int32_t> experts_by_node(std::span<const float> load, int groups, int nodes) {
    size_t size = load.size() / size_t(groups);
    std::vector<float> group_load(size_t(groups), 0.0f);
    for (size_t expert = 0; expert < load.size(); ++expert) group_load[expert / size] += load[expert];
    std::vector<int32_t> node(static_cast<size_t>(groups));
    std::vector<int32_t> place(static_cast<size_t>(groups));
    pack_items(group_load, nodes, node, place);

    std::vector<int32_t> order(load.size());
    size_t node_groups = size_t(groups / nodes);
    for (size_t group = 0; group < size_t(groups); ++group) {
        size_t start = (size_t(node[group]) * node_groups + size_t(place[group])) * size;
        for (size_t i = 0; i < size; ++i) order[start + i] = int32_t(group * size + i);
    }
    return order;
}

}  // namespace

void rebalance_layer(const Shape &shape, std::span<const float> load, std::span<int32_t> phy2log, std::span<int32_t> replica,
                     std::span<int32_t> counts) {
    int nodes = shape.hierarchical() ? shape.nodes : 1;
    int groups = shape.hierarchical() ? shape.groups : 1;
    std::vector<int32_t> order = experts_by_node(load, groups, nodes);

    size_t node_experts = load.size() / size_t(nodes);
    size_t node_slots = phy2log.size() / size_t(nodes);
    size_t rank_slots = size_t(shape.rank_slots());
    std::vector<float> expert_load(node_experts);
    std::vector<float> copy_load(node_slots);
    std::vector<int32_t> expert_of(node_slots), copy(node_slots), rank(node_slots), place(node_slots), copies(node_experts);
    for (size_t node = 0; node < size_t(nodes); ++node) {
        const int32_t *experts = order.data() + node * node_experts;
        for (size_t i = 0; i < node_experts; ++i) expert_load[i] = load[size_t(experts[i])];
        replicate_experts(expert_load, expert_of, copy, copies);
        for (size_t i = 0; i < node_slots; ++i) {
            copy_load[i] = expert_load[size_t(expert_of[i])] / float(copies[size_t(expert_of[i])]);
        }
        pack_items(copy_load, shape.ranks / nodes, rank, place);
        for (size_t i = 0; i < node_slots; ++i) {
            size_t slot = node * node_slots + size_t(rank[i]) * rank_slots + size_t(place[i]);
            phy2log[slot] = experts[expert_of[i]];
            replica[slot] = copy[i];
        }
        for (size_t i = 0; i < node_experts; ++i) counts[size_t(experts[i])] = copies[i];
    }
}

}  // namespace moelink::eplb
