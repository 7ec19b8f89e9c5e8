#include "eplb/comm.hpp"

#include "base/log.hpp"
#include "base/params.hpp"
#include "eplb/comm_layer.hpp"
#include "eplb/comm_params.hpp"
#include "eplb/comm_round.hpp"
#include "group/agreement.hpp"

#include <algorithm>

namespace moelink::eplb {

Comm::Comm(Ref<Group> group, int32_t kind) : parent_(std::move(group)), wanted_(kind), device_(*parent_) {}

Comm::~Comm() = default;

void Comm::init(const moelink_eplb_comm_params *given) {
    if (row_ != nullptr) fail(MOELINK_ERR_INVALID_STATE, "the communicator is initialised already; use reinit to start it afresh");
    open(given);
}

void Comm::ensure(const moelink_eplb_comm_params *given) {
    if (row_ == nullptr) return open(given);
    const moelink_eplb_comm_params want = read_comm_params(given, *parent_);
    require(Queue::may_hold, "ensure");
    if (want.flags != params_.flags || want.staging_experts != params_.staging_experts || want.chunk_bytes != params_.chunk_bytes ||
        want.sm_budget != params_.sm_budget || want.nccl_comm != params_.nccl_comm || want.timeout_ns != params_.timeout_ns) {
        fail(MOELINK_ERR_INVALID_STATE,
             "the communicator was initialised with other params (flags {:#x}, staging_experts {}, sm_budget {}, chunk_bytes {}, "
             "timeout_ns {}); use reinit",
             params_.flags, params_.staging_experts, params_.sm_budget, params_.chunk_bytes, params_.timeout_ns);
    }
}

void Comm::reinit(const moelink_eplb_comm_params *given) {
    cleanup();
    open(given);
}

void Comm::open(const moelink_eplb_comm_params *given) {
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    const Outcome outcome = attempt([&] { params = read_comm_params(given, *parent_); });
    const Deadline deadline = Deadline::after_ns(params.timeout_ns != 0 ? params.timeout_ns : parent_->timeout_ns());
    Ref<Group> group = parent_->split(0, parent_->rank());
    CommChoice choice = agree_on_comm(*group, wanted_, params, generation_, outcome, deadline);
    std::unique_ptr<StripCopier> copier;
    step(*group, deadline, [&] { copier = std::make_unique<StripCopier>(device_, read_sm_budget(params, choice.row->kind, device_)); });
    std::unique_ptr<CommBackend> backend = choice.row->make(CommBackendParams{*group, device_, *copier, choice.places, params});
    group_ = std::move(group);
    copier_ = std::move(copier);
    backend_ = std::move(backend);
    row_ = choice.row;
    params_ = params;
    generation_ = choice.generation;
    reason_ = std::move(choice.why);
    rounds_ = std::make_unique<Rounds>(group_->size());
    wait_ns_.resize(static_cast<size_t>(group_->size()), 0);
    poisoned_ = false;
    log(MOELINK_LOG_INFO, "rank {}: weight exchange {}", group_->rank(), reason_.substr(0, reason_.find('\n')));
}

void Comm::cleanup() {
    clear_queues();
    layer_ = nullptr;
    old_indices_.clear();
    context_ = 0;
    if (row_ == nullptr) return;
    take_counters();
    backend_.reset();
    copier_.reset();
    layers_.clear();
    staging_ = {};
    staging_bytes_ = 0;
    group_ = {};
    rounds_.reset();
    overlapped_ = {};
    row_ = nullptr;
    poisoned_ = false;
}

void Comm::require(Queue queue, const char *what) const {
    if (row_ == nullptr) fail(MOELINK_ERR_INVALID_STATE, "{} needs an initialised communicator; call init or ensure first", what);
    std::string gone;
    if (poisoned_ || group_->fault(&gone) != MOELINK_OK) {
        fail(MOELINK_ERR_INVALID_STATE, "the communicator is poisoned ({}); reinit heals it when the group is well",
             gone.empty() ? error() : gone + ", or gave its communicator up");
    }
    if (queue == Queue::must_be_empty && !(sends_.empty() && receives_.empty())) {
        fail(MOELINK_ERR_INVALID_STATE, "{} is not possible while transfers are queued; execute them first", what);
    }
}

Group &Comm::group() {
    if (!group_) fail(MOELINK_ERR_INVALID_STATE, "the communicator is not initialised; call init or ensure first");
    return *group_;
}

const Layer &Comm::layer(int32_t number) const {
    auto found = layers_.find(number);
    if (found == layers_.end()) fail(MOELINK_ERR_INVALID_ARGUMENT, "layer {} is not registered", number);
    return *found->second;
}

Strips Comm::staged(const Layer &layer, int place) const {
    return packed(layer.live(0), staging_.as() + static_cast<uint64_t>(place) * staging_bytes_);
}

void Comm::add_layer(int32_t number, const moelink_eplb_tensor *tensors, int32_t count, int32_t local_slots) {
    require(Queue::may_hold, "register");
    const Deadline deadline = Deadline::after_ns(params_.timeout_ns);
    auto layer = std::make_unique<Layer>();
    const Outcome outcome = attempt([&] {
        require(Queue::must_be_empty, "register");
        *layer = read_layer(number, tensors, count, local_slots);
    });
    settle(*group_, outcome, deadline);
    agree_on_layer(*group_, *layer, deadline);
    const uint64_t staging_bytes = std::max(staging_bytes_, (packed_bytes(layer->live(0)) + 127) / 128 * 128);
    Buffer staging;
    step(*group_, deadline, [&] {
        if (staging_bytes == staging_bytes_ || params_.staging_experts == 0) return;
        const auto experts = static_cast<uint64_t>(params_.staging_experts);
        if (staging_bytes > UINT64_MAX / 2 / experts) fail(MOELINK_ERR_OUT_OF_MEMORY, "{} experts of {} bytes", experts, staging_bytes);
        staging = Buffer(device_, experts * staging_bytes);
    });
    backend_->add_layer(*layer, deadline);
    if (layer_ != nullptr && layer_->number == number) {
        layer_ = nullptr;
        context_ = 0;
    }
    backend_->keep_layer(*layer);
    layers_[number] = std::move(layer);
    if (staging_bytes != staging_bytes_ && params_.staging_experts != 0) {
        backend_->land_in(staging.as(), static_cast<uint64_t>(params_.staging_experts) * staging_bytes);
        staging_ = std::move(staging);
    }
    staging_bytes_ = staging_bytes;
}

void Comm::set_stream(moelink_stream stream) {
    require(Queue::may_hold, "set_stream");
    stream_ = stream;
}

void Comm::set_context(const int32_t *old_indices, int64_t count, int32_t number) {
    require(Queue::must_be_empty, "set_transfer_context");
    const Layer &wanted = layer(number);
    if (count < 0 || (old_indices == nullptr) != (count == 0)) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "old_indices is {} and count {}", old_indices == nullptr ? "NULL" : "not NULL", count);
    }
    if (old_indices != nullptr && count != wanted.slots) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "old_indices has {} elements and layer {} has {} slots on all ranks together", count, number,
             wanted.slots);
    }
    for (int64_t i = 0; i < count; ++i) {
        if (old_indices[i] < -1) fail(MOELINK_ERR_INVALID_ARGUMENT, "old_indices[{}] is {}, neither -1 nor an expert", i, old_indices[i]);
    }
    std::vector<int32_t> copy(old_indices, old_indices + count);
    old_indices_ = std::move(copy);
    layer_ = &wanted;
    context_ = context_code(wanted, old_indices_);
}

