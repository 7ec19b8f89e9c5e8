#include "eplb/rearrange.hpp"

#include "base/log.hpp"
#include "base/params.hpp"
#include "group/agreement.hpp"

#include <algorithm>

#include <sodium.h>

namespace moelink::eplb {

namespace {

// Halving a batch pays where its bytes take longer than its offers, agreement and local copies, which took as long as some 20 MiB between
// two H100 (docs/measurements.md).
constexpr uint64_t overlapped_bytes = 32 << 20;

constexpr uint32_t known_flags =
    MOELINK_EPLB_REARRANGE_F_SKIP_LOST | MOELINK_EPLB_REARRANGE_F_PROFILE | MOELINK_EPLB_REARRANGE_F_ROUNDS;

void check_count(const char *name, int64_t count, const Shape &shape, int32_t ranks) {
    if (ranks == 0) ranks = shape.ranks;
    int64_t wanted = int64_t{shape.layers} * ranks * shape.rank_slots();
    if (count == wanted) return;
    fail(MOELINK_ERR_INVALID_ARGUMENT, "{} has {} elements; {} layers of {} ranks with {} slots each make {}", name, count, shape.layers,
         ranks, shape.rank_slots(), wanted);
}

std::vector<moelink_rows> as_rows(const Strips &strips) {
    std::vector<moelink_rows> rows;
    for (const Strip &strip : strips) rows.push_back({strip.data, strip.row_bytes, strip.row_stride, MOELINK_DTYPE_NONE, 0});
    return rows;
}

// Of slots of one layer and staged experts.
bool at_one_place(const Strips &a, const Strips &b) { return a[0].data == b[0].data; }

class Digest {
public:
    Digest() { crypto_generichash_init(&state_, nullptr, 0, size); }
    template <class T>
    void add(const T &value) {
        add(&value, sizeof value);
    }
    template <class T>
    void add(const std::vector<T> &values) {
        add(values.size());
        add(values.data(), values.size() * sizeof(T));
    }
    void finish(uint64_t (&out)[2]) {
        static_assert(sizeof out == size);
        crypto_generichash_final(&state_, reinterpret_cast<unsigned char *>(out), size);
    }

private:
    static constexpr size_t size = crypto_generichash_BYTES_MIN;
    void add(const void *data, size_t bytes) { crypto_generichash_update(&state_, static_cast<const unsigned char *>(data), bytes); }
    crypto_generichash_state state_;
};

}  // namespace

Rearrangement::Rearrangement(Comm &comm, const moelink_eplb_shape *shape, const moelink_eplb_rearrange_params *params,
                             const moelink_eplb_rearrange_result *out)
    : comm_(comm), start_(Clock::now()), rank_(comm.group().rank()) {
    agree(attempt([&] { read(shape, params, out); }));
}

void Rearrangement::read(const moelink_eplb_shape *given, const moelink_eplb_rearrange_params *params,
                         const moelink_eplb_rearrange_result *out) {
    check_output(out, "out");
    const moelink_eplb_rearrange_params defaults = MOELINK_EPLB_REARRANGE_PARAMS_INIT;
    params_ = read_params(params, defaults, "params");
    if ((params_.flags & ~known_flags) != 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.flags has {:#x}, of which not all is known", params_.flags);
    }
    if (params_.overlap > MOELINK_EPLB_OVERLAP_ALWAYS) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.overlap is {}, none of MOELINK_EPLB_OVERLAP_*", params_.overlap);
    }
    if (comm_.state() != MOELINK_EPLB_COMM_READY) {
        fail(MOELINK_ERR_INVALID_STATE, "the communicator is not READY; execute what is queued, or reinit it when it is poisoned");
    }
    const int32_t places = comm_.params().staging_experts;
    if ((comm_.params().flags & MOELINK_EPLB_COMM_F_DIRECT) != 0) {
        fail(MOELINK_ERR_INVALID_STATE, "the communicator has the DIRECT flag, so it stages nothing; rearranging in place needs staging");
    }
    if (params_.staging < 0 || params_.staging > places) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.staging is {}; the communicator stages {} experts", params_.staging, places);
    }
    const Shape shape = read_shape(given);
    if (shape.ranks != comm_.group().size()) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "shape has {} ranks and the communicator's group {}", shape.ranks, comm_.group().size());
    }
    check_count("old_map", params_.old_count, shape, params_.old_ranks);
    check_count("new_map", params_.new_count, shape, params_.new_ranks);
    read_layers(shape);

    std::vector<uint64_t> bytes;
    for (const Layer *layer : layers_) bytes.push_back(layer->expert_bytes);
    moelink_eplb_transfer_params transfer = MOELINK_EPLB_TRANSFER_PARAMS_INIT;
    transfer.flags = (params_.flags & MOELINK_EPLB_REARRANGE_F_SKIP_LOST) != 0 ? uint32_t{MOELINK_EPLB_TRANSFER_F_SKIP_LOST} : 0;
    transfer.old_map = params_.old_map;
    transfer.new_map = params_.new_map;
    transfer.rank_mapping = params_.rank_mapping;
    transfer.rank_gpu = params_.rank_gpu;
    transfer.expert_bytes = bytes.data();
    transfer.old_ranks = params_.old_ranks;
    transfer.new_ranks = params_.new_ranks;
    transfer.staging = places_ = params_.staging == 0 ? places : params_.staging;
    overlap_ = overlaps();
    if (overlap_) {
        transfer.flags |= MOELINK_EPLB_TRANSFER_F_OVERLAP;
        comm_.prepare_overlap();
    }
    transfer.step_bytes = params_.step_bytes;
    planner_.emplace(read_transfer(given, &transfer));
    const TransferTask &task = planner_->task();
    if (params_.position < 0 || !planner_->reach(params_.position)) {
        planner_->finish();
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.position is {}; this plan has {} batches", params_.position, plan().batches.size());
    }
    if (plans_ahead()) planner_->finish();
    result_.position = params_.position;
    for (size_t i = 0; i < task.new_map.size(); ++i) {
        const bool mine = task.topology.rank_of(int(i % size_t(shape.slots))) == rank_;
        result_.lost += mine && plan().final_map[i] != task.new_map[i];
    }
    map_ = plan().map_after(params_.position);

    Digest digest;
    digest.add(params_.flags);
    digest.add(places_);
    digest.add(overlap_);
    digest.add(params_.position);
    digest.add(params_.step_bytes);
    digest.add(params_.step_ns);
    digest.add(task.old_map);
    digest.add(task.new_map);
    digest.add(task.topology.gpu);
    digest.add(task.topology.node);
    for (const Layer *layer : layers_) digest.add(layer->number);
    digest.finish(digest_);
}

