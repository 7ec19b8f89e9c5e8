#include "moe/manager.hpp"

#include "base/guard.hpp"
#include "base/log.hpp"
#include "base/params.hpp"
#include "group/agreement.hpp"
#include "moe/arguments.hpp"
#include "moe/cursor.hpp"
#include "moe/fault.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <thread>

namespace moelink {

static_assert(MOELINK_GROUP_MAX_RANKS <= kernels::max_host_ranks);

namespace {

// A round that ranks entered with contradicting shapes is as lost as one that a peer never came to.
// INTERNAL comes from NCCL, after calls that peers cannot take back.
bool loses_round(moelink_status status) {
    return status <= MOELINK_ERR_TIMEOUT || status == MOELINK_ERR_MISMATCH || status == MOELINK_ERR_INTERNAL;
}

}  // namespace

void add_layout_sizes(moelink_manager_sizes &sizes, const Config &config, const Group &group) {
    const Arrangement::Sizes layout = Arrangement::sizes(config, group.rank(), group.size());
    sizes.layout_rows = layout.rows;
    sizes.layout_bytes = multiply({layout.bytes, static_cast<uint64_t>(config.slots)});
}

Manager::Manager(Ref<Group> group, const ManagerKind &kind)
    : group_(std::move(group)), kind_(kind), device_(*group_), faults_(device_) {}

int32_t Manager::state() const {
    if (backend_ == nullptr) return MOELINK_STATE_CREATED;
    {
        std::lock_guard lock(mutex_);
        if (fault_ != MOELINK_OK) return MOELINK_STATE_FAULTED;
    }
    if (faults_.seen().code != kernels::fault_none) return MOELINK_STATE_FAULTED;
    for (const Slot &slot : slots_) {
        if (slot.stage != Stage::idle) return MOELINK_STATE_DISPATCHED;
    }
    return MOELINK_STATE_READY;
}

moelink_manager_sizes Manager::sizes() const {
    if (backend_ == nullptr) return MOELINK_MANAGER_SIZES_INIT;
    moelink_manager_sizes sizes = backend_->sizes();
    add_layout_sizes(sizes, config_, *group_);
    return sizes;
}

void Manager::init(const moelink_manager_config *given) {
    if (backend_ != nullptr) {
        fail(MOELINK_ERR_INVALID_STATE, "the manager is initialised already; use ensure to grow it, reinit to replace its workspace");
    }
    reinit(given);
}

void Manager::ensure(const moelink_manager_config *given) {
    if (backend_ == nullptr) return reinit(given);
    Config want = read_config(given, *group_);
    Config both = unite(config_, want);
    if (poll_fault()) fail(MOELINK_ERR_INVALID_STATE, "the manager is faulted ({}); reinit or cleanup first", fault_text());
    if (covers(config_, want)) return;
    if (want.flags & MOELINK_MANAGER_F_NO_GROW) {
        fail(MOELINK_ERR_INVALID_STATE, "the workspace (max_tokens {}, slots {}, combine_row_bytes {}) does not cover the config (max_tokens {}, slots {}, combine_row_bytes {}) and NO_GROW is set",
             config_.max_tokens, config_.slots, config_.combine_row_bytes, want.max_tokens, want.slots, want.combine_row_bytes);
    }
    Outcome outcome;
    if (state() == MOELINK_STATE_DISPATCHED) {
        outcome = {MOELINK_ERR_INVALID_STATE, "a slot is dispatched and not combined; combine or abandon it before the workspace grows"};
    }
    replace(both, outcome);
}

void Manager::reinit(const moelink_manager_config *given) {
    Config mine;
    const Outcome outcome = attempt([&] { mine = read_config(given, *group_); });
    replace(mine, outcome);
}

Deadline Manager::wait_idle() {
    device_.synchronize_all();
    const uint64_t kernels_ns = backend_ != nullptr ? config_.timeout_ns : 0;
    return Deadline::after_ns(std::min(group_->timeout_ns(), UINT64_MAX / 2) + std::min(kernels_ns, UINT64_MAX / 2));
}

void Manager::replace(const Config &mine, const Outcome &outcome) {
    // From the agreement on every step that can fail on one rank only ends in an agreement of its own.
    const Deadline deadline = wait_idle();
    Config config = agree_on(*group_, mine, outcome, deadline);
    Owners owners;
    step(*group_, group_->deadline(), [&] { owners = Owners(device_, config, group_->size()); });
    std::vector<Slot> slots(static_cast<size_t>(config.slots));
    step(*group_, group_->deadline(), [&] {
        for (Slot &slot : slots) {
            slot.arrangement = std::make_unique<Arrangement>(device_, config, owners.ranks(), group_->rank(), group_->size(), faults_,
                                                             generation_ + 1);
        }
    });
    std::unique_ptr<Backend> fresh = kind_.make(BackendParams{group_, device_, config, owners.ranks(), faults_, generation_ + 1});
    group_->barrier(group_->deadline());  // no peer may still be sending into the old workspace, none may send into the new one too early
    faults_.begin(generation_ + 1);
    ++generation_;
    backend_ = std::move(fresh);
    owners_ = std::move(owners);
    slots_ = std::move(slots);
    std::lock_guard lock(mutex_);
    config_ = std::move(config);
    fault_ = MOELINK_OK;
}

void Manager::cleanup() {
    if (backend_ == nullptr) return;
    try {
        device_.synchronize_all();
    } catch (const Error &error) {
        log(MOELINK_LOG_WARN, "cleanup: {}", error.text());
    }
    faults_.begin(0);  // first: a graph must find out before its workspace is gone
    backend_.reset();
    slots_.clear();
    std::lock_guard lock(mutex_);
    fault_ = MOELINK_OK;
}

void Manager::recover(const Deadline &deadline) {
    group_->barrier(deadline);  // of all ranks the device is idle
    backend_->reset_all(deadline);
    faults_.begin(generation_);
    for (Slot &slot : slots_) slot.clear();
    std::lock_guard lock(mutex_);
    fault_ = MOELINK_OK;
}

void Manager::abandon(int32_t slot) {
    const bool recovers = backend_ != nullptr && backend_->has_fifos();
    if (!recovers) require_ready("abandon");
    const Deadline deadline = wait_idle();
    step(*group_, deadline, [&] {
        if (!recovers) require_ready("abandon");  // once more: the kernel that was waited for may have given up
        check_slot(slot, config_);
    });
    struct Wish {
        int32_t slot, faulted;
    };
    const std::vector<Wish> all = group_->allgather(Wish{slot, poll_fault() ? 1 : 0}, deadline);
    for (size_t rank = 0; rank < all.size(); ++rank) {
        if (all[rank].slot != all[0].slot) {
            fail(MOELINK_ERR_MISMATCH, "rank 0 abandons slot {} and rank {} slot {}", all[0].slot, rank, all[rank].slot);
        }
    }
    if (std::any_of(all.begin(), all.end(), [](const Wish &wish) { return wish.faulted != 0; })) return recover(group_->deadline());
    try {
        backend_->abandon(slot, group_->deadline());
    } catch (const Error &error) {
        lose_round(error.status(), error.text());
        throw;
    }
    slots_[static_cast<size_t>(slot)].clear();
}

Manager::Slot &Manager::find_slot(int32_t slot) {
    check_slot(slot, config_);
    return slots_[static_cast<size_t>(slot)];
}

void Manager::repeat_routing(const Slot &slot, DispatchCall &call) const {
    const DispatchCall &last = slot.dispatch;
    if (!slot.routed) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} has had no dispatch whose routing MOELINK_DISPATCH_F_CACHED_ROUTING could repeat", call.args.slot);
    }
    if (call.args.num_tokens != last.args.num_tokens) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "num_tokens is {} and that of the dispatch whose routing is repeated {}", call.args.num_tokens,
             last.args.num_tokens);
    }
    call.args.topk_ids = nullptr;
    call.args.topk_weights = nullptr;
    call.args.num_tokens_device = nullptr;
    call.args.invalid_id = last.args.invalid_id;
    call.args.layout = last.args.layout;
    call.args.alignment = last.args.alignment;
    call.routed = last.routed;
    call.weights = last.weights;
}

