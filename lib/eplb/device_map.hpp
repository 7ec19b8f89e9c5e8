// A map in a device's memory, and the choice of copies by it.
#pragma once

#include "eplb/shape.hpp"
#include "group/group.hpp"
#include "kernels/launch.hpp"
#include "moe/device_memory.hpp"

#include <moelink/eplb.h>

namespace moelink::eplb {

class DeviceMap : public Referenced {
public:
    DeviceMap(const Group &group, const Shape &shape, const int32_t *phy2log);

    static uint64_t bytes(const Shape &shape);

    void update(int32_t first_layer, int32_t layers, const int32_t *phy2log, moelink_stream stream);
    void route(const moelink_eplb_route_args *given, moelink_stream stream);

    const Shape &shape() const { return shape_; }
    const Device &device() const { return device_; }
    int ordinal() const { return ordinal_; }  // -1: the host
    kernels::CopyTable table() const;         // of layer 0

private:
    // Tables of some layers, made on the host.
    struct Tables;
    Tables make_tables(int32_t first_layer, int32_t layers, const int32_t *phy2log) const;
    int32_t *part(uint64_t offset) const { return memory_.as<int32_t>() + offset; }

    Shape shape_;
    Device device_;
    int ordinal_;
    Buffer memory_;
};

}  // namespace moelink::eplb

struct moelink_eplb_map {
    moelink::Ref<moelink::eplb::DeviceMap> object;
};