bool Rearrangement::overlaps() const {
    if (!comm_.can_overlap() || by_rounds() || places_ < 2 || params_.overlap == MOELINK_EPLB_OVERLAP_NEVER) return false;
    uint64_t largest = 0;
    for (const Layer *layer : layers_) largest = std::max(largest, layer->expert_bytes);
    return params_.overlap == MOELINK_EPLB_OVERLAP_ALWAYS || largest >= overlapped_bytes / uint64_t(places_);
}

// Without overlap nothing moves while the host plans, and several layers are planned faster by the shape's threads.
bool Rearrangement::plans_ahead() const {
    const Shape &shape = planner_->task().shape;
    return params_.step_bytes > 0 || profile() || (!overlap_ && shape.layers > 1 && shape.threads != 1);
}

void Rearrangement::read_layers(const Shape &shape) {
    for (int index = 0; index < shape.layers; ++index) {
        const Layer &layer = comm_.layer(params_.layers == nullptr ? index : params_.layers[index]);
        for (size_t rank = 0; rank < layer.rank_slots.size(); ++rank) {
            if (layer.rank_slots[rank] == shape.rank_slots()) continue;
            fail(MOELINK_ERR_INVALID_ARGUMENT, "layer {} is registered with {} slots on rank {}, and shape has {} slots a rank", layer.number,
                 layer.rank_slots[rank], rank, shape.rank_slots());
        }
        if (std::find(layers_.begin(), layers_.end(), &layer) != layers_.end()) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "layer {} is in params.layers twice", layer.number);
        }
        layers_.push_back(&layer);
    }
}

