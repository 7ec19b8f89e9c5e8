// Experts moved by NCCL: one group of sends and receives a round, on the caller's communicator or on one made for this.
#include "base/log.hpp"
#include "eplb/comm_round.hpp"
#include "group/agreement.hpp"
#include "moe/nccl_comm.hpp"

#include <algorithm>
#include <thread>

namespace moelink::eplb {

namespace {

constexpr uint32_t message_lost = 16;  // this rank's part of the round will not come; the reason follows

// Rows that are not one piece of memory travel through a place where they are: NCCL sends and receives contiguous bytes only.
bool dense(const Strip &strip) { return strip.rows == 1 || strip.row_stride == strip.row_bytes; }

// own: the communicator is this object's.
class NcclExchange final : public CommBackend {
public:
    NcclExchange(const CommBackendParams &params, NcclComm comm, bool own)
        : group_(params.group), device_(params.device), places_(params.places), comm_(comm), own_(own) {}
    ~NcclExchange() override;

    std::unique_ptr<CommFlight> begin(Round &round) override;
    void describe(moelink_eplb_comm_info &info, std::string &) const override { info.staging_bytes += room_bytes_; }

private:
    friend class NcclFlight;

    Group &group_;
    const Device &device_;
    const std::vector<ProcessPlace> places_;
    NcclComm comm_;
    const bool own_;
    bool broken_ = false;  // ranks' calls no longer match
    Buffer room_;          // for rows on their way that are not contiguous
    uint64_t room_bytes_ = 0;
    Mark lost_;            // NCCL's work of a round that was given up on the caller's communicator
};

class NcclFlight final : public CommFlight {
public:
    NcclFlight(NcclExchange &exchange, Round &round);

    void ready(int peer) override;
    void on_message(int from, const MessageHead &head, const Payload &payload) override;
    Busy poll() override;
    void end(bool agreed) override;

private:
    enum class Phase {
        idle,       // nothing of NCCL's is under way
        launching,  // NCCL has the calls, the stream may not have them yet
        moving,
        unpacking
    };
    struct Call {
        bool send;
        unsigned char *data;
        uint64_t bytes;
        int peer;
    };
    // Where rows that are not contiguous are while they travel. What is sent to several ranks has one place.
    struct Detour {
        bool send;
        Strip rows;
        uint64_t offset;
    };

    bool is_own(const Transfer &transfer) const { return transfer.peer == exchange_.group_.rank(); }
    int32_t link(int peer) const;
    const Detour *detour(bool send, const Strip &rows) const;
    unsigned char *contiguous(bool send, const Strip &rows) const;
    std::vector<Call> list_calls() const;
    void copy_detours(bool send) const;
    void launch();
    void advance();
    void drain();
    void abort() noexcept;
    template <class Body>
    void or_lose(Body &&body);

