// The C interface of plans and traces in files.
#include "base/guard.hpp"
#include "base/params.hpp"
#include "eplb/plan_file.hpp"
#include "eplb/trace.hpp"

#include <algorithm>

using namespace moelink;
using namespace moelink::eplb;

moelink_status moelink_eplb_plan_save(const char *path, const moelink_eplb_shape *shape, const int32_t *phy2log) {
    return guard("moelink_eplb_plan_save", [&] { save_plan(path, read_shape(shape), not_null(phy2log, "phy2log")); });
}

moelink_status moelink_eplb_plan_load(const char *path, moelink_eplb_shape *out_shape, int32_t *out_phy2log, uint64_t capacity) {
    return guard("moelink_eplb_plan_load", [&] {
        check_output(out_shape, "out_shape");
        const PlanFile plan = load_plan(path);
        if (out_phy2log != nullptr && capacity < plan.phy2log.size()) {
            fail(MOELINK_ERR_TOO_SMALL, "{} holds {} layers of {} slots, {} elements; capacity is {}", path, plan.shape.layers, plan.shape.slots,
                 plan.phy2log.size(), capacity);
        }
        moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
        shape.layers = plan.shape.layers;
        shape.experts = plan.shape.experts;
        shape.slots = plan.shape.slots;
        shape.ranks = plan.shape.ranks;
        shape.nodes = plan.shape.nodes;
        shape.groups = plan.shape.groups;
        write_output(out_shape, shape, "out_shape");
        if (out_phy2log != nullptr) std::copy(plan.phy2log.begin(), plan.phy2log.end(), out_phy2log);
    });
}

moelink_status moelink_eplb_trace_create(int32_t layers, int32_t experts, moelink_eplb_trace **out) {
    if (out != nullptr) *out = nullptr;
    return guard("moelink_eplb_trace_create", [&] {
        not_null(out, "out");
        *out = new moelink_eplb_trace{Trace(layers, experts)};
    });
}

moelink_status moelink_eplb_trace_load(const char *path, moelink_eplb_trace **out) {
    if (out != nullptr) *out = nullptr;
    return guard("moelink_eplb_trace_load", [&] {
        not_null(out, "out");
        *out = new moelink_eplb_trace{Trace(path)};
    });
}

moelink_status moelink_eplb_trace_save(const moelink_eplb_trace *trace, const char *path) {
    return guard("moelink_eplb_trace_save", [&] { not_null(trace, "trace")->object.save(path); });
}

moelink_status moelink_eplb_trace_append(moelink_eplb_trace *trace, const char *name, const double *load) {
    return guard("moelink_eplb_trace_append",
                 [&] { not_null(trace, "trace")->object.append(not_null(name, "name"), not_null(load, "load")); });
}

moelink_status moelink_eplb_trace_sizes(const moelink_eplb_trace *trace, int32_t *out_steps, int32_t *out_layers, int32_t *out_experts) {
    return guard("moelink_eplb_trace_sizes", [&] {
        const Trace &object = not_null(trace, "trace")->object;
        if (out_steps != nullptr) *out_steps = static_cast<int32_t>(object.steps().size());
        if (out_layers != nullptr) *out_layers = object.layers();
        if (out_experts != nullptr) *out_experts = object.experts();
    });
}

moelink_status moelink_eplb_trace_step(const moelink_eplb_trace *trace, int32_t step, const char **out_name, const double **out_load) {
    return guard("moelink_eplb_trace_step", [&] {
        const std::vector<Trace::Step> &steps = not_null(trace, "trace")->object.steps();
        if (step < 0 || static_cast<size_t>(step) >= steps.size()) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "step is {}; the trace has {}", step, steps.size());
        }
        if (out_name != nullptr) *out_name = steps[static_cast<size_t>(step)].name.c_str();
        if (out_load != nullptr) *out_load = steps[static_cast<size_t>(step)].load.data();
    });
}

void moelink_eplb_trace_destroy(moelink_eplb_trace *trace) {
    guard("moelink_eplb_trace_destroy", [&] { delete trace; });
}