template <class Call>
auto Manager::in_round(bool capturing, Call &&call) {
    try {
        return call();
    } catch (const Error &error) {
        if (!capturing && loses_round(error.status())) lose_round(error.status(), error.text());
        throw;
    }
}

void Manager::dispatch(const moelink_dispatch_args *args, moelink_stream stream, moelink_dispatched *out) {
    require_ready("dispatch");
    check_output(out, "out");
    DispatchCall call = read_dispatch(args, config_, *group_);
    Slot &slot = find_slot(call.args.slot);
    const bool capturing = device_.capturing(stream);
    if (slot.stage != Stage::idle) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} is dispatched and not combined; combine or abandon it, or use another slot", call.args.slot);
    }
    if (call.cached) {
        repeat_routing(slot, call);
        check_layout(call.args, config_, group_->size());
    } else {
        // A rank without tokens has nothing to weigh and no weights to point to.
        call.weights = call.routed && (call.args.topk_weights != nullptr || call.args.num_tokens == 0);
    }
    const bool waits = call.halves != kernels::both_halves;
    if (waits && !backend_->halves()) call.halves = kernels::both_halves;
    DispatchCall received_as = call;  // rows of another layout go to outputs from where they are received
    if (call.args.layout != MOELINK_LAYOUT_RANK_MAJOR) received_as.outputs = {};
    // The caller's mark may be the id of an expert of ours. Experts' rows come without ids, so the mark is free.
    if (call.args.layout == MOELINK_LAYOUT_EXPERT_MAJOR || call.args.layout == MOELINK_LAYOUT_EXPERT_PADDED) received_as.args.invalid_id = -1;
    const Received received = in_round(capturing, [&] {
        try {
            return backend_->dispatch(received_as, stream);
        } catch (const Error &error) {
            if (loses_round(error.status())) slot.arrangement->miss();
            throw;
        }
    });
    if (call.args.load_counts != nullptr && call.routed && !call.cached) {
        count_loads(device_, owners_.ranks(), slot.arrangement->entry(), config_.top_k, call.args, stream);
    }
    if (!capturing) slot.stage = waits ? Stage::sent : Stage::dispatched;
    slot.routed = true;
    slot.dispatch = received_as;
    slot.dispatch_waits = waits;
    slot.sum_tokens = -1;
    if (call.args.rank_tokens != nullptr) {
        slot.sum_tokens = 0;
        for (int rank = 0; rank < group_->size(); ++rank) slot.sum_tokens += call.args.rank_tokens[rank];
    }
    const Arranged arranged = slot.arrangement->prepare(call, received);
    slot.rows = arranged.rows;
    if (!waits) arrange(slot, stream);

    moelink_dispatched result = MOELINK_DISPATCHED_INIT;
    result.payloads = out->struct_size >= offsetof(moelink_dispatched, topk_ids) ? out->payloads : nullptr;
    result.ranks = group_->size();
    result.slots_per_rank = config_.max_tokens;
    result.row_capacity = arranged.rows;
    result.topk_ids = call.routed ? arranged.topk_ids : nullptr;
    result.topk_weights = call.weights ? arranged.topk_weights : nullptr;
    result.recv_counts = received.recv_counts;
    result.local_experts = slot.arrangement->local_experts();
    result.rank_offsets = arranged.rank_offsets;
    result.expert_counts = arranged.expert_counts;
    result.expert_offsets = arranged.expert_offsets;
    result.row_sources = arranged.row_sources;
    result.row_weights = arranged.row_weights;
    if (result.payloads != nullptr) {
        for (int32_t i = 0; i < call.payload_count; ++i) result.payloads[i] = arranged.payloads[static_cast<size_t>(i)];
    }
    write_output(out, result, "out");
}

