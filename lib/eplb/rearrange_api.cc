// The C interface of rearranging.
#include "base/guard.hpp"
#include "eplb/rearrange.hpp"

using namespace moelink;
using namespace moelink::eplb;

void moelink_eplb_rearrange_params_init(moelink_eplb_rearrange_params *params) {
    const moelink_eplb_rearrange_params defaults = MOELINK_EPLB_REARRANGE_PARAMS_INIT;
    if (params != nullptr) *params = defaults;
}

void moelink_eplb_rearrange_result_init(moelink_eplb_rearrange_result *result) {
    const moelink_eplb_rearrange_result defaults = MOELINK_EPLB_REARRANGE_RESULT_INIT;
    if (result != nullptr) *result = defaults;
}

moelink_status moelink_eplb_rearrange(moelink_eplb_comm *comm, const moelink_eplb_shape *shape,
                                      const moelink_eplb_rearrange_params *params, moelink_eplb_rearrange_result *out) {
    const moelink_status status = guard("moelink_eplb_rearrange", [&] {
        Rearrangement rearrangement(*not_null(comm, "comm")->object, shape, params, out);
        const Outcome outcome = attempt([&] { rearrangement.run(); });
        rearrangement.write(out);
        if (outcome.status != MOELINK_OK) throw Error(outcome.status, outcome.text);
    });
    if (status < MOELINK_OK && comm != nullptr) comm->object->note_error(last_error());
    return status;
}
