// Loads of the last passes, of several models.
#pragma once

#include "eplb/device_map.hpp"

#include <vector>

namespace moelink::eplb {

class LoadWindow {
public:
    LoadWindow(Ref<Group> group, int32_t window);

    static uint64_t bytes(const Shape &shape, int32_t window);
    static void check_window(int32_t window);

    int32_t add(Ref<DeviceMap> map);
    void record(int32_t model, int64_t *counts, uint32_t flags, moelink_stream stream);
    void read(int32_t model, int32_t steps, moelink_stream stream, moelink_eplb_load_report *out);
    void reduce(int32_t model, int32_t steps, moelink_stream stream, moelink_eplb_load_report *out);
    void clear(int32_t model, moelink_stream stream);

private:
    struct Model {
        Ref<DeviceMap> map;
        Buffer memory;
        Buffer sums;
        uint64_t sums_bytes = 0;
    };
    Model &find(int32_t model);
    kernels::LoadRing ring(const Model &model) const;
    // [steps, layers, experts] and [layers, ranks] counts, then the number of passes recorded.
    std::vector<int64_t> add_up(Model &model, int32_t steps, moelink_stream stream) const;
    void write_report(const Model &model, int32_t steps, const std::vector<int64_t> &sums, moelink_eplb_load_report *out) const;

    Ref<Group> group_;
    Device device_;
    int32_t window_;
    std::vector<Model> models_;
};

}  // namespace moelink::eplb

struct moelink_eplb_load {
    moelink::eplb::LoadWindow object;
};