void Rearrangement::agree(const Outcome &mine) {
    struct Word {
        uint64_t digest[2];
        int64_t status;
    };
    const Deadline deadline = Deadline::after_ns(comm_.params().timeout_ns);
    const auto all = comm_.group().allgather(Word{{digest_[0], digest_[1]}, mine.status}, deadline);
    if (std::any_of(all.begin(), all.end(), [](const Word &word) { return word.status != MOELINK_OK; })) settle(comm_.group(), mine, deadline);
    for (size_t rank = 1; rank < all.size(); ++rank) {
        if (!std::ranges::equal(all[rank].digest, all[0].digest)) {
            throw Refusal(MOELINK_ERR_MISMATCH, fmt::format("rank {} passes other maps, flags, staging, overlap, position, steps or layers than rank 0", rank));
        }
    }
}

void Rearrangement::run() {
    moelink_eplb_comm_stats before = MOELINK_EPLB_COMM_STATS_INIT;
    comm_.stats(before);
    for (int64_t batch = 0; batch < result_.position; ++batch) {
        for (const moelink_eplb_move &move : plan().batch_moves(batch)) count_staged(move, layer_of(batch).expert_bytes);
    }
    result_.staging = result_.open;
    result_.staging_bytes = staged_bytes_;
    const Outcome outcome = attempt([&] {
        if (profile() && comm_.needs_reservation()) reserve();
        const int64_t first = result_.position;
        int64_t begun = first;  // batches
        bool over = false;
        auto may_begin = [&] {
            over = over || !planner_->reach(begun + 1) || (begun > first && ends_before(begun));
            return !over;
        };
        while (begun > result_.position || may_begin()) {
            if (begun == result_.position) begin(begun++);
            if (overlap_ && !over && planner_->reach(begun + 1) && plan().batches[size_t(begun)].early && may_begin()) {
                result_.overlapped += has_transfers(plan().batch_moves(begun));
                begin(begun++);
            }
            // While transfers are under way the host has the time. Those of the first batch are not before end() takes the peers' offers.
            if (overlap_ && !over && result_.position > first) planner_->reach(begun + 1);
            end(result_.position);
            ++result_.position;
        }
        comm_.or_poison([&] { comm_.device().synchronize(comm_.stream()); });
    });
    if (outcome.status != MOELINK_OK) comm_.call_off(outcome);
    call_back();
    // Where the rest cannot be planned, there is at least one batch more.
    const Outcome rest = attempt([&] { planner_->finish(); });
    result_.batches = int64_t(plan().batches.size()) + (rest.status != MOELINK_OK);
    moelink_eplb_comm_stats after = MOELINK_EPLB_COMM_STATS_INIT;
    comm_.stats(after);
    for (int link = 0; link < MOELINK_EPLB_LINKS; ++link) result_.link_bytes[link] = after.received_bytes[link] - before.received_bytes[link];
    result_.time_ns = uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_).count());
    log(MOELINK_LOG_INFO, "rank {}: rearranged to batch {} of {}", rank_, result_.position, result_.batches);
    if (outcome.status != MOELINK_OK) throw Error(outcome.status, outcome.text);
}

bool Rearrangement::ends_before(int64_t batch) {
    const TransferPlan::Batch &last = plan().batches[size_t(batch - 1)];
    if (!last.whole) return false;
    if (params_.step_bytes > 0 && last.step_end) return true;
    if (params_.step_ns == 0) return false;
    const auto spent = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_).count();
    const auto over = comm_.group().allgather<uint8_t>(uint64_t(spent) >= params_.step_ns, Deadline::after_ns(comm_.params().timeout_ns));
    return std::find(over.begin(), over.end(), 1) != over.end();
}