void Manager::arrange(const Slot &slot, moelink_stream stream) {
    if (!slot.arrangement->works_on(slot.dispatch)) return;
    try {
        check_fault(slot.arrangement->arrange(stream), *group_, config_.timeout_ns);
    } catch (const Error &error) {
        // The others have their rows and go on; here some are missing, so the round is lost.
        lose_round(error.status(), error.text());
        throw;
    }
}

void Manager::counts(int32_t number, uint64_t timeout_ns, int64_t *rank_rows, int64_t *expert_rows, int64_t *rows) {
    if (backend_ == nullptr) fail(MOELINK_ERR_INVALID_STATE, "counts need a workspace; call init or ensure first");
    const Slot &slot = find_slot(number);
    const uint64_t wait_ns = timeout_ns != 0 ? timeout_ns : config_.timeout_ns;
    const Deadline deadline = Deadline::after_ns(wait_ns);
    constexpr int looks = 1000;  // before the thread begins to sleep between them
    for (int look = 0; !slot.arrangement->told(); ++look) {
        if (poll_fault() && !slot.arrangement->told()) {
            fail(MOELINK_ERR_INVALID_STATE, "the manager is faulted ({}); reinit or cleanup first", fault_text());
        }
        if (deadline.passed()) fail(MOELINK_ERR_TIMEOUT, "the counts of the dispatch did not come within {} ms", wait_ns / 1000000);
        if (look > looks) std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    slot.arrangement->counts(rank_rows, expert_rows, rows);
}

void Manager::check_input_rows(const Slot &slot, const CombineCall &call) const {
    if (call.input_rows == 0) return;
    const bool exact = slot.dispatch.args.layout == MOELINK_LAYOUT_PACKED && slot.sum_tokens >= 0 && kind_.kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER;
    if (exact && call.input_rows != slot.sum_tokens) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "input_rows is {} and the rank_tokens of the dispatch add up to {}", call.input_rows, slot.sum_tokens);
    }
    if (!exact && call.input_rows < slot.rows) {
        fail(MOELINK_ERR_TOO_SMALL, "input_rows is {} and the dispatched layout has {} rows", call.input_rows, slot.rows);
    }
}