const Layer &Comm::current() const {
    if (layer_ == nullptr) fail(MOELINK_ERR_INVALID_STATE, "no layer is chosen; call set_transfer_context first");
    return *layer_;
}

Strips Comm::live_rows(int32_t expert) const {
    if (old_indices_.empty()) fail(MOELINK_ERR_INVALID_ARGUMENT, "tensors is NULL, and the transfer context has no old_indices");
    const Layer &layer = current();
    int64_t first = 0;
    for (int rank = 0; rank < group_->rank(); ++rank) first += layer.rank_slots[static_cast<size_t>(rank)];
    for (int32_t slot = 0; slot < layer.local_slots; ++slot) {
        if (old_indices_[static_cast<size_t>(first + slot)] == expert) return layer.live(slot);
    }
    fail(MOELINK_ERR_INVALID_ARGUMENT, "old_indices has expert {} in none of the slots of rank {}", expert, group_->rank());
}

Strips Comm::read_rows(const moelink_rows *tensors, int32_t count) const {
    const Layer &layer = current();
    if (tensors == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "tensors is NULL");
    if (count < 0 || static_cast<size_t>(count) != layer.tensors.size()) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "count is {}, and layer {} has {} tensors", count, layer.number, layer.tensors.size());
    }
    Strips strips;
    for (size_t i = 0; i < layer.tensors.size(); ++i) {
        const moelink_rows &rows = tensors[i];
        const moelink_eplb_tensor &tensor = layer.tensors[i];
        const uint64_t stride = rows.row_stride != 0 ? rows.row_stride : rows.row_bytes;
        if (rows.data == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "tensors[{}].data is NULL", i);
        if (rows.row_bytes != tensor.row_bytes) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "tensors[{}].row_bytes is {}, and layer {} was registered with {}", i, rows.row_bytes,
                 layer.number, tensor.row_bytes);
        }
        if (stride < rows.row_bytes) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "tensors[{}].row_stride {} is below row_bytes {}", i, stride, rows.row_bytes);
        }
        strips.push_back(Strip{static_cast<unsigned char *>(rows.data), tensor.rows, tensor.row_bytes, stride});
    }
    return strips;
}