// Moves the first batch's transfers into staging, where nobody looks for them.
void Rearrangement::reserve() {
    for (int64_t batch = result_.position; planner_->reach(batch + 1); ++batch) {
        const auto moves = plan().batch_moves(batch);
        if (!has_transfers(moves)) continue;
        exchange(layer_of(batch), moves);
        return;
    }
}

void Rearrangement::begin(int64_t batch) {
    const Layer &layer = layer_of(batch);
    const auto moves = plan().batch_moves(batch);
    const Staged coming = coming_to(batch);
    coming_ = {coming_.experts + coming.experts, coming_.bytes + coming.bytes};
    note_staged();
    if (profile() || !has_transfers(moves)) return;
    if (!overlap_) return exchange(layer, moves);
    queue(layer, moves);
    // So the host need not wait for the slots that the last batch fills.
    const bool settled = this->settled(layer, moves);
    comm_.start(settled);
    if (settled) return;
    settled_ = true;
    filling_.clear();
}

// Whether nothing in the communicator's stream can still write what this rank sends.
bool Rearrangement::settled(const Layer &layer, std::span<const moelink_eplb_move> moves) const {
    return settled_ && std::none_of(moves.begin(), moves.end(), [&](const moelink_eplb_move &move) {
        if (move.kind != MOELINK_EPLB_MOVE_TRANSFER || plan().topology.rank_of(move.from) != rank_) return false;
        return std::find(filling_.begin(), filling_.end(), layer.live(local(move.from))[0].data) != filling_.end();
    });
}

void Rearrangement::end(int64_t batch) {
    const Layer &layer = layer_of(batch);
    const auto moves = plan().batch_moves(batch);
    if (!profile()) {
        if (overlap_ && has_transfers(moves)) comm_.finish();
        // Every rank has what it wants and reads no other's slots any more.
        log(MOELINK_LOG_DEBUG, "batch {}: rank {} fills its slots", batch, rank_);
        comm_.or_poison([&] { make_local(layer, moves); });
        log(MOELINK_LOG_DEBUG, "batch {}: rank {} has filled its slots", batch, rank_);
    }
    const Staged come = coming_to(batch);
    coming_ = {coming_.experts - come.experts, coming_.bytes - come.bytes};
    for (const moelink_eplb_move &move : moves) count(layer, move);
    if (told_.empty()) {
        told_layer_ = plan().batches[size_t(batch)].layer;
        const auto slots = local_slots(told_layer_);
        told_.assign(slots.begin(), slots.end());
    }
    plan().apply(batch, map_);
    if (plan().batches[size_t(batch)].last) call_back();
}

void Rearrangement::exchange(const Layer &layer, std::span<const moelink_eplb_move> moves) {
    while (has_transfers(moves)) {
        moves = moves.subspan(queue(layer, moves));
        comm_.execute();
    }
}

// The transfers that moves begin with, or those of their first round; returns how many.
size_t Rearrangement::queue(const Layer &layer, std::span<const moelink_eplb_move> moves) {
    comm_.set_context(nullptr, 0, layer.number);
    size_t count = 0;
    for (; has_transfers(moves.subspan(count)) && (!by_rounds() || moves[count].round == moves[0].round); ++count) add(layer, moves[count]);
    return count;
}

void Rearrangement::add(const Layer &layer, const moelink_eplb_move &move) {
    const int from = plan().topology.rank_of(move.from), to = rank_of_place(move.to);
    if (from == rank_) {
        const auto rows = as_rows(layer.live(local(move.from)));
        comm_.add_send(rows.data(), int32_t(rows.size()), to, move.expert);
    }
    if (to == rank_) {
        const auto rows = as_rows(comm_.staged(layer, place(move.to)));
        comm_.add_recv(rows.data(), int32_t(rows.size()), from, move.expert, Landing::direct);
    }
}