void Manager::receive_dispatch(int32_t number, moelink_stream stream) {
    require_ready("dispatch_receive");
    Slot &slot = find_slot(number);
    const bool capturing = device_.capturing(stream);
    if (capturing ? !slot.dispatch_waits : slot.stage != Stage::sent) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} has no dispatch with MOELINK_DISPATCH_F_SEND_ONLY to receive", number);
    }
    if (backend_->halves()) {
        DispatchCall call = slot.dispatch;
        call.halves = kernels::half_receive;
        in_round(capturing, [&] { backend_->dispatch(call, stream); });
    }
    if (!capturing) slot.stage = Stage::dispatched;
    arrange(slot, stream);
}

void Manager::prepare(const moelink_prepare_args *args, moelink_stream stream, moelink_prepared *out) {
    require_fifos("prepare");
    check_output(out, "out");
    const PrepareCall call = read_prepare(args, config_);
    Slot &slot = find_slot(call.slot);
    const bool capturing = device_.capturing(stream);
    if (slot.stage != Stage::idle) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} is dispatched and not combined; combine or abandon it, or use another slot", call.slot);
    }
    const moelink_prepared result = in_round(capturing, [&] { return backend_->prepare(call, stream); });
    if (!capturing) slot.stage = Stage::dispatched;
    slot.routed = false;
    slot.dispatch = {};
    slot.dispatch.weights = call.topk_weights != nullptr || call.num_tokens == 0;
    slot.dispatch.args.num_tokens = call.num_tokens;
    slot.dispatch_waits = false;
    slot.rows = result.row_capacity;
    slot.sum_tokens = -1;
    write_output(out, result, "out");
}

void Manager::alltoallv(int32_t index, const moelink_rows *tensors, int32_t count, const moelink_rows *outputs, moelink_stream stream) {
    require_fifos("alltoallv");
    const Slot &slot = find_slot(index);
    const bool capturing = device_.capturing(stream);
    if (slot.stage != Stage::dispatched && !capturing) fail(MOELINK_ERR_INVALID_STATE, "slot {} has no routing; call moelink_prepare first", index);
    if (slot.dispatch.args.layout != MOELINK_LAYOUT_RANK_MAJOR) {
        fail(MOELINK_ERR_UNSUPPORTED, "slot {} was dispatched with layout {}, whose rows are arranged after the FIFOs; alltoallv goes with moelink_prepare, or "
             "a dispatch with MOELINK_LAYOUT_RANK_MAJOR", index, moelink_layout_name(slot.dispatch.args.layout));
    }
    const AlltoallvCall call = read_alltoallv(index, tensors, count, outputs, slot.dispatch.args.num_tokens, config_);
    in_round(capturing, [&] { backend_->alltoallv(call, stream); });
}