void Comm::check_route(int32_t rank, int32_t expert) const {
    if (rank < 0 || rank >= group_->size()) fail(MOELINK_ERR_INVALID_ARGUMENT, "rank {} is not in 0 .. {}", rank, group_->size() - 1);
    if (expert < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "expert is {}", expert);
}

void Comm::add_send(const moelink_rows *tensors, int32_t count, int32_t dst_rank, int32_t expert) {
    require(Queue::may_hold, "add_send");
    const Layer &layer = current();
    check_route(dst_rank, expert);
    Strips rows = tensors == nullptr && count == 0 ? live_rows(expert) : read_rows(tensors, count);
    for (const Transfer &send : sends_) {
        if (send.expert == expert && send.peer == dst_rank) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "expert {} is queued for rank {} already", expert, dst_rank);
        }
    }
    const int32_t slot = layer.slot_of(rows);
    sends_.push_back(Transfer{dst_rank, expert, std::move(rows), slot, 0, 0, MOELINK_EPLB_LINK_LOCAL, false});
}

void Comm::add_recv(const moelink_rows *tensors, int32_t count, int32_t src_rank, int32_t expert, Landing landing) {
    require(Queue::may_hold, "add_recv");
    check_route(src_rank, expert);
    Strips rows = read_rows(tensors, count);
    for (const Transfer &receive : receives_) {
        if (receive.expert == expert) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "expert {} is to come from rank {} already; a rank receives an expert once", expert, receive.peer);
        }
    }
    Strips destination;
    if (landing == Landing::as_configured && params_.staging_experts != 0) {
        if (staged_ == params_.staging_experts) {
            fail(MOELINK_ERR_TOO_SMALL, "the staging holds {} experts (params.staging_experts), and one more is to be received in this round",
                 params_.staging_experts);
        }
        destination = std::move(rows);
        rows = staged(current(), staged_);
    }
    destinations_.push_back(std::move(destination));
    receives_.push_back(Transfer{src_rank, expert, std::move(rows), -1, 0, 0, MOELINK_EPLB_LINK_LOCAL, false});
    if (!destinations_.back().empty()) ++staged_;
}

void Comm::clear_queues() noexcept {
    sends_.clear();
    receives_.clear();
    destinations_.clear();
    staged_ = 0;
}

struct Comm::Flight {
    Round round;
    std::vector<Strips> destinations;
    std::unique_ptr<Exchange> exchange;
};

void Comm::execute() {
    launch(stream_, false);
    finish();
}

void Comm::prepare_overlap() {
    for (std::unique_ptr<Stream> &stream : overlapped_) {
        if (!stream) stream = std::make_unique<Stream>(device_);
    }
}

// By turns, so that the link has the next round's data to carry while a copy engine comes to the end of this one's.
void Comm::start(bool settled) { launch(overlapped_[generation_ % 2]->get(), settled); }

void Comm::launch(moelink_stream stream, bool settled) {
    const bool idle = sends_.empty() && receives_.empty();
    const Deadline deadline = Deadline::after_ns(params_.timeout_ns);
    auto flight = std::make_unique<Flight>();
    flight->round = Round{generation_ + 1, idle ? nullptr : layer_, std::move(sends_), std::move(receives_), stream_, settled, stream, deadline};
    flight->destinations = std::move(destinations_);
    clear_queues();
    require(Queue::may_hold, "execute");
    ++generation_;
    const Exchange::Place place{*group_, device_, *copier_, *backend_, *row_};
    flight->exchange = std::make_unique<Exchange>(place, flight->round, *rounds_, context_, (params_.flags & MOELINK_EPLB_COMM_F_CHECKSUM) != 0);
    flights_.push_back(std::move(flight));
    flights_.back()->exchange->start(deadline);
}

