// Where the ranks of a transfer stand to each other.
#pragma once

#include <moelink/eplb_transfer.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moelink::eplb {

struct Topology {
    int ranks = 0;
    int rank_slots = 0;
    std::vector<int32_t> gpu;   // [ranks]; each is in one node
    std::vector<int32_t> node;  // [ranks]

    int slots() const { return ranks * rank_slots; }
    int rank_of(int slot) const { return slot / rank_slots; }
    // MOELINK_EPLB_HOP_*. GPUs lie in nodes, so of three ranks the two longest hops are equal.
    int hop(int a, int b) const {
        if (a == b) return MOELINK_EPLB_HOP_RANK;
        if (gpu[size_t(a)] == gpu[size_t(b)]) return MOELINK_EPLB_HOP_GPU;
        return node[size_t(a)] == node[size_t(b)] ? MOELINK_EPLB_HOP_NODE : MOELINK_EPLB_HOP_NET;
    }
};

}  // namespace moelink::eplb