void Manager::combine(const moelink_combine_args *args, moelink_stream stream, bool ends) {
    if (ends) {
        require_ready("combine");
    } else {
        require_fifos("alltoallv_combine");
    }
    CombineCall call = read_combine(args, config_);
    Slot &slot = find_slot(call.slot);
    const bool capturing = device_.capturing(stream);
    if (slot.stage == Stage::sent) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} has not received its dispatch; call moelink_dispatch_receive first", call.slot);
    }
    if (slot.stage != Stage::dispatched && !capturing) fail(MOELINK_ERR_INVALID_STATE, "slot {} has no dispatch to combine", call.slot);
    const int32_t num_tokens = slot.dispatch.args.num_tokens;
    if (call.weighted && !slot.dispatch.weights) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} was dispatched without topk_weights, which MOELINK_COMBINE_WEIGHTED needs", call.slot);
    }
    if (call.output.data == nullptr && num_tokens > 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "output.data is NULL and slot {} holds {} tokens", call.slot, num_tokens);
    }
    check_input_rows(slot, call);
    call.num_tokens = num_tokens;
    const bool waits = call.halves != kernels::both_halves;
    if (waits && !ends) fail(MOELINK_ERR_UNSUPPORTED, "MOELINK_COMBINE_F_SEND_ONLY is for moelink_combine");
    if (slot.dispatch.args.layout != MOELINK_LAYOUT_RANK_MAJOR) slot.arrangement->restore(call, stream);
    if (waits && !backend_->halves()) call.halves = kernels::both_halves;
    call.ends = ends;
    in_round(capturing, [&] { backend_->combine(call, stream); });
    slot.combine = call;
    slot.combine_waits = waits;
    if (!capturing && ends) slot.stage = waits ? Stage::returned : Stage::idle;
}

void Manager::receive_combine(int32_t number, moelink_stream stream) {
    require_ready("combine_receive");
    Slot &slot = find_slot(number);
    const bool capturing = device_.capturing(stream);
    if (capturing ? !slot.combine_waits : slot.stage != Stage::returned) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} has no combine with MOELINK_COMBINE_F_SEND_ONLY to receive", number);
    }
    if (backend_->halves()) {
        CombineCall call = slot.combine;
        call.halves = kernels::half_receive;
        in_round(capturing, [&] { backend_->combine(call, stream); });
    }
    if (!capturing) slot.stage = Stage::idle;
}

void Manager::require_ready(const char *what) {
    if (backend_ == nullptr) fail(MOELINK_ERR_INVALID_STATE, "{} needs a workspace; call init or ensure first", what);
    if (poll_fault()) fail(MOELINK_ERR_INVALID_STATE, "the manager is faulted ({}); reinit or cleanup first", fault_text());
}

void Manager::require_fifos(const char *what) {
    if (kind_.kind != MOELINK_MANAGER_TWO_SIDED) {
        fail(MOELINK_ERR_UNSUPPORTED, "the manager is {}; {} is of two-sided managers, whose routing is prepared apart from the rows", kind_.name, what);
    }
    require_ready(what);
}

void Manager::lose_round(moelink_status status, const std::string &text) {
    std::lock_guard lock(mutex_);
    fault_ = status;
    fault_text_ = error_ = text;
}

std::string Manager::fault_text() const {
    std::lock_guard lock(mutex_);
    return fault_text_;
}

bool Manager::poll_fault() {
    std::lock_guard lock(mutex_);
    if (fault_ != MOELINK_OK) return true;
    const kernels::Fault seen = faults_.seen();
    if (seen.code == kernels::fault_none) return false;
    Outcome outcome = describe_fault(seen, *group_, config_.timeout_ns);
    fault_ = outcome.status;
    fault_text_ = std::move(outcome.text);
    error_ = fault_text_;
    return true;
}

moelink_status Manager::fault() {
    if (poll_fault()) {
        std::lock_guard lock(mutex_);
        return fault_;
    }
    if (faults_.take_stale()) {
        note_error("a graph that was captured over an earlier workspace was replayed; it did nothing: capture it again");
        return MOELINK_ERR_STALE;
    }
    return MOELINK_OK;
}

void Manager::note_error(const std::string &text) const noexcept {
    try {
        std::lock_guard lock(mutex_);
        error_ = text;
    } catch (...) {
    }
}

std::string Manager::error() const {
    std::lock_guard lock(mutex_);
    return error_;
}

}  // namespace moelink
