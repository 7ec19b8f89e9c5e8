#include "group/socket_transport.hpp"

#include "base/guard.hpp"

#include <algorithm>
#include <chrono>

namespace moelink {

namespace {

// Children of a rank: shallow enough for 1,024 ranks in five steps, few enough descriptors.
constexpr int branches = 4;

// A rank whose deadline has passed asks rank 0 for the verdict, which names the missing ranks; it waits this long for it.
constexpr std::chrono::seconds verdict_patience{1};

enum FrameType : uint32_t {
    frame_call = 1,
    frame_give_up = 2,
    frame_decision = 3,
    frame_fault = 4,
    frame_message = 5,
};

struct GiveUp {
    uint64_t seq;
    uint64_t waited_ns;
    int32_t rank;
    uint32_t reserved;
};

// The text follows.
struct FaultHead {
    int32_t status;
    uint32_t reserved;
};

template <class Head>
std::shared_ptr<Bytes> make_frame(const Head &head, const void *data, size_t bytes) {
    auto frame = std::make_shared<Bytes>(sizeof head + bytes);
    std::memcpy(frame->data(), &head, sizeof head);
    if (bytes != 0) std::memcpy(frame->data() + sizeof head, data, bytes);
    return frame;
}

template <class Head>
bool read_head(const Bytes &frame, Head &head) {
    if (frame.size() < sizeof head) return false;
    std::memcpy(&head, frame.data(), sizeof head);
    return true;
}

SharedBytes share(Bytes &&frame) { return std::make_shared<Bytes>(std::move(frame)); }

}  // namespace

SocketTransport::SocketTransport(Plan plan) : plan_(std::move(plan)), round_(static_cast<int>(plan_.endpoints.size())) {
    plan_.hub->run([this] {
        plan_.hub->expect(plan_.session,
                          [this](std::shared_ptr<Link> link, const Hello &hello) { attach(std::move(link), hello); });
    });
}

SocketTransport::~SocketTransport() {
    plan_.hub->run([this] { detach(); });
}

int SocketTransport::parent() const { return (plan_.rank - 1) / branches; }

bool SocketTransport::is_child(int rank) const { return rank > 0 && rank < size() && (rank - 1) / branches == plan_.rank; }

DialTarget SocketTransport::target(int rank, Purpose purpose) const {
    return DialTarget{fmt::format("rank {}", rank),
                      candidates(plan_.endpoints[static_cast<size_t>(rank)]),
                      plan_.secret,
                      purpose,
                      plan_.session,
                      plan_.rank,
                      rank};
}

// What goes up waits for the connection; a connection that cannot be made is a fault, which ends the call.
void SocketTransport::open(const Deadline &deadline) {
    if (plan_.rank != 0) {
        dial(plan_.hub->io(), target(parent(), purpose_tree), deadline, [this, attached = attached_](Dialed result) {
            if (*attached) return attach_parent(std::move(result));
            if (result.link) result.link->close();
        });
    }
    call(op_open, 0, 0, nullptr, 0, deadline);
}

void SocketTransport::allgather(const void *mine, void *all, uint64_t bytes, const Deadline &deadline, Attendant *attendant) {
    Decision result = call(op_allgather, bytes, 0, mine, bytes, deadline, attendant);
    if (result.bytes() != 0) std::memcpy(all, result.data(), result.bytes());
}

void SocketTransport::broadcast(void *data, uint64_t bytes, int root, const Deadline &deadline) {
    bool mine = plan_.rank == root;
    Decision result = call(op_broadcast, bytes, root, data, mine ? bytes : 0, deadline);
    if (!mine && bytes != 0) std::memcpy(data, result.data(), bytes);
}

void SocketTransport::finalize(const Deadline &deadline) { call(op_finalize, 0, 0, nullptr, 0, deadline); }

void SocketTransport::send(int to, Payload payload, const Deadline &deadline) {
    std::unique_lock lock(mutex_);
    if (fault_ != MOELINK_OK) throw Error(fault_, fault_text_);
    if (to == plan_.rank) {
        inbox_.push_back(Message{to, std::move(payload)});
        return;
    }
    lock.unlock();
    plan_.hub->post([this, to, deadline, payload = std::move(payload)]() mutable { deliver(to, std::move(payload), deadline); });
}

bool SocketTransport::attend(Attendant &attendant, const std::function<bool()> &done, const Deadline &deadline) {
    std::unique_lock lock(mutex_);
    auto over = [&] { return fault_ != MOELINK_OK || done(); };
    const bool in_time = wait_attending(lock, changed_, inbox_, deadline, &attendant, over);
    if (fault_ != MOELINK_OK) throw Error(fault_, fault_text_);
    return in_time;
}

void SocketTransport::abort() noexcept {
    try {
        std::string text = fmt::format("rank {} aborted the group", plan_.rank);
        note_fault(MOELINK_ERR_ABORTED, text);
        plan_.hub->post([this, text] { end(MOELINK_ERR_ABORTED, text, nullptr); });
    } catch (const std::exception &error) {
        log(MOELINK_LOG_ERROR, "the abort of the group did not reach the other ranks: {}", error.what());
    }
}

moelink_status SocketTransport::fault(std::string *text) const noexcept {
    std::lock_guard lock(mutex_);
    if (text != nullptr) *text = fault_text_;
    return fault_;
}

std::unique_ptr<Transport> SocketTransport::split(const std::vector<int> &members, uint64_t number, const Deadline &deadline) {
    struct {
        Session session;
        uint64_t number;
    } origin{plan_.session, number};
    Bytes name(sizeof origin + members.size() * sizeof(int));
    std::memcpy(name.data(), &origin, sizeof origin);
    std::memcpy(name.data() + sizeof origin, members.data(), members.size() * sizeof(int));

    Plan plan{plan_.hub, plan_.secret, derive_session(plan_.secret, name.data(), name.size()), 0, {}};
    for (size_t i = 0; i < members.size(); ++i) {
        if (members[i] == plan_.rank) plan.rank = static_cast<int>(i);
        plan.endpoints.push_back(plan_.endpoints[static_cast<size_t>(members[i])]);
    }
    auto part = std::make_unique<SocketTransport>(std::move(plan));
    const auto open_this = [&](SocketTransport *opening) {
        std::lock_guard lock(mutex_);
        opening_ = opening;
        if (opening != nullptr && fault_ != MOELINK_OK) opening->note_origin(fault_, fault_text_);
    };
    open_this(part.get());
    const Outcome opened = attempt([&] { part->open(deadline); });
    open_this(nullptr);
    if (opened.status == MOELINK_OK) return part;
    if (opened.status != MOELINK_ERR_TIMEOUT) {
        // Who cannot be reached any more has exited, most likely, and then this group's connections are about to tell.
        std::unique_lock lock(mutex_);
        changed_.wait_until(lock, std::min(deadline.at(), Deadline::clock::now() + verdict_patience), [&] { return fault_ != MOELINK_OK; });
    }
    throw Error(opened.status, opened.text);
}

void SocketTransport::note_origin(moelink_status status, const std::string &text) {
    std::lock_guard lock(mutex_);
    origin_.note(status, text);
    changed_.notify_all();
}

// False when the deadline passes first.
bool SocketTransport::wait_opening(std::unique_lock<std::mutex> &lock, const std::function<bool()> &over, const Deadline &deadline) {
    const Opening how = wait_to_open(lock, changed_, origin_, deadline, over);
    if (how == Opening::orphaned) {
        const Origin origin = origin_;
        lock.unlock();
        plan_.hub->run([&] { end(origin.fault, origin.text, nullptr); });
        lock.lock();
    }
    return how != Opening::late;
}

Decision SocketTransport::call(uint32_t op, uint64_t bytes, int root, const void *data, uint64_t data_bytes,
                               const Deadline &deadline, Attendant *attendant) {
    auto started = Deadline::clock::now();
    {
        std::lock_guard lock(mutex_);
        if (fault_ != MOELINK_OK) throw Error(fault_, fault_text_);
    }
    Call mine{next_, bytes, op, plan_.rank, root, 0};
    auto frame = make_frame(mine, data, data_bytes);
    uint64_t seq = next_++;
    plan_.hub->post([this, frame = std::move(frame)]() mutable { on_call(std::move(*frame)); });

    std::unique_lock lock(mutex_);
    auto over = [&] { return decisions_.count(seq) != 0 || fault_ != MOELINK_OK; };
    const bool in_time = op == op_open ? wait_opening(lock, over, deadline)
                                       : wait_attending(lock, changed_, inbox_, deadline, attendant, over);
    if (!in_time) {
        auto waited = std::chrono::nanoseconds(Deadline::clock::now() - started).count();
        plan_.hub->post([this, seq, waited] {
            on_give_up(std::move(*make_frame(GiveUp{seq, static_cast<uint64_t>(waited), plan_.rank, 0}, nullptr, 0)));
        });
        if (!changed_.wait_until(lock, Deadline::clock::now() + verdict_patience, over)) {
            lock.unlock();
            std::vector<int> path;
            for (int rank = plan_.rank; rank != 0; rank = (rank - 1) / branches) path.insert(path.begin(), (rank - 1) / branches);
            const char *how = path.size() > 1 ? " (one of these, on the way to rank 0, is silent)" : ", which does not answer";
            std::string text = fmt::format("{}: waited {:.3f} s; missing is rank {}{}", call_text(mine),
                                           static_cast<double>(waited) * 1e-9, ranks_text(path), how);
            // Without a verdict this rank does not know the round's outcome, so it cannot go on with the others.
            plan_.hub->run([this, &text] { end(MOELINK_ERR_PEER_UNREACHABLE, text, nullptr); });
            fail(MOELINK_ERR_TIMEOUT, "{}", text);
        }
    }
    auto found = decisions_.find(seq);
    if (found == decisions_.end()) throw Error(fault_, fault_text_);
    Decision decision = std::move(found->second);
    decisions_.erase(found);
    lock.unlock();
    if (decision.head().status != MOELINK_OK) throw Error(decision.head().status, decision.text());
    return decision;
}

void SocketTransport::attach(std::shared_ptr<Link> link, const Hello &hello) {
    const bool is_peer = hello.purpose == purpose_peer && hello.from >= 0 && hello.from < size() && hello.from != plan_.rank;
    if (is_peer && hello.to == plan_.rank && incoming_.count(hello.from) == 0) {
        if (flooded_) return link->close();
        incoming_[hello.from] = link;
        return link->start(this);
    }
    if (hello.purpose != purpose_tree || hello.to != plan_.rank || !is_child(hello.from) || children_.count(hello.from) != 0) {
        log(MOELINK_LOG_WARN, "rank {}: a connection from rank {} to rank {} does not belong here", plan_.rank, hello.from,
            hello.to);
        return link->close();
    }
    children_[hello.from] = link;
    take_on(*link);
}

// The fault of a group that is over already is told to who comes late.
void SocketTransport::take_on(Link &link) {
    link.start(this);
    std::string text;
    moelink_status status = fault(&text);
    if (status != MOELINK_OK) link.send(frame_fault, make_frame(FaultHead{status, 0}, text.data(), text.size()));
}

void SocketTransport::attach_parent(Dialed result) {
    if (!result.link) return end(result.status, result.text, nullptr);
    parent_ = std::move(result.link);
    take_on(*parent_);
    for (auto &[type, frame] : std::exchange(waiting_for_parent_, {})) parent_->send(type, std::move(frame));
}

void SocketTransport::deliver(int rank, Payload payload, const Deadline &deadline) {
    if (flooded_) return;
    auto [found, first] = outgoing_.try_emplace(rank);
    if (found->second.gone) return;
    if (found->second.link) return found->second.link->send(frame_message, std::move(payload));
    found->second.waiting.push_back(std::move(payload));
    if (!first) return;
    dial(plan_.hub->io(), target(rank, purpose_peer), deadline, [this, rank, attached = attached_](Dialed result) {
        if (*attached) return dialed(rank, std::move(result));
        if (result.link) result.link->close();
    });
}

void SocketTransport::dialed(int rank, Dialed result) {
    if (!result.link) {
        outgoing_.erase(rank);
        return end(result.status, result.text, nullptr);
    }
    Outgoing &outgoing = outgoing_[rank];
    outgoing.link = std::move(result.link);
    outgoing.link->start(this);
    for (Payload &payload : std::exchange(outgoing.waiting, {})) outgoing.link->send(frame_message, std::move(payload));
}

bool SocketTransport::is_incoming(const Link &link) const {
    auto found = incoming_.find(link.peer());
    return found != incoming_.end() && found->second.get() == &link;
}

void SocketTransport::on_frame(Link &link, uint32_t type, Bytes payload) {
    if (type == frame_message && is_incoming(link)) {
        Message message{link.peer(), pool_->lend(std::move(payload))};
        std::lock_guard lock(mutex_);
        inbox_.push_back(std::move(message));
        changed_.notify_all();
        return;
    }
    bool from_parent = &link == parent_.get();
    if (type == frame_fault) return on_fault(payload, &link);
    if (type == frame_call && !from_parent) return on_call(std::move(payload));
    if (type == frame_give_up && !from_parent) return on_give_up(std::move(payload));
    if (type == frame_decision && from_parent && payload.size() >= sizeof(Decision::Head)) {
        return on_decision(Decision(share(std::move(payload))));
    }
    end(MOELINK_ERR_PROTOCOL, fmt::format("rank {} sent rank {} a frame of type {} that does not belong there", link.peer(),
                                          plan_.rank, type),
        nullptr);
}

void SocketTransport::on_call(Bytes frame) {
    if (plan_.rank != 0) return up(frame_call, share(std::move(frame)));
    Call call;
    if (!read_head(frame, call) || !Round::well_formed(call, frame.size() - sizeof call, size())) {
        return end(MOELINK_ERR_PROTOCOL, "rank 0 received a call that is not well formed", nullptr);
    }
    if (auto decision = round_.add(call, frame.data() + sizeof call)) on_decision(*decision);
}

void SocketTransport::on_give_up(Bytes frame) {
    if (plan_.rank != 0) return up(frame_give_up, share(std::move(frame)));
    GiveUp late;
    if (!read_head(frame, late)) return end(MOELINK_ERR_PROTOCOL, "rank 0 received a message that is not well formed", nullptr);
    if (auto decision = round_.give_up(late.seq, late.rank, late.waited_ns)) on_decision(*decision);
}

// First on, then to this rank: once a rank has its outcome, those below have been served too.
void SocketTransport::on_decision(const Decision &decision) {
    down(frame_decision, decision.frame());
    auto head = decision.head();
    if (head.op == op_finalize && head.status == MOELINK_OK) finalized_ = true;
    std::lock_guard lock(mutex_);
    over_ = finalized_;
    decisions_.emplace(head.seq, decision);
    changed_.notify_all();
}

void SocketTransport::on_fault(const Bytes &frame, const Link *from) {
    FaultHead head;
    if (!read_head(frame, head) || head.status >= MOELINK_OK) return end(MOELINK_ERR_PROTOCOL, "a fault was not well formed",
                                                                         from);
    end(head.status, std::string(frame.begin() + sizeof head, frame.end()), from);
}

void SocketTransport::on_lost(Link &link, moelink_status status, const std::string &text) {
    int peer = link.peer();
    auto keep = link.shared_from_this();
    auto sent_to = outgoing_.find(peer);
    if (&link == parent_.get()) {
        parent_.reset();
    } else if (is_incoming(link) || (sent_to != outgoing_.end() && sent_to->second.link.get() == &link)) {
        // A peer that leaves in good order may be heard of here before what rank 0 has decided: the tree tells when it is lost.
        if (is_incoming(link)) {
            incoming_.erase(peer);
        } else {
            sent_to->second = Outgoing{nullptr, {}, true};
        }
        if (status == MOELINK_ERR_PEER_EXITED) return;
    } else {
        children_.erase(peer);
    }
    std::string full = status == MOELINK_ERR_PEER_EXITED ? fmt::format("rank {} exited without finalize", peer)
                                                         : fmt::format("rank {} is lost to rank {}: {}", peer, plan_.rank, text);
    end(status, full, nullptr);
}

void SocketTransport::up(uint32_t type, SharedBytes frame) {
    if (parent_) return parent_->send(type, std::move(frame));
    if (!flooded_) waiting_for_parent_.emplace_back(type, std::move(frame));
}

void SocketTransport::down(uint32_t type, const SharedBytes &frame) {
    for (auto &[rank, link] : children_) link->send(type, frame);
}

// The first fault ends the group here, and is told to all neighbours but the one it came from.
void SocketTransport::end(moelink_status status, const std::string &text, const Link *from) {
    if (finalized_ || std::exchange(flooded_, true)) return;
    note_fault(status, text);
    SharedBytes frame = make_frame(FaultHead{status, 0}, text.data(), text.size());
    waiting_for_parent_.clear();
    if (parent_ && parent_.get() != from) parent_->send(frame_fault, frame);
    for (auto &[rank, link] : children_) {
        if (link.get() != from) link->send(frame_fault, frame);
    }
}

void SocketTransport::note_fault(moelink_status status, const std::string &text) {
    std::lock_guard lock(mutex_);
    if (fault_ != MOELINK_OK || over_) return;
    fault_ = status;
    fault_text_ = text;
    changed_.notify_all();
    if (opening_ != nullptr) opening_->note_origin(status, text);
}

void SocketTransport::detach() {
    plan_.hub->forget(plan_.session);
    if (parent_) plan_.hub->finish(std::exchange(parent_, nullptr));
    for (auto &[rank, link] : children_) plan_.hub->finish(link);
    children_.clear();
    *attached_ = false;
    for (auto &[rank, outgoing] : outgoing_) {
        if (outgoing.link) plan_.hub->finish(std::move(outgoing.link));
    }
    outgoing_.clear();
    for (auto &[rank, link] : incoming_) link->close();
    incoming_.clear();
}

}  // namespace moelink
