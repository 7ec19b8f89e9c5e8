// The C interface of the transfer planner.
#include "base/guard.hpp"
#include "base/params.hpp"
#include "eplb/transfer_planner.hpp"

#include <algorithm>
#include <memory>

using namespace moelink;
using namespace moelink::eplb;

struct moelink_eplb_transfer {
    TransferPlan plan;
};

void moelink_eplb_transfer_params_init(moelink_eplb_transfer_params *params) {
    const moelink_eplb_transfer_params defaults = MOELINK_EPLB_TRANSFER_PARAMS_INIT;
    if (params != nullptr) *params = defaults;
}

void moelink_eplb_transfer_summary_init(moelink_eplb_transfer_summary *summary) {
    const moelink_eplb_transfer_summary defaults = MOELINK_EPLB_TRANSFER_SUMMARY_INIT;
    if (summary != nullptr) *summary = defaults;
}

moelink_status moelink_eplb_transfer_create(const moelink_eplb_shape *shape, const moelink_eplb_transfer_params *params,
                                            moelink_eplb_transfer **out) {
    return guard("moelink_eplb_transfer_create", [&] {
        *not_null(out, "out") = nullptr;
        auto transfer = std::make_unique<moelink_eplb_transfer>();
        transfer->plan = TransferPlanner(read_transfer(shape, params)).take();
        *out = transfer.release();
    });
}

moelink_status moelink_eplb_transfer_summarize(const moelink_eplb_transfer *transfer, moelink_eplb_transfer_summary *out) {
    return guard("moelink_eplb_transfer_summarize", [&] { write_output(out, not_null(transfer, "transfer")->plan.summary, "out"); });
}

moelink_status moelink_eplb_transfer_moves(const moelink_eplb_transfer *transfer, const moelink_eplb_move **out_moves) {
    return guard("moelink_eplb_transfer_moves",
                 [&] { *not_null(out_moves, "out_moves") = not_null(transfer, "transfer")->plan.moves.data(); });
}

moelink_status moelink_eplb_transfer_map(const moelink_eplb_transfer *transfer, int32_t steps, int32_t *out_phy2log) {
    return guard("moelink_eplb_transfer_map", [&] {
        const TransferPlan &plan = not_null(transfer, "transfer")->plan;
        not_null(out_phy2log, "out_phy2log");
        if (steps < 0 || steps > plan.summary.steps) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "steps is {}; the plan has {}", steps, plan.summary.steps);
        }
        std::vector<int32_t> map = plan.map_after(plan.step_batches(steps));
        std::copy(map.begin(), map.end(), out_phy2log);
    });
}

void moelink_eplb_transfer_destroy(moelink_eplb_transfer *transfer) {
    delete transfer;
}
