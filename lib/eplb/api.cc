// The C interface of the published algorithm: checks, then one layer at a time.
#include "base/guard.hpp"
#include "base/params.hpp"
#include "eplb/loads.hpp"
#include "eplb/maps.hpp"
#include "eplb/packing.hpp"
#include "eplb/parallel.hpp"
#include "eplb/rebalance.hpp"
#include "eplb/replicate.hpp"
#include "eplb/shape.hpp"

#include <algorithm>
#include <vector>

namespace {

using namespace moelink;
using namespace moelink::eplb;

// Row `layer` of an array [layers, width].
template <class T>
std::span<T> row(T *array, int layer, int64_t width) {
    return {array + int64_t{layer} * width, size_t(width)};
}

template <class T>
void copy_if(const std::vector<T> &from, T *to) {
    if (to != nullptr) std::copy(from.begin(), from.end(), to);
}

// Throws unless every expert's copies fit into width columns.
void check_width(const std::vector<int32_t> &counts, int experts, int32_t width) {
    auto most = std::max_element(counts.begin(), counts.end());
    if (width >= 1 && *most <= width) return;
    auto place = most - counts.begin();
    fail(MOELINK_ERR_TOO_SMALL, "log2phy has a width of {}, but expert {} has {} copies in layer {}", width, place % experts, *most,
         place / experts);
}

void replicate(const double *load, int32_t layers, int32_t experts, int32_t slots, int32_t *out_phy2log, int32_t *out_replica,
               int32_t *out_counts) {
    check_size(layers, MOELINK_EPLB_MAX_LAYERS, "layers");
    check_size(experts, MOELINK_EPLB_MAX_EXPERTS, "experts");
    check_size(slots, MOELINK_EPLB_MAX_SLOTS, "slots");
    not_null(out_phy2log, "out_phy2log");
    if (slots < experts) fail(MOELINK_ERR_INVALID_ARGUMENT, "{} slots are fewer than {} experts", slots, experts);
    check_loads(load, 1, layers, experts);
    std::vector<float> rounded(static_cast<size_t>(experts));
    std::vector<int32_t> replica(static_cast<size_t>(slots)), counts(static_cast<size_t>(experts));
    for (int layer = 0; layer < layers; ++layer) {
        round_loads(row(load, layer, experts), rounded);
        replicate_experts(rounded, row(out_phy2log, layer, slots), replica, counts);
        if (out_replica != nullptr) copy_if(replica, row(out_replica, layer, slots).data());
        if (out_counts != nullptr) copy_if(counts, row(out_counts, layer, experts).data());
    }
}

void pack(const double *load, int32_t layers, int32_t items, int32_t packs, int32_t *out_pack, int32_t *out_place) {
    check_size(layers, MOELINK_EPLB_MAX_LAYERS, "layers");
    check_size(items, MOELINK_EPLB_MAX_SLOTS, "items");
    check_size(packs, items, "packs");
    not_null(out_pack, "out_pack");
    if (items % packs != 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "{} items are no multiple of {} packs", items, packs);
    check_loads(load, 1, layers, items);
    std::vector<float> rounded(static_cast<size_t>(items));
    std::vector<int32_t> place(static_cast<size_t>(items));
    for (int layer = 0; layer < layers; ++layer) {
        round_loads(row(load, layer, items), rounded);
        pack_items(rounded, packs, row(out_pack, layer, items), place);
        if (out_place != nullptr) copy_if(place, row(out_place, layer, items).data());
    }
}

void rebalance(const moelink_eplb_shape *given, const double *load, int32_t *out_phy2log, int32_t *out_log2phy, int32_t width,
               int32_t *out_counts) {
    Shape shape = read_shape(given);
    not_null(out_phy2log, "out_phy2log");
    if (shape.slots < shape.experts) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} slots are fewer than {} experts", shape.slots, shape.experts);
    }
    check_loads(load, 1, shape.layers, shape.experts);

    std::vector<int32_t> phy2log(shape.all_slots()), replica(shape.all_slots());
    std::vector<int32_t> counts(size_t(shape.layers) * size_t(shape.experts));
    for_each_layer(shape.layers, shape.threads, [&](int layer) {
        std::vector<float> rounded(static_cast<size_t>(shape.experts));
        round_loads(row(load, layer, shape.experts), rounded);
        rebalance_layer(shape, rounded, row(phy2log.data(), layer, shape.slots), row(replica.data(), layer, shape.slots),
                        row(counts.data(), layer, shape.experts));
    });
    if (out_log2phy != nullptr) {
        check_width(counts, shape.experts, width);
        for (int layer = 0; layer < shape.layers; ++layer) {
            invert_map(row(phy2log.data(), layer, shape.slots), row(replica.data(), layer, shape.slots), width,
                       row(out_log2phy, layer, int64_t{shape.experts} * width));
        }
    }
    copy_if(phy2log, out_phy2log);
    copy_if(counts, out_counts);
}