// In the moves' order; those that have no place in common go together.
void Rearrangement::make_local(const Layer &layer, std::span<const moelink_eplb_move> moves) {
    std::vector<ExpertCopy> copies;
    auto flush = [&] {
        comm_.copier().copy(copies, comm_.stream(), comm_.idle());
        copies.clear();
    };
    for (const moelink_eplb_move &move : moves) {
        if (move.kind == MOELINK_EPLB_MOVE_TRANSFER || rank_of_local(move) != rank_) continue;
        ExpertCopy next = local_copy(layer, move);
        const bool waits = std::any_of(copies.begin(), copies.end(), [&](const ExpertCopy &copy) {
            return at_one_place(next.from, copy.to) || at_one_place(next.to, copy.from) || at_one_place(next.to, copy.to);
        });
        if (waits) flush();
        if (overlap_ && move.kind != MOELINK_EPLB_MOVE_SAVE) filling_.push_back(next.to[0].data);
        copies.push_back(std::move(next));
    }
    flush();
}

ExpertCopy Rearrangement::local_copy(const Layer &layer, const moelink_eplb_move &move) const {
    ExpertCopy copy;
    copy.from = move.kind == MOELINK_EPLB_MOVE_COMMIT ? comm_.staged(layer, place(move.from)) : layer.live(local(move.from));
    copy.to = move.kind == MOELINK_EPLB_MOVE_SAVE ? comm_.staged(layer, place(move.to)) : layer.live(local(move.to));
    return copy;
}

void Rearrangement::count(const Layer &layer, const moelink_eplb_move &move) {
    count_staged(move, layer.expert_bytes);
    const bool transfer = move.kind == MOELINK_EPLB_MOVE_TRANSFER;
    if (!transfer && (move.kind != MOELINK_EPLB_MOVE_COPY || rank_of_local(move) != rank_)) return;
    const int from = plan().topology.rank_of(move.from), to = transfer ? rank_of_place(move.to) : from;
    if (to == rank_) {
        const int hop = plan().topology.hop(from, to);
        ++result_.received[hop];
        result_.received_bytes[hop] += layer.expert_bytes;
    } else if (from == rank_) {
        ++result_.sent;
    }
}

void Rearrangement::count_staged(const moelink_eplb_move &move, uint64_t bytes) {
    const bool in = move.kind == MOELINK_EPLB_MOVE_TRANSFER || move.kind == MOELINK_EPLB_MOVE_SAVE;
    const bool out = move.kind == MOELINK_EPLB_MOVE_COMMIT;
    if ((!in && !out) || rank_of_place(in ? move.to : move.from) != rank_) return;
    result_.open += in ? 1 : -1;
    staged_bytes_ = in ? staged_bytes_ + bytes : staged_bytes_ - bytes;
    note_staged();
}

// What a batch's transfers bring to this rank.
Rearrangement::Staged Rearrangement::coming_to(int64_t batch) const {
    Staged coming;
    for (const moelink_eplb_move &move : plan().batch_moves(batch)) {
        coming.experts += move.kind == MOELINK_EPLB_MOVE_TRANSFER && rank_of_place(move.to) == rank_;
    }
    coming.bytes = uint64_t(coming.experts) * layer_of(batch).expert_bytes;
    return coming;
}

void Rearrangement::note_staged() {
    result_.staging = std::max(result_.staging, result_.open + coming_.experts);
    result_.staging_bytes = std::max(result_.staging_bytes, staged_bytes_ + coming_.bytes);
}

void Rearrangement::call_back() {
    if (told_.empty()) return;
    const auto now = local_slots(told_layer_);
    const bool changed = !std::equal(told_.begin(), told_.end(), now.begin());
    if (changed && params_.committed != nullptr && !profile()) {
        params_.committed(params_.user, layers_[size_t(told_layer_)]->number, int32_t(now.size()), told_.data(), now.data());
        settled_ = false;  // it may have put work of its own into the stream
    }
    told_.clear();
}

void Rearrangement::write(moelink_eplb_rearrange_result *out) const {
    moelink_eplb_rearrange_result result = result_;
    const moelink_eplb_rearrange_result defaults = MOELINK_EPLB_REARRANGE_RESULT_INIT;
    result.map = read_params(out, defaults, "out").map;
    if (result.map != nullptr) std::copy(map_.begin(), map_.end(), result.map);
    write_output(out, result, "out");
}

}  // namespace moelink::eplb