    NcclExchange &exchange_;
    Round &round_;
    Phase phase_ = Phase::idle;
    std::vector<int> partners_;  // other ranks that this one sends to or receives from
    size_t ready_ = 0;
    std::vector<Detour> detours_;
    Mark mark_;
};

NcclExchange::~NcclExchange() {
    try {
        DeviceGuard guard(device_);
        if (own_ && comm_ != nullptr) {
            const bool well = !broken_ && group_.fault() == MOELINK_OK;  // else a peer may never come to its own end of this
            well ? nccl().comm_destroy(comm_) : nccl().comm_abort(comm_);
        }
        // NCCL may still hold staged memory that is about to be freed, and only the owner of the communicator can make it stop.
        constexpr std::chrono::milliseconds nap{1};
        const Deadline warn = Deadline::after_ns(group_.timeout_ns());
        for (bool warned = false; !lost_.passed(); std::this_thread::sleep_for(nap)) {
            if (warned || !warn.passed()) continue;
            log(MOELINK_LOG_WARN, "waiting for a round that was lost on the caller's NCCL communicator: abort that communicator (ncclCommAbort)");
            warned = true;
        }
    } catch (const Error &) {  // the device is lost, and NCCL's work with it
    }
}

std::unique_ptr<CommFlight> NcclExchange::begin(Round &round) {
    if (broken_) fail(MOELINK_ERR_INVALID_STATE, "the NCCL communicator was lost in an earlier round; reinit makes a new one");
    return std::make_unique<NcclFlight>(*this, round);
}

NcclFlight::NcclFlight(NcclExchange &exchange, Round &round) : exchange_(exchange), round_(round) {
    uint64_t room = 0;
    auto plan = [&](bool send, const std::vector<Transfer> &list) {
        for (const Transfer &transfer : list) {
            if (is_own(transfer)) continue;
            partners_.push_back(transfer.peer);
            for (const Strip &rows : transfer.rows) {
                if (dense(rows) || detour(send, rows) != nullptr) continue;
                detours_.push_back({send, rows, room});
                room += rows.bytes();
            }
        }
    };
    plan(true, round.sends);
    plan(false, round.receives);
    std::sort(partners_.begin(), partners_.end());
    partners_.erase(std::unique(partners_.begin(), partners_.end()), partners_.end());
    if (room > exchange.room_bytes_) {
        exchange.room_ = {};
        exchange.room_bytes_ = 0;
        exchange.room_ = Buffer(exchange.device_, room);
        exchange.room_bytes_ = room;
    }
}

// A failure after which NCCL's queues are not the same on all ranks: peers are told at once, so that none waits out its deadline.
template <class Body>
void NcclFlight::or_lose(Body &&body) {
    const Outcome outcome = attempt(body);
    if (outcome.status == MOELINK_OK) return;
    exchange_.broken_ = true;
    const MessageHead head{round_.generation, message_lost, static_cast<uint32_t>(-outcome.status), 0, outcome.text.size()};
    for (int peer : partners_) {
        // Whoever cannot be told is told by the loss of the connection.
        attempt([&] { exchange_.group_.send(peer, make_message(head, outcome.text.data(), outcome.text.size()), round_.deadline); });
    }
    throw LostRound(outcome.status, outcome.text);
}

void NcclFlight::ready(int) {
    if (++ready_ == partners_.size() && !exchange_.broken_) or_lose([&] { launch(); });
}

const NcclFlight::Detour *NcclFlight::detour(bool send, const Strip &rows) const {
    for (const Detour &one : detours_) {
        if (one.send == send && one.rows.data == rows.data && one.rows.row_stride == rows.row_stride) return &one;
    }
    return nullptr;
}

unsigned char *NcclFlight::contiguous(bool send, const Strip &rows) const {
    const Detour *place = dense(rows) ? nullptr : detour(send, rows);
    return place == nullptr ? rows.data : exchange_.room_.as() + place->offset;
}

// In the order that both ends of each pair know: by expert, then by tensor.
std::vector<NcclFlight::Call> NcclFlight::list_calls() const {
    std::vector<Call> calls;
    auto list = [&](bool send, const std::vector<Transfer> &transfers) {
        std::vector<const Transfer *> order;
        for (const Transfer &transfer : transfers) {
            if (!is_own(transfer)) order.push_back(&transfer);
        }
        std::sort(order.begin(), order.end(), [](const Transfer *a, const Transfer *b) {
            return a->peer != b->peer ? a->peer < b->peer : a->expert < b->expert;
        });
        for (const Transfer *transfer : order) {
            for (const Strip &rows : transfer->rows) calls.push_back({send, contiguous(send, rows), rows.bytes(), transfer->peer});
        }
    };
    list(true, round_.sends);
    list(false, round_.receives);
    return calls;
}

void NcclFlight::copy_detours(bool send) const {
    for (const Detour &one : detours_) {
        if (one.send != send) continue;
        const Strips rows{one.rows};
        const Strips place = packed(rows, exchange_.room_.as() + one.offset);
        copy_strips(exchange_.device_, send ? place : rows, send ? rows : place, round_.stream);
    }
}

void NcclFlight::launch() {
    const std::vector<Call> list = list_calls();
    DeviceGuard guard(exchange_.device_);
    copy_detours(true);
    phase_ = Phase::launching;
    NcclCalls calls(exchange_.comm_);
    for (const Call &call : list) {
        if (call.send) {
            check_nccl(nccl().send(call.data, call.bytes, nccl_uint8, call.peer, exchange_.comm_, round_.stream), "ncclSend", exchange_.comm_);
        } else {
            check_nccl(nccl().recv(call.data, call.bytes, nccl_uint8, call.peer, exchange_.comm_, round_.stream), "ncclRecv", exchange_.comm_);
        }
    }
    calls.end();
}

void NcclFlight::on_message(int from, const MessageHead &head, const Payload &payload) {
    if (exchange_.broken_) return;
    if (head.kind != message_lost) fail(MOELINK_ERR_PROTOCOL, "rank {} sent a message of kind {}", from, head.kind);
    const auto *text = reinterpret_cast<const char *>(payload.data) + sizeof head;
    const Outcome theirs{-static_cast<int32_t>(head.item), fmt::format("rank {}: {}", from, std::string(text, payload.bytes - sizeof head))};
    or_lose([&]() -> moelink_status { throw Error(theirs.status, theirs.text); });
}

void NcclFlight::advance() {
    DeviceGuard guard(exchange_.device_);
    if (!nccl_settled(exchange_.comm_)) return;
    if (phase_ == Phase::launching) {
        mark_ = Mark(exchange_.device_, round_.stream);
        phase_ = Phase::moving;
    }
    if (!mark_.passed()) return;
    if (phase_ == Phase::moving) {
        copy_detours(false);
        mark_ = Mark(exchange_.device_, round_.stream);
        phase_ = Phase::unpacking;
    }
    if (!mark_.passed()) return;
    phase_ = Phase::idle;
    for (Transfer &receive : round_.receives) {
        if (is_own(receive)) continue;
        receive.link = link(receive.peer);
        receive.landed = true;
    }
}

Busy NcclFlight::poll() {
    if (exchange_.broken_ || phase_ == Phase::idle) return Busy::no;
    or_lose([&] { advance(); });
    return phase_ == Phase::idle ? Busy::no : Busy::waiting;
}

void NcclFlight::drain() {
    constexpr std::chrono::microseconds nap{20};
    const Deadline deadline = exchange_.group_.deadline();
    while (phase_ != Phase::idle && !deadline.passed()) {
        advance();
        std::this_thread::sleep_for(nap);
    }
}

void NcclFlight::abort() noexcept {
    exchange_.broken_ = true;
    try {
        DeviceGuard guard(exchange_.device_);
        nccl().comm_abort(std::exchange(exchange_.comm_, nullptr));
        exchange_.device_.synchronize(round_.stream);
    } catch (const Error &) {  // the device is lost
    }
}

void NcclFlight::end(bool agreed) {
    // All have what they wanted, so what this rank sends is as good as done.
    if (agreed) attempt([&] { drain(); });
    const Phase phase = std::exchange(phase_, Phase::idle);
    if (phase == Phase::unpacking) exchange_.device_.synchronize(round_.stream);
    if (phase == Phase::idle || phase == Phase::unpacking) return;
    if (exchange_.own_) {
        abort();
        fail(MOELINK_ERR_INTERNAL, "the NCCL communicator was aborted; reinit makes a new one");
    }
    exchange_.broken_ = true;
    DeviceGuard guard(exchange_.device_);
    exchange_.lost_ = Mark(exchange_.device_, round_.stream);
    fail(MOELINK_ERR_INTERNAL, "NCCL may still hold rows of this round: abort the communicator that was given (ncclCommAbort), then reinit with another");
}

int32_t NcclFlight::link(int peer) const {
    const auto place = [&](int rank) -> const ProcessPlace & { return exchange_.places_[static_cast<size_t>(rank)]; };
    return may_share_host(place(exchange_.group_.rank()), place(peer)) ? MOELINK_EPLB_LINK_PEER : MOELINK_EPLB_LINK_NETWORK;
}

moelink_status available(int32_t device, std::string *why) {
    if (device == MOELINK_DEVICE_HOST && !nccl_takes_host_memory()) {
        *why = "NCCL moves GPU memory, and the group is on the host";
        return MOELINK_ERR_UNSUPPORTED;
    }
    const moelink_status status = device_available(device, why);
    return status == MOELINK_OK ? nccl_available(why) : status;
}

uint64_t no_host_bytes(int32_t, const moelink_eplb_comm_params &) { return 0; }

std::unique_ptr<CommBackend> make_callers(const CommBackendParams &params) {
    auto *comm = static_cast<NcclComm>(params.params.nccl_comm);
    step(params.group, params.group.deadline(), [&] {
        DeviceGuard guard(params.device);
        if (!nccl_settled(comm)) fail(MOELINK_ERR_INVALID_STATE, "params.nccl_comm is busy");
        int ranks = 0;
        int rank = -1;
        check_nccl(nccl().comm_count(comm, &ranks), "ncclCommCount", comm);
        check_nccl(nccl().comm_user_rank(comm, &rank), "ncclCommUserRank", comm);
        if (ranks != params.group.size() || rank != params.group.rank()) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "params.nccl_comm has this process as rank {} of {}, the group as rank {} of {}", rank, ranks,
                 params.group.rank(), params.group.size());
        }
    });
    return std::make_unique<NcclExchange>(params, comm, false);
}

std::unique_ptr<CommBackend> make_own(const CommBackendParams &params) {
    return std::make_unique<NcclExchange>(params, make_nccl_comm(params.group, params.device, false), true);
}

}  // namespace

const CommKind comm_nccl_kind = {MOELINK_EPLB_COMM_NCCL,
                                 "nccl",
                                 "torch_nccl",
                                 "grouped send and receive on the caller's NCCL communicator; one rank a GPU",
                                 true,
                                 true,
                                 &available,
                                 &no_host_bytes,
                                 &make_callers};

const CommKind comm_nccl_own_kind = {MOELINK_EPLB_COMM_NCCL_OWN,
                                     "nccl-own",
                                     "pynccl",
                                     "grouped send and receive on an NCCL communicator made from the group; one rank a GPU",
                                     true,
                                     true,
                                     &available,
                                     &no_host_bytes,
                                     &make_own};

}  // namespace moelink::eplb
