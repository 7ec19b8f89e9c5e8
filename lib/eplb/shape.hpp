// Sizes of maps and loads, checked once at the door.
#pragma once

#include <moelink/eplb.h>

#include <cstddef>
#include <cstdint>

namespace moelink::eplb {

// Sizes as the interior uses them.
struct Shape {
    int layers = 0;
    int experts = 0;
    int slots = 0;
    int ranks = 0;
    int nodes = 0;
    int groups = 0;
    int threads = 0;

    int rank_slots() const { return slots / ranks; }
    int node_ranks() const { return ranks / nodes; }
    bool hierarchical() const { return groups % nodes == 0; }
    int node_of(int rank) const { return rank / node_ranks(); }
    // Elements of [layers, slots] and so on.
    size_t all_slots() const { return size_t(layers) * size_t(slots); }
};

// A caller's shape, or an error that names the values.
Shape read_shape(const moelink_eplb_shape *given);

// One size of a call that takes no shape.
void check_size(int32_t value, int32_t largest, const char *name);

// Every id of phy2log [layers, slots] is an expert or -1. Errors count layers from first_layer.
void check_map(const Shape &shape, const int32_t *phy2log, const char *name, int first_layer = 0);

}  // namespace moelink::eplb