void Comm::finish() {
    const std::unique_ptr<Flight> flight = std::move(flights_.front());
    flights_.pop_front();
    const Round &round = flight->round;
    try {
        end(*flight);
        or_poison([&] {
            std::vector<ExpertCopy> copies;
            for (size_t i = 0; i < round.receives.size(); ++i) {
                if (!flight->destinations[i].empty()) copies.push_back({flight->destinations[i], round.receives[i].rows});
            }
            copier_->copy(copies, stream_, idle());
            // What overlapped rounds have received is known to have landed.
            if (round.stream == stream_ || !copies.empty()) device_.synchronize(stream_);
        });
    } catch (const std::exception &) {
        call_off(attempt([] { throw; }));
        throw;
    }
    count(round);
    log(MOELINK_LOG_DEBUG, "round {}: rank {} is done", round.generation, group_->rank());
}

void Comm::end(Flight &flight) {
    try {
        flight.exchange->finish(Deadline::after_ns(params_.timeout_ns));
    } catch (const std::exception &error) {
        ++stats_.failed_rounds;
        if (flight.exchange->lost()) poison(error.what());
        throw;
    }
}

void Comm::call_off(const Outcome &why) {
    while (!flights_.empty()) {
        const std::unique_ptr<Flight> flight = std::move(flights_.front());
        flights_.pop_front();
        flight->exchange->call_off(why, poisoned_);
        attempt([&] { end(*flight); });
    }
}

void Comm::poison(const std::string &text) {
    poisoned_ = true;
    note_error(text);
}

void Comm::count(const Round &round) {
    ++stats_.rounds;
    stats_.experts_received += round.receives.size();
    stats_.experts_sent += round.sends.size();
    for (const Transfer &receive : round.receives) stats_.received_bytes[receive.link] += total_bytes(receive.rows);
}

// What the rounds have counted becomes the communicator's.
void Comm::take_counters() {
    stats_.stale_messages += std::exchange(rounds_->stale_messages, 0);
    stats_.checked_experts += std::exchange(rounds_->checked_experts, 0);
    stats_.sm_copies += std::exchange(copier_->copies_by_sms, 0);
    stats_.sm_reads += std::exchange(copier_->reads_by_sms, 0);
    for (size_t rank = 0; rank < wait_ns_.size(); ++rank) wait_ns_[rank] += std::exchange(rounds_->wait_ns[rank], 0);
}

void Comm::stats(moelink_eplb_comm_stats &out) {
    if (rounds_) take_counters();
    if (out.wait_ns != nullptr) {
        if (out.wait_count < 0 || static_cast<size_t>(out.wait_count) < wait_ns_.size()) {
            fail(MOELINK_ERR_TOO_SMALL, "wait_ns has room for {} of {} ranks", out.wait_count, wait_ns_.size());
        }
        std::copy(wait_ns_.begin(), wait_ns_.end(), out.wait_ns);
    }
    uint64_t *wait_ns = out.wait_ns;
    out = stats_;
    out.wait_ns = wait_ns;
    out.wait_count = static_cast<int32_t>(wait_ns_.size());
}

int32_t Comm::state() const {
    if (row_ == nullptr) return MOELINK_EPLB_COMM_CREATED;
    if (poisoned_ || group_->fault() != MOELINK_OK) return MOELINK_EPLB_COMM_POISONED;
    return sends_.empty() && receives_.empty() ? MOELINK_EPLB_COMM_READY : MOELINK_EPLB_COMM_QUEUED;
}

moelink_eplb_comm_info Comm::describe(std::string *reasons) const {
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    info.kind = kind();
    info.state = state();
    info.ranks = parent_->size();
    info.generation = generation_;
    if (row_ == nullptr) return info;
    info.layers = static_cast<int32_t>(layers_.size());
    info.staging_experts = params_.staging_experts;
    info.staging_bytes = static_cast<uint64_t>(params_.staging_experts) * staging_bytes_;
    info.host_bytes = backend_->host_bytes();
    copier_->budget().describe(info);
    *reasons = reason_;
    backend_->describe(info, *reasons);
    return info;
}

void Comm::note_error(const std::string &text) const noexcept {
    try {
        std::lock_guard lock(mutex_);
        error_ = text;
    } catch (...) {
    }
}

std::string Comm::error() const {
    std::lock_guard lock(mutex_);
    return error_;
}

}  // namespace moelink::eplb
