// The C interface of the planner.
#include "base/guard.hpp"
#include "base/params.hpp"
#include "eplb/plan.hpp"

#include <algorithm>

namespace {

using namespace moelink;
using namespace moelink::eplb;

// The caller's arrays stand in the result struct itself.
void write_result(const Plan &plan, moelink_eplb_plan_result *out) {
    moelink_eplb_plan_result result = plan.result;
    const moelink_eplb_plan_result defaults = MOELINK_EPLB_PLAN_RESULT_INIT;
    moelink_eplb_plan_result given = read_params(out, defaults, "out");
    result.layers = given.layers;
    result.sources = given.sources;
    if (given.layers != nullptr) std::copy(plan.layers.begin(), plan.layers.end(), given.layers);
    if (given.sources != nullptr) std::copy(plan.sources.begin(), plan.sources.end(), given.sources);
    write_output(out, result, "out");
}

}  // namespace

void moelink_eplb_plan_params_init(moelink_eplb_plan_params *params) {
    const moelink_eplb_plan_params defaults = MOELINK_EPLB_PLAN_PARAMS_INIT;
    if (params != nullptr) *params = defaults;
}

void moelink_eplb_plan_result_init(moelink_eplb_plan_result *result) {
    const moelink_eplb_plan_result defaults = MOELINK_EPLB_PLAN_RESULT_INIT;
    if (result != nullptr) *result = defaults;
}

moelink_status moelink_eplb_plan(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params, int32_t *out_phy2log,
                                 moelink_eplb_plan_result *out) {
    return guard("moelink_eplb_plan", [&] {
        auto start = std::chrono::steady_clock::now();
        Request request = read_request(shape, params, true);
        if (request.params.deadline_ns > 0) {
            uint64_t most = uint64_t(std::chrono::nanoseconds(std::chrono::hours(24 * 365)).count());
            request.cluster.deadline = start + std::chrono::nanoseconds(int64_t(std::min(request.params.deadline_ns, most)));
        }
        not_null(out_phy2log, "out_phy2log");
        if (out != nullptr) check_output(out, "out");
        Plan plan = make_plan(request);
        if (out != nullptr) write_result(plan, out);
        std::copy(plan.phy2log.begin(), plan.phy2log.end(), out_phy2log);
    });
}

moelink_status moelink_eplb_rate(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params, const int32_t *phy2log,
                                 moelink_eplb_plan_result *out) {
    return guard("moelink_eplb_rate", [&] {
        Request request = read_request(shape, params, false);
        check_map(request.shape, not_null(phy2log, "phy2log"), "phy2log");
        check_output(out, "out");
        write_result(rate_map(request, {phy2log, request.shape.all_slots()}), out);
    });
}
