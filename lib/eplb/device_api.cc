// The C interface of maps on a device and of the load window.
#include "base/guard.hpp"
#include "base/params.hpp"
#include "eplb/load_window.hpp"

using namespace moelink;
using namespace moelink::eplb;

void moelink_eplb_route_args_init(moelink_eplb_route_args *args) {
    const moelink_eplb_route_args defaults = MOELINK_EPLB_ROUTE_ARGS_INIT;
    if (args != nullptr) *args = defaults;
}

void moelink_eplb_load_report_init(moelink_eplb_load_report *report) {
    const moelink_eplb_load_report defaults = MOELINK_EPLB_LOAD_REPORT_INIT;
    if (report != nullptr) *report = defaults;
}

moelink_status moelink_eplb_map_query(const moelink_eplb_shape *shape, uint64_t *out_bytes) {
    return guard("moelink_eplb_map_query", [&] { *not_null(out_bytes, "out_bytes") = DeviceMap::bytes(read_shape(shape)); });
}

moelink_status moelink_eplb_map_create(moelink_group *group, const moelink_eplb_shape *shape, const int32_t *phy2log, moelink_eplb_map **out) {
    if (out != nullptr) *out = nullptr;
    return guard("moelink_eplb_map_create", [&] {
        not_null(out, "out");
        not_null(group, "group");
        not_null(phy2log, "phy2log");
        *out = new moelink_eplb_map{Ref<DeviceMap>::adopt(new DeviceMap(*group->object, read_shape(shape), phy2log))};
    });
}

moelink_status moelink_eplb_map_update(moelink_eplb_map *map, int32_t first_layer, int32_t layers, const int32_t *phy2log, moelink_stream stream) {
    return guard("moelink_eplb_map_update", [&] { not_null(map, "map")->object->update(first_layer, layers, phy2log, stream); });
}

void moelink_eplb_map_destroy(moelink_eplb_map *map) {
    guard("moelink_eplb_map_destroy", [&] { delete map; });
}

moelink_status moelink_eplb_route(moelink_eplb_map *map, const moelink_eplb_route_args *args, moelink_stream stream) {
    return guard("moelink_eplb_route", [&] { not_null(map, "map")->object->route(args, stream); });
}

moelink_status moelink_eplb_load_query(const moelink_eplb_shape *shape, int32_t window, uint64_t *out_bytes) {
    return guard("moelink_eplb_load_query", [&] { *not_null(out_bytes, "out_bytes") = LoadWindow::bytes(read_shape(shape), window); });
}

moelink_status moelink_eplb_load_create(moelink_group *group, int32_t window, moelink_eplb_load **out) {
    if (out != nullptr) *out = nullptr;
    return guard("moelink_eplb_load_create", [&] {
        not_null(out, "out");
        *out = new moelink_eplb_load{LoadWindow(not_null(group, "group")->object, window)};
    });
}

moelink_status moelink_eplb_load_add(moelink_eplb_load *load, moelink_eplb_map *map, int32_t *out_model) {
    return guard("moelink_eplb_load_add", [&] {
        not_null(load, "load");
        not_null(map, "map");
        not_null(out_model, "out_model");
        *out_model = load->object.add(map->object);
    });
}

moelink_status moelink_eplb_load_record(moelink_eplb_load *load, int32_t model, int64_t *counts, uint32_t flags, moelink_stream stream) {
    return guard("moelink_eplb_load_record", [&] { not_null(load, "load")->object.record(model, counts, flags, stream); });
}

moelink_status moelink_eplb_load_read(moelink_eplb_load *load, int32_t model, int32_t steps, moelink_stream stream, moelink_eplb_load_report *out) {
    return guard("moelink_eplb_load_read", [&] { not_null(load, "load")->object.read(model, steps, stream, out); });
}

moelink_status moelink_eplb_load_reduce(moelink_eplb_load *load, int32_t model, int32_t steps, moelink_stream stream, moelink_eplb_load_report *out) {
    return guard("moelink_eplb_load_reduce", [&] { not_null(load, "load")->object.reduce(model, steps, stream, out); });
}

moelink_status moelink_eplb_load_clear(moelink_eplb_load *load, int32_t model, moelink_stream stream) {
    return guard("moelink_eplb_load_clear", [&] { not_null(load, "load")->object.clear(model, stream); });
}

void moelink_eplb_load_destroy(moelink_eplb_load *load) {
    guard("moelink_eplb_load_destroy", [&] { delete load; });
}
