#include "eplb/shape.hpp"

#include "base/error.hpp"
#include "base/params.hpp"

namespace moelink::eplb {

void check_size(int32_t value, int32_t largest, const char *name) {
    if (value < 1 || value > largest) fail(MOELINK_ERR_INVALID_ARGUMENT, "{} is {}; it must be in 1 .. {}", name, value, largest);
}

Shape read_shape(const moelink_eplb_shape *given) {
    const moelink_eplb_shape defaults = MOELINK_EPLB_SHAPE_INIT;
    moelink_eplb_shape read = read_params(given, defaults, "shape");
    check_size(read.layers, MOELINK_EPLB_MAX_LAYERS, "shape.layers");
    check_size(read.experts, MOELINK_EPLB_MAX_EXPERTS, "shape.experts");
    check_size(read.slots, MOELINK_EPLB_MAX_SLOTS, "shape.slots");
    check_size(read.ranks, MOELINK_EPLB_MAX_RANKS, "shape.ranks");
    check_size(read.nodes, read.ranks, "shape.nodes");
    check_size(read.groups, read.experts, "shape.groups");
    if (read.slots % read.ranks != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} slots are no multiple of {} ranks", read.slots, read.ranks);
    }
    if (read.ranks % read.nodes != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} ranks are no multiple of {} nodes", read.ranks, read.nodes);
    }
    if (read.experts % read.groups != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} experts are no multiple of {} groups", read.experts, read.groups);
    }
    if (read.threads < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "shape.threads is {}; it must be 0 (automatic) or more", read.threads);
    return {read.layers, read.experts, read.slots, read.ranks, read.nodes, read.groups, read.threads};
}

void check_map(const Shape &shape, const int32_t *phy2log, const char *name, int first_layer) {
    for (size_t i = 0; i < shape.all_slots(); ++i) {
        if (phy2log[i] < -1 || phy2log[i] >= shape.experts) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "{} has {} in layer {}, slot {}; it must be -1 or one of {} experts", name, phy2log[i],
                 size_t(first_layer) + i / size_t(shape.slots), i % size_t(shape.slots), shape.experts);
        }
    }
}

}  // namespace moelink::eplb
