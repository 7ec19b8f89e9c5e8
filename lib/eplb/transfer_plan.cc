#include "eplb/transfer_plan.hpp"

#include "eplb/parallel.hpp"
#include "eplb/transfer_layer.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace moelink::eplb {

namespace {

std::span<const int32_t> layer_of(const std::vector<int32_t> &map, const Shape &shape, int layer) {
    return {map.data() + int64_t{layer} * shape.slots, size_t(shape.slots)};
}

// Joins the layers' batches and counts what they move; a step ends where the next batches would go over its caps.
class Joiner {
public:
    explicit Joiner(const TransferTask &task)
        : task_(task), sent_(size_t(task.shape.ranks), 0), received_(sent_), pending_sent_(sent_), pending_received_(sent_) {
        plan_.shape = task.shape;
        plan_.topology = task.topology;
        plan_.old_map = task.old_map;
        plan_.final_map.reserve(task.old_map.size());
        plan_.summary = MOELINK_EPLB_TRANSFER_SUMMARY_INIT;
    }

    void add(int layer, LayerMoves &&moves) {
        plan_.final_map.insert(plan_.final_map.end(), moves.final_map.begin(), moves.final_map.end());
        plan_.summary.least_rounds += moves.most_received;
        plan_.summary.lost += moves.lost;
        auto before = layer_of(task_.old_map, task_.shape, layer);
        if (std::equal(before.begin(), before.end(), moves.final_map.begin())) return;
        ++plan_.summary.changed_layers;
        // Slots that only become empty need a batch to do so in.
        if (moves.batches.empty()) moves.batches.push_back({0, 0, true, task_.overlap()});
        if (task_.overlap()) keep_apart(moves);
        int64_t begin = 0;
        for (const LayerMoves::Batch &batch : moves.batches) {
            for (int64_t i = begin; i < batch.end; ++i) add_move(layer, moves.moves[size_t(i)]);
            plan_.summary.rounds += batch.rounds;
            pending_ns_ += batch_ns(layer, {moves.moves.data() + begin, size_t(batch.end - begin)}, batch.rounds);
            int64_t start = plan_.batches.empty() ? 0 : plan_.batches.back().end;
            const bool early = batch.early && !plan_.batches.empty();
            plan_.batches.push_back(
                {layer, 0, start, int64_t(plan_.moves.size()), &batch == &moves.batches.back(), batch.whole, early, false});
            const bool transfers = begin < batch.end && moves.moves[size_t(begin)].kind == MOELINK_EPLB_MOVE_TRANSFER;
            plan_.summary.early_batches += early && transfers;
            begin = batch.end;
            if (batch.whole) {
                settle();
            } else {
                ++plan_.summary.open_batches;
            }
        }
    }

    TransferPlan take() {
        moelink_eplb_transfer_summary &summary = plan_.summary;
        if (!plan_.batches.empty()) plan_.batches.back().step_end = true;
        int step = 0;
        for (size_t i = 0; i < plan_.batches.size(); ++i) {
            TransferPlan::Batch &batch = plan_.batches[i];
            batch.step = step;
            for (int64_t move = batch.begin; move < batch.end; ++move) {
                plan_.moves[size_t(move)].step = step;
                plan_.moves[size_t(move)].batch = int32_t(i);
            }
            if (batch.step_end) ++step;
        }
        summary.steps = step;
        summary.batches = int32_t(plan_.batches.size());
        summary.move_count = int64_t(plan_.moves.size());
        if (task_.expert_bytes.empty()) summary.time_ns = 0;
        return std::move(plan_);
    }

private:
    // The staging place that a move uses, or NULL.
    static int32_t *place_of(moelink_eplb_move &move) {
        if (move.kind == MOELINK_EPLB_MOVE_COMMIT) return &move.from;
        return move.kind == MOELINK_EPLB_MOVE_COPY ? nullptr : &move.to;
    }

    // Renumbers a layer's places so that its first batch, which uses the lowest ones, uses none of the last batch's so far.
    void keep_apart(LayerMoves &moves) {
        if (plan_.batches.empty()) return;
        const auto staging = size_t(task_.params.staging);
        std::vector<uint8_t> last(size_t(task_.shape.ranks) * staging, 0);
        for (int64_t i = plan_.batches.back().begin; i < plan_.batches.back().end; ++i) {
            if (const int32_t *place = place_of(plan_.moves[size_t(i)])) last[size_t(*place)] = 1;
        }
        std::vector<int32_t> to(last.size());
        for (size_t first = 0; first < to.size(); first += staging) {
            std::vector<int32_t> order(staging);
            std::iota(order.begin(), order.end(), int32_t(first));
            std::stable_partition(order.begin(), order.end(), [&](int32_t place) { return last[size_t(place)] == 0; });
            std::copy(order.begin(), order.end(), to.begin() + ptrdiff_t(first));
        }
        for (moelink_eplb_move &move : moves.moves) {
            if (int32_t *place = place_of(move)) *place = to[size_t(*place)];
        }
    }

