#include "eplb/transfer_plan.hpp"

#include <algorithm>

namespace moelink::eplb {

std::span<const moelink_eplb_move> TransferPlan::batch_moves(int64_t batch) const {
    const Batch &which = batches[size_t(batch)];
    return {moves.data() + which.begin, size_t(which.end - which.begin)};
}

void TransferPlan::apply(int64_t batch, std::vector<int32_t> &map) const {
    size_t start = size_t(batches[size_t(batch)].layer) * size_t(shape.slots);
    for (const moelink_eplb_move &move : batch_moves(batch)) {
        bool fills = move.kind == MOELINK_EPLB_MOVE_COPY || move.kind == MOELINK_EPLB_MOVE_COMMIT;
        if (fills) map[start + size_t(move.to)] = move.expert;
    }
    if (batches[size_t(batch)].last) std::copy_n(final_map.begin() + ptrdiff_t(start), shape.slots, map.begin() + ptrdiff_t(start));
}

std::vector<int32_t> TransferPlan::map_after(int64_t batch_count) const {
    std::vector<int32_t> map = old_map;
    for (int64_t batch = 0; batch < batch_count; ++batch) apply(batch, map);
    return map;
}

int64_t TransferPlan::step_batches(int steps) const {
    auto first = std::find_if(batches.begin(), batches.end(), [&](const Batch &batch) { return batch.step >= steps; });
    return first - batches.begin();
}

}  // namespace moelink::eplb
