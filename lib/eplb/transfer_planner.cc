#include "eplb/transfer_planner.hpp"

#include "base/error.hpp"
#include "eplb/parallel.hpp"

#include <algorithm>
#include <utility>

namespace moelink::eplb {

namespace {

std::span<const int32_t> layer_of(const std::vector<int32_t> &map, const Shape &shape, int layer) {
    return {map.data() + int64_t{layer} * shape.slots, size_t(shape.slots)};
}

// The new map, -1 where no slot of the old one has the expert.
std::vector<int32_t> find_final_map(const TransferTask &task) {
    const bool skip_lost = (task.params.flags & MOELINK_EPLB_TRANSFER_F_SKIP_LOST) != 0;
    std::vector<int32_t> map = task.new_map;
    std::vector<int> known(size_t(task.shape.experts), -1);  // the last layer that has it
    for (int layer = 0; layer < task.shape.layers; ++layer) {
        for (int32_t expert : layer_of(task.old_map, task.shape, layer)) {
            if (expert >= 0) known[size_t(expert)] = layer;
        }
        for (int slot = 0; slot < task.shape.slots; ++slot) {
            int32_t &expert = map[size_t(int64_t{layer} * task.shape.slots + slot)];
            if (expert < 0 || known[size_t(expert)] == layer) continue;
            if (!skip_lost) {
                fail(MOELINK_ERR_INVALID_ARGUMENT,
                     "new_map has expert {} in layer {}, slot {}, but no slot of old_map that can be read holds it", expert, layer, slot);
            }
            expert = -1;
        }
    }
    return map;
}

// The staging place that a move uses, or NULL.
int32_t *place_of(moelink_eplb_move &move) {
    if (move.kind == MOELINK_EPLB_MOVE_COMMIT) return &move.from;
    return move.kind == MOELINK_EPLB_MOVE_COPY ? nullptr : &move.to;
}

struct LayerMoves {
    std::vector<LayerBatch> batches;
    std::vector<moelink_eplb_move> moves;
};

LayerMoves plan_layer(const LayerTask &task) {
    LayerMoves layer;
    LayerPlanner planner(task);
    do layer.batches.push_back(planner.next(layer.moves));
    while (!layer.batches.back().last);
    return layer;
}

}  // namespace

TransferPlanner::TransferPlanner(TransferTask task)
    : task_(std::move(task)),
      sent_(size_t(task_.shape.ranks), 0),
      received_(sent_),
      pending_sent_(sent_),
      pending_received_(sent_) {
    plan_.shape = task_.shape;
    plan_.topology = task_.topology;
    plan_.old_map = task_.old_map;
    plan_.final_map = find_final_map(task_);
    plan_.summary = MOELINK_EPLB_TRANSFER_SUMMARY_INIT;
    for (size_t i = 0; i < task_.new_map.size(); ++i) plan_.summary.lost += plan_.final_map[i] != task_.new_map[i];
}

LayerTask TransferPlanner::layer_task(int layer) const {
    return {task_.topology, task_.params.staging, task_.shape.experts, layer, task_.overlap(),
            layer_of(task_.old_map, task_.shape, layer), layer_of(plan_.final_map, task_.shape, layer)};
}

bool TransferPlanner::changes(int layer) const {
    return !std::ranges::equal(layer_of(task_.old_map, task_.shape, layer), layer_of(plan_.final_map, task_.shape, layer));
}

bool TransferPlanner::reach(int64_t batches) {
    while (int64_t(plan_.batches.size()) < batches) {
        if (!next()) return false;
    }
    return true;
}

bool TransferPlanner::next() {
    if (std::exchange(failed_, true)) fail(MOELINK_ERR_INTERNAL, "the plan has failed before");
    while (!planner_ && layer_ < task_.shape.layers) {
        if (changes(layer_)) {
            planner_.emplace(layer_task(layer_));
        } else {
            ++layer_;
        }
    }
    const bool more = planner_.has_value();
    if (more) {
        moves_.clear();
        const LayerBatch batch = planner_->next(moves_);
        join(layer_, batch, moves_);
        if (batch.last) {
            planner_.reset();
            ++layer_;
        }
    }
    failed_ = false;
    return more;
}

void TransferPlanner::finish() {
    if (finished_) return;
    while (planner_) next();
    if (std::exchange(failed_, true)) fail(MOELINK_ERR_INTERNAL, "the plan has failed before");
    std::vector<int> layers;
    for (int layer = layer_; layer < task_.shape.layers; ++layer) {
        if (changes(layer)) layers.push_back(layer);
    }
    std::vector<LayerMoves> planned(layers.size());
    if (!layers.empty()) {
        for_each_layer(int(layers.size()), task_.shape.threads,
                       [&](int i) { planned[size_t(i)] = plan_layer(layer_task(layers[size_t(i)])); });
    }
    for (size_t i = 0; i < layers.size(); ++i) {
        std::span<const moelink_eplb_move> moves = planned[i].moves;
        for (const LayerBatch &batch : planned[i].batches) {
            join(layers[i], batch, moves.first(size_t(batch.moves)));
            moves = moves.subspan(size_t(batch.moves));
        }
        planned[i] = {};
    }
    layer_ = task_.shape.layers;
    number_steps();
    finished_ = true;
    failed_ = false;
}

TransferPlan TransferPlanner::take() {
    finish();
    return std::move(plan_);
}

// Counts what a layer's next batch moves; a step ends where the next batches would go over its caps.
void TransferPlanner::join(int layer, const LayerBatch &batch, std::span<const moelink_eplb_move> moves) {
    const bool first = plan_.batches.empty() || plan_.batches.back().layer != layer;
    if (first) {
        ++plan_.summary.changed_layers;
        keep_apart();
    }
    for (const moelink_eplb_move &move : moves) add_move(layer, move);
    plan_.summary.rounds += batch.rounds;
    pending_ns_ += batch_ns(layer, moves, batch.rounds);
    const int64_t start = plan_.batches.empty() ? 0 : plan_.batches.back().end;
    const bool early = batch.early && !plan_.batches.empty() && (!first || lands_apart(start));
    plan_.batches.push_back({layer, 0, start, int64_t(plan_.moves.size()), batch.last, batch.whole, early, false});
    plan_.summary.early_batches += early && !moves.empty() && moves[0].kind == MOELINK_EPLB_MOVE_TRANSFER;
    if (batch.last) plan_.summary.least_rounds += batch.most_received;
    if (batch.whole) {
        settle();
    } else {
        ++plan_.summary.open_batches;
    }
}

// Renumbers a layer's places so that its first batch, which uses the lowest ones, uses none of the last batch's so far while there are
// others.
void TransferPlanner::keep_apart() {
    renumbered_.clear();
    if (!task_.overlap() || plan_.batches.empty()) return;
    const auto staging = size_t(task_.params.staging);
    last_used_.assign(size_t(task_.shape.ranks) * staging, 0);
    for (int64_t i = plan_.batches.back().begin; i < plan_.batches.back().end; ++i) {
        if (const int32_t *place = place_of(plan_.moves[size_t(i)])) last_used_[size_t(*place)] = 1;
    }
    for (size_t first = 0; first < last_used_.size(); first += staging) {
        for (const int used : {0, 1}) {
            for (size_t place = first; place < first + staging; ++place) {
                if (last_used_[place] == used) renumbered_.push_back(int32_t(place));
            }
        }
    }
}

// Whether the moves from `start` on, a layer's first batch, bring nothing to where the batch before it still has something.
bool TransferPlanner::lands_apart(int64_t start) const {
    return std::none_of(plan_.moves.begin() + start, plan_.moves.end(), [&](const moelink_eplb_move &move) {
        return move.kind == MOELINK_EPLB_MOVE_TRANSFER && last_used_[size_t(move.to)] != 0;
    });
}

void TransferPlanner::add_move(int layer, moelink_eplb_move move) {
    if (int32_t *place = place_of(move)) {
        if (!renumbered_.empty()) *place = renumbered_[size_t(*place)];
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
    move.batch = int32_t(plan_.batches.size());
    plan_.moves.push_back(move);
}

uint64_t TransferPlanner::batch_ns(int layer, std::span<const moelink_eplb_move> moves, int rounds) {
    if (task_.expert_bytes.empty()) return 0;
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
void TransferPlanner::settle() {
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

void TransferPlanner::number_steps() {
    if (!plan_.batches.empty()) plan_.batches.back().step_end = true;
    int step = 0;
    for (TransferPlan::Batch &batch : plan_.batches) {
        batch.step = step;
        for (int64_t move = batch.begin; move < batch.end; ++move) plan_.moves[size_t(move)].step = step;
        if (batch.step_end) ++step;
    }
    plan_.summary.steps = step;
    plan_.summary.batches = int32_t(plan_.batches.size());
    plan_.summary.move_count = int64_t(plan_.moves.size());
}

}  // namespace moelink::eplb
