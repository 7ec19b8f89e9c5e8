#include "loads.hpp"

#include <memory>
#include <stdexcept>

#include <fmt/format.h>

#include <moelink/moelink.h>

#include "status.hpp"

namespace perf {

int default_slots(int experts, int ranks) {
    const int64_t wanted = int64_t{experts} + (experts + 7) / 8;
    return static_cast<int>((wanted + ranks - 1) / ranks * ranks);
}

LoadTrace read_loads(const std::string &path) {
    moelink_eplb_trace *handle = nullptr;
    must(moelink_eplb_trace_load(path.c_str(), &handle), "moelink_eplb_trace_load");
    const std::unique_ptr<moelink_eplb_trace, decltype(&moelink_eplb_trace_destroy)> owner(handle, &moelink_eplb_trace_destroy);
    LoadTrace trace;
    int steps = 0;
    moelink_eplb_trace_sizes(handle, &steps, &trace.layers, &trace.experts);
    for (int step = 0; step < steps; ++step) {
        const char *name = "";
        const double *loads = nullptr;
        moelink_eplb_trace_step(handle, step, &name, &loads);
        trace.steps.push_back(
            {name, std::vector<double>(loads, loads + static_cast<size_t>(trace.layers) * static_cast<size_t>(trace.experts))});
    }
    if (steps == 0) {
        throw std::runtime_error(fmt::format("{}: holds no step", path));
    }
    return trace;
}

}  // namespace perf
