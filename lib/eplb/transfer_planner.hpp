// Plans transfers batch after batch, so that the first may move while others are still to be planned.
#pragma once

#include "eplb/transfer_layer.hpp"
#include "eplb/transfer_plan.hpp"

#include <optional>

namespace moelink::eplb {

class TransferPlanner {
public:
    // Throws INVALID_ARGUMENT for an expert without a source, unless they are skipped. No batch is planned yet.
    explicit TransferPlanner(TransferTask task);
    TransferPlanner(const TransferPlanner &) = delete;
    TransferPlanner &operator=(const TransferPlanner &) = delete;

    // Plans on until there are as many batches; false when there will not be.
    bool reach(int64_t batches);
    // All that is left, by the shape's threads. Steps and the summary are those of the whole plan, and are there only then.
    void finish();

    const TransferTask &task() const { return task_; }
    // Batches, once there, do not change but for their steps; the final map is there from the beginning.
    const TransferPlan &plan() const { return plan_; }
    TransferPlan take();

private:
    LayerTask layer_task(int layer) const;
    bool changes(int layer) const;
    bool next();
    void join(int layer, const LayerBatch &batch, std::span<const moelink_eplb_move> moves);
    void keep_apart();
    bool lands_apart(int64_t start) const;
    void add_move(int layer, moelink_eplb_move move);
    uint64_t batch_ns(int layer, std::span<const moelink_eplb_move> moves, int rounds);
    void settle();
    void number_steps();

    const TransferTask task_;
    TransferPlan plan_;
    int layer_ = 0;  // that is planned, or the next that may have to be
    std::optional<LayerPlanner> planner_;  // of layer_, once begun
    std::vector<moelink_eplb_move> moves_;  // of its batch
    bool failed_ = false;    // what is half done cannot be gone on with
    bool finished_ = false;
    std::vector<int32_t> renumbered_;  // [ranks, staging] of staging places of the layer; empty: they stay
    std::vector<uint8_t> last_used_;   // [ranks, staging] places that the batch before the layer's first uses
    std::vector<uint64_t> sent_, received_;  // [ranks] in this step
    std::vector<uint64_t> pending_sent_, pending_received_;
    uint64_t step_ns_ = 0, pending_ns_ = 0;
    size_t settled_ = 0;  // batches in steps
};

}  // namespace moelink::eplb