void invert(const moelink_eplb_shape *given, const int32_t *phy2log, int32_t *out_log2phy, int32_t width, int32_t *out_counts) {
    Shape shape = read_shape(given);
    check_map(shape, not_null(phy2log, "phy2log"), "phy2log");
    std::vector<int32_t> counts(size_t(shape.layers) * size_t(shape.experts));
    for (int layer = 0; layer < shape.layers; ++layer) {
        count_copies(row(phy2log, layer, shape.slots), row(counts.data(), layer, shape.experts));
    }
    if (out_log2phy != nullptr) {
        check_width(counts, shape.experts, width);
        for (int layer = 0; layer < shape.layers; ++layer) {
            invert_map(row(phy2log, layer, shape.slots), {}, width, row(out_log2phy, layer, int64_t{shape.experts} * width));
        }
    }
    copy_if(counts, out_counts);
}

void preserve(const moelink_eplb_shape *given, const int32_t *previous, const int32_t *phy2log, int32_t *out_phy2log) {
    Shape shape = read_shape(given);
    check_map(shape, not_null(previous, "previous"), "previous");
    check_map(shape, not_null(phy2log, "phy2log"), "phy2log");
    not_null(out_phy2log, "out_phy2log");
    for (int layer = 0; layer < shape.layers; ++layer) {
        preserve_slots(row(previous, layer, shape.slots), row(phy2log, layer, shape.slots), shape.rank_slots(),
                       row(out_phy2log, layer, shape.slots));
    }
}

}  // namespace

void moelink_eplb_shape_init(moelink_eplb_shape *shape) {
    const moelink_eplb_shape defaults = MOELINK_EPLB_SHAPE_INIT;
    if (shape != nullptr) *shape = defaults;
}

moelink_status moelink_eplb_replicate(const double *load, int32_t layers, int32_t experts, int32_t slots, int32_t *out_phy2log,
                                      int32_t *out_replica, int32_t *out_counts) {
    return moelink::guard("moelink_eplb_replicate", [&] { replicate(load, layers, experts, slots, out_phy2log, out_replica, out_counts); });
}

moelink_status moelink_eplb_pack(const double *load, int32_t layers, int32_t items, int32_t packs, int32_t *out_pack, int32_t *out_place) {
    return moelink::guard("moelink_eplb_pack", [&] { pack(load, layers, items, packs, out_pack, out_place); });
}

moelink_status moelink_eplb_rebalance(const moelink_eplb_shape *shape, const double *load, int32_t *out_phy2log, int32_t *out_log2phy,
                                      int32_t width, int32_t *out_counts) {
    return moelink::guard("moelink_eplb_rebalance", [&] { rebalance(shape, load, out_phy2log, out_log2phy, width, out_counts); });
}

moelink_status moelink_eplb_invert(const moelink_eplb_shape *shape, const int32_t *phy2log, int32_t *out_log2phy, int32_t width,
                                   int32_t *out_counts) {
    return moelink::guard("moelink_eplb_invert", [&] { invert(shape, phy2log, out_log2phy, width, out_counts); });
}

moelink_status moelink_eplb_preserve(const moelink_eplb_shape *shape, const int32_t *previous, const int32_t *phy2log,
                                     int32_t *out_phy2log) {
    return moelink::guard("moelink_eplb_preserve", [&] { preserve(shape, previous, phy2log, out_phy2log); });
}