    void add_move(int layer, moelink_eplb_move move) {
        if (const int32_t *place = place_of(move)) {
            plan_.summary.staging = std::max(plan_.summary.staging, *place % task_.params.staging + 1);
        }
        int hop = MOELINK_EPLB_HOP_RANK;
        uint64_t bytes = task_.bytes(layer);
        if (move.kind == MOELINK_EPLB_MOVE_TRANSFER) {
            int from = task_.topology.rank_of(move.from), to = move.to / task_.params.staging;
            hop = task_.topology.hop(from, to);
            pending_sent_[size_t(from)] += bytes;
            pending_received_[size_t(to)] += bytes;
            move.round += plan_.summary.rounds;
        }
        if (move.kind == MOELINK_EPLB_MOVE_TRANSFER || move.kind == MOELINK_EPLB_MOVE_COPY) {
            ++plan_.summary.copies[hop];
            plan_.summary.bytes[hop] += bytes;
        }
        move.layer = layer;
        plan_.moves.push_back(move);
    }

    uint64_t batch_ns(int layer, std::span<const moelink_eplb_move> moves, int rounds) {
        const moelink_eplb_transfer_params &params = task_.params;
        const double rates[MOELINK_EPLB_HOPS] = {0, params.gpu_rate, params.node_rate, params.net_rate};
        std::vector<double> slowest(size_t(rounds), 0.0);
        for (const moelink_eplb_move &move : moves) {
            if (move.kind != MOELINK_EPLB_MOVE_TRANSFER) continue;
            double rate = rates[task_.topology.hop(task_.topology.rank_of(move.from), move.to / params.staging)];
            double seconds = rate > 0 ? double(task_.bytes(layer)) / rate : 0;
            slowest[size_t(move.round)] = std::max(slowest[size_t(move.round)], seconds);
        }
        double ns = 0;
        for (double seconds : slowest) ns += double(params.round_ns) + seconds * 1e9;
        plan_.summary.time_ns += uint64_t(ns);
        return uint64_t(ns);
    }

    // Batches that cannot be parted go into the present step, or begin the next one.
    void settle() {
        const moelink_eplb_transfer_params &params = task_.params;
        bool over = params.step_ns > 0 && step_ns_ + pending_ns_ > params.step_ns;
        for (size_t rank = 0; rank < sent_.size(); ++rank) {
            uint64_t most = std::max(sent_[rank] + pending_sent_[rank], received_[rank] + pending_received_[rank]);
            over |= params.step_bytes > 0 && most > params.step_bytes;
        }
        if (over && settled_ > 0) {
            plan_.batches[settled_ - 1].step_end = true;
            step_ns_ = 0;
            std::fill(sent_.begin(), sent_.end(), 0);
            std::fill(received_.begin(), received_.end(), 0);
        }
        step_ns_ += std::exchange(pending_ns_, 0);
        for (size_t rank = 0; rank < sent_.size(); ++rank) {
            sent_[rank] += std::exchange(pending_sent_[rank], 0);
            received_[rank] += std::exchange(pending_received_[rank], 0);
        }
        settled_ = plan_.batches.size();
    }

    const TransferTask &task_;
    TransferPlan plan_;
    std::vector<uint64_t> sent_, received_;  // [ranks] in this step
    std::vector<uint64_t> pending_sent_, pending_received_;
    uint64_t step_ns_ = 0, pending_ns_ = 0;
    size_t settled_ = 0;  // batches in steps
};

}  // namespace

TransferPlan plan_transfer(const TransferTask &task) {
    std::vector<LayerMoves> layers(static_cast<size_t>(task.shape.layers));
    bool skip_lost = (task.params.flags & MOELINK_EPLB_TRANSFER_F_SKIP_LOST) != 0;
    for_each_layer(task.shape.layers, task.shape.threads, [&](int layer) {
        layers[size_t(layer)] = move_layer({task.topology, task.params.staging, task.shape.experts, layer, skip_lost, task.overlap(),
                                            layer_of(task.old_map, task.shape, layer), layer_of(task.new_map, task.shape, layer)});
    });
    Joiner joiner(task);
    for (int layer = 0; layer < task.shape.layers; ++layer) joiner.add(layer, std::move(layers[size_t(layer)]));
    return joiner.take();
}

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
