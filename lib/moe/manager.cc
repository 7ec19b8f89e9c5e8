#include "moe/manager.hpp"

#include "base/guard.hpp"
#include "base/log.hpp"
#include "base/params.hpp"
#include "group/agreement.hpp"
#include "moe/arguments.hpp"
#include "moe/fault.hpp"

#include <algorithm>
#include <cstddef>

namespace moelink {

namespace {

// A round that ranks entered with contradicting shapes is as lost as one that a peer never came to.
// INTERNAL comes from NCCL, after calls that peers cannot take back.
bool loses_round(moelink_status status) {
    return status <= MOELINK_ERR_TIMEOUT || status == MOELINK_ERR_MISMATCH || status == MOELINK_ERR_INTERNAL;
}

}  // namespace

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
        if (slot.dispatched) return MOELINK_STATE_DISPATCHED;
    }
    return MOELINK_STATE_READY;
}

moelink_manager_sizes Manager::sizes() const {
    if (backend_ == nullptr) return MOELINK_MANAGER_SIZES_INIT;
    return backend_->sizes();
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
    std::unique_ptr<Backend> fresh = kind_.make(BackendParams{group_, device_, config, owners.ranks(), faults_, generation_ + 1});
    group_->barrier(group_->deadline());  // no peer may still be sending into the old workspace, none may send into the new one too early
    faults_.begin(generation_ + 1);
    ++generation_;
    backend_ = std::move(fresh);
    owners_ = std::move(owners);
    slots_.assign(static_cast<size_t>(config.slots), Slot{});
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
    slots_.assign(slots_.size(), Slot{});
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
    slots_[static_cast<size_t>(slot)] = Slot{};
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
    DispatchCall call = read_dispatch(args, config_);
    Slot &slot = slots_[static_cast<size_t>(call.args.slot)];
    const bool capturing = device_.capturing(stream);
    if (slot.dispatched) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} is dispatched and not combined; combine or abandon it, or use another slot", call.args.slot);
    }
    const Received received = in_round(capturing, [&] { return backend_->dispatch(call, stream); });
    if (!capturing) slot.dispatched = true;
    // A rank without tokens has nothing to weigh and no weights to point to.
    slot.has_weights = call.args.topk_weights != nullptr || call.args.num_tokens == 0;
    slot.num_tokens = call.args.num_tokens;

    moelink_dispatched result = MOELINK_DISPATCHED_INIT;
    result.payloads = out->struct_size >= offsetof(moelink_dispatched, topk_ids) ? out->payloads : nullptr;
    result.ranks = group_->size();
    result.slots_per_rank = config_.max_tokens;
    result.row_capacity = int64_t{group_->size()} * config_.max_tokens;
    result.topk_ids = received.topk_ids;
    result.topk_weights = received.topk_weights;
    result.recv_counts = received.recv_counts;
    if (result.payloads != nullptr) {
        for (int32_t i = 0; i < call.payload_count; ++i) result.payloads[i] = received.payloads[static_cast<size_t>(i)];
    }
    write_output(out, result, "out");
}

void Manager::prepare(const moelink_prepare_args *args, moelink_stream stream, moelink_prepared *out) {
    require_fifos("prepare");
    check_output(out, "out");
    const PrepareCall call = read_prepare(args, config_);
    Slot &slot = slots_[static_cast<size_t>(call.slot)];
    const bool capturing = device_.capturing(stream);
    if (slot.dispatched) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} is dispatched and not combined; combine or abandon it, or use another slot", call.slot);
    }
    const moelink_prepared result = in_round(capturing, [&] { return backend_->prepare(call, stream); });
    slot.dispatched = slot.dispatched || !capturing;
    slot.has_weights = call.topk_weights != nullptr || call.num_tokens == 0;
    slot.num_tokens = call.num_tokens;
    write_output(out, result, "out");
}

void Manager::alltoallv(int32_t index, const moelink_rows *tensors, int32_t count, const moelink_rows *outputs, moelink_stream stream) {
    require_fifos("alltoallv");
    check_slot(index, config_);
    const Slot &slot = slots_[static_cast<size_t>(index)];
    const bool capturing = device_.capturing(stream);
    if (!slot.dispatched && !capturing) fail(MOELINK_ERR_INVALID_STATE, "slot {} has no routing; call moelink_prepare first", index);
    const AlltoallvCall call = read_alltoallv(index, tensors, count, outputs, slot.num_tokens, config_);
    in_round(capturing, [&] { backend_->alltoallv(call, stream); });
}

void Manager::combine(const moelink_combine_args *args, moelink_stream stream, bool ends) {
    if (ends) {
        require_ready("combine");
    } else {
        require_fifos("alltoallv_combine");
    }
    CombineCall call = read_combine(args, config_);
    Slot &slot = slots_[static_cast<size_t>(call.slot)];
    const bool capturing = device_.capturing(stream);
    if (!slot.dispatched && !capturing) fail(MOELINK_ERR_INVALID_STATE, "slot {} has no dispatch to combine", call.slot);
    if (call.weighted && !slot.has_weights) {
        fail(MOELINK_ERR_INVALID_STATE, "slot {} was dispatched without topk_weights, which MOELINK_COMBINE_WEIGHTED needs", call.slot);
    }
    if (call.output.data == nullptr && slot.num_tokens > 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "output.data is NULL and slot {} holds {} tokens", call.slot, slot.num_tokens);
    }
    call.num_tokens = slot.num_tokens;
    call.ends = ends;
    in_round(capturing, [&] { backend_->combine(call, stream); });
    if (!capturing && ends) slot.dispatched = false;
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
