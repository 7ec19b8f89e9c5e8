#include "eplb/comm_round.hpp"

#include "base/log.hpp"
#include "group/agreement.hpp"

#include <algorithm>
#include <chrono>

namespace moelink::eplb {

namespace {

enum Kind : uint32_t {
    kind_offer = 1,
    kind_abort = 2,  // item: the status, negated; the text follows
};
constexpr uint32_t first_backend_kind = 16;

// Messages of later rounds that are kept; a peer cannot be further ahead than two rounds.
constexpr size_t most_early = 4096;

// Follows the head of an offer; then the items, then the experts wanted.
struct OfferHead {
    uint64_t context;
    int32_t layer;
    uint32_t items;
    uint32_t wants;
    uint32_t reserved;
};
struct OfferItem {
    int32_t expert;
    int32_t slot;
    uint64_t code;
};

// A rank's word on how its part went.
struct Vote {
    uint64_t generation;
    uint64_t context;
    int32_t status;
    int32_t lost;
};

Deadline part_of(const Deadline &deadline, uint64_t numerator, uint64_t denominator) {
    return Deadline::after_ns(deadline.left_ns() / denominator * numerator);
}

bool by_expert(const Transfer *a, const Transfer *b) { return a->expert < b->expert; }

}  // namespace

void Rounds::enter(Exchange &exchange) {
    under_way_.push_back(&exchange);
    newest_ = exchange.generation();
    std::deque<Message> early;
    early.swap(early_);
    for (const Message &message : early) on_message(message);
}

void Rounds::leave(const Exchange &exchange) noexcept { std::erase(under_way_, &exchange); }

void Rounds::on_message(const Message &message) noexcept {
    MessageHead head{};
    if (message.payload.bytes < sizeof head) {
        for (Exchange *exchange : under_way_) {
            exchange->failed(MOELINK_ERR_PROTOCOL, fmt::format("rank {} sent a message that is too short", message.from));
        }
        return;
    }
    std::memcpy(&head, message.payload.data, sizeof head);
    if (head.generation > newest_) {
        if (early_.size() < most_early) early_.push_back(message);
        return;
    }
    for (Exchange *exchange : under_way_) {
        if (exchange->generation() == head.generation) return exchange->on_message(head, message);
    }
    ++stale_messages;
}

Busy Rounds::poll() noexcept {
    Busy busy = Busy::no;
    for (Exchange *exchange : under_way_) busy = std::max(busy, exchange->poll());
    return busy;
}

Exchange::Exchange(const Place &place, Round &round, Rounds &rounds, uint64_t context, bool checked)
    : place_(place), round_(round), rounds_(rounds), context_(context), checked_(checked) {
    for (Transfer &send : round.sends) peers_[send.peer].sends.push_back(&send);
    for (Transfer &receive : round.receives) peers_[receive.peer].receives.push_back(&receive);
    for (auto &[rank, peer] : peers_) {
        std::sort(peer.sends.begin(), peer.sends.end(), by_expert);
        std::sort(peer.receives.begin(), peer.receives.end(), by_expert);
        if (rank == place.group.rank()) continue;
        peer.missing = peer.receives.size();
        missing_ += peer.missing;
        flying_.insert(flying_.end(), peer.receives.begin(), peer.receives.end());
    }
}

// What is left after the data's deadline is for the agreement, which names whoever did not come at all.
void Exchange::set_deadline(const Deadline &deadline) {
    deadline_ = deadline;
    round_.deadline = part_of(deadline, 3, 4);
}

void Exchange::start(const Deadline &deadline) {
    set_deadline(deadline);
    log(MOELINK_LOG_DEBUG, "round {}: rank {} begins", round_.generation, place_.group.rank());
    guarded([&] { prepare(); });
    guarded([&] { send_offers(); });
    guarded([&] { rounds_.enter(*this); });
}

void Exchange::call_off(const Outcome &why, bool lost) noexcept {
    guarded([&] { failed(why.status, why.text, lost); });
}

void Exchange::finish(const Deadline &deadline) {
    set_deadline(deadline);
    waiting_since_ = Deadline::clock::now();
    bool agreed = false;
    Outcome end;
    try {
        if (place_.kind.together) {
            wait_until([&] { return all_ready(); });
            agree(deadline);
            moving_ = true;
            guarded([&] {
                for (auto &[rank, peer] : peers_) {
                    if (rank != place_.group.rank() && outcome_.status == MOELINK_OK) flight_->ready(rank);
                }
            });
        }
        wait_until([&] { return all_ready() && all_landed(); });
        agree(deadline);
        agreed = true;
    } catch (const Error &error) {
        end = {error.status(), error.text()};
        std::string ignored;
        if (place_.group.fault(&ignored) != MOELINK_OK) lost_ = true;
    }
    Outcome stopped;
    if (flight_) stopped = attempt([&] { flight_->end(agreed); });
    rounds_.leave(*this);
    if (stopped.status != MOELINK_OK) lost_ = true;
    if (!agreed) throw Error(end.status, end.text);
    if (stopped.status != MOELINK_OK) throw Error(stopped.status, stopped.text);
}

template <class Body>
void Exchange::guarded(Body &&body) noexcept {
    try {
        body();
    } catch (const LostRound &error) {
        broke(error.status(), error.text(), true);
    } catch (const Error &error) {
        broke(error.status(), error.text(), error.status() <= MOELINK_ERR_DEVICE);
    } catch (const std::bad_alloc &) {
        broke(MOELINK_ERR_OUT_OF_MEMORY, "host memory is exhausted", false);
    } catch (const std::exception &error) {
        broke(MOELINK_ERR_INTERNAL, error.what(), false);
    }
}

// A failure of this rank's own: those that may wait for its data are told at once. The others hear of it by its vote.
void Exchange::broke(moelink_status status, std::string text, bool lost) noexcept {
    const bool first = outcome_.status == MOELINK_OK;
    failed(status, std::move(text), lost);
    for (auto &[rank, peer] : peers_) {
        if (first && peer.offered) attempt([&] { send_abort(rank); });
    }
}

// The first failure is kept.
void Exchange::failed(moelink_status status, std::string text, bool lost) {
    lost_ = lost_ || lost;
    if (outcome_.status != MOELINK_OK) return;
    outcome_ = {status, std::move(text)};
    if (flight_) flight_->give_up();
}

void Exchange::prepare() {
    if (round_.settled) {
        Mark(place_.device, round_.after).hold(round_.stream);
    } else {
        place_.device.synchronize(round_.after);
    }
    if (checked_) {
        for (auto &[rank, peer] : peers_) {
            if (rank == place_.group.rank()) continue;
            for (Transfer *send : peer.sends) send->code = code_of(place_.device, send->rows, rounds_.room, round_.stream);
        }
    }
    move_inside();
    flight_ = place_.backend.begin(round_);
}

void Exchange::move_inside() {
    auto found = peers_.find(place_.group.rank());
    if (found == peers_.end()) return;
    Peer &self = found->second;
    auto experts = [](const std::vector<Transfer *> &list) {
        std::vector<int32_t> result;
        for (const Transfer *one : list) result.push_back(one->expert);
        return result;
    };
    if (experts(self.sends) != experts(self.receives)) {
        fail(MOELINK_ERR_MISMATCH, "layer {}: of the transfers inside the rank, sends and receives are not of the same experts",
             round_.layer->number);
    }
    std::vector<ExpertCopy> copies;
    for (size_t i = 0; i < self.sends.size(); ++i) copies.push_back({self.receives[i]->rows, self.sends[i]->rows});
    place_.copier.copy(copies, round_.stream, false);
    for (Transfer *receive : self.receives) receive->landed = true;
}

void Exchange::send_offers() {
    for (auto &[rank, peer] : peers_) {
        if (rank == place_.group.rank()) continue;
        if (outcome_.status != MOELINK_OK) {
            send_abort(rank);
        } else {
            send_offer(rank, peer);
        }
    }
    log(MOELINK_LOG_DEBUG, "round {}: rank {} has sent its offers", round_.generation, place_.group.rank());
}

void Exchange::send_offer(int to, Peer &peer) {
    const OfferHead head{context_, round_.layer->number, static_cast<uint32_t>(peer.sends.size()),
                         static_cast<uint32_t>(peer.receives.size()), 0};
    Bytes body(sizeof head + peer.sends.size() * sizeof(OfferItem) + peer.receives.size() * sizeof(int32_t));
    uint8_t *at = body.data();
    auto put = [&](const auto &value) {
        std::memcpy(at, &value, sizeof value);
        at += sizeof value;
    };
    put(head);
    for (const Transfer *send : peer.sends) put(OfferItem{send->expert, send->slot, send->code});
    for (const Transfer *receive : peer.receives) put(receive->expert);
    peer.offered = true;
    place_.group.send(to, make_message({round_.generation, kind_offer, 0, 0, body.size()}, body.data(), body.size()), deadline_);
}

void Exchange::send_abort(int to) {
    const MessageHead head{round_.generation, kind_abort, static_cast<uint32_t>(-outcome_.status), 0, outcome_.text.size()};
    place_.group.send(to, make_message(head, outcome_.text.data(), outcome_.text.size()), deadline_);
    if (auto found = peers_.find(to); found != peers_.end()) found->second.told = true;
}

bool Exchange::all_ready() const {
    return std::all_of(peers_.begin(), peers_.end(),
                       [&](const auto &entry) { return entry.second.ready || entry.first == place_.group.rank(); });
}

void Exchange::wait_until(const std::function<bool()> &reached) {
    auto done = [&] { return outcome_.status != MOELINK_OK || reached(); };
    if (!place_.group.attend(rounds_, done, round_.deadline)) {
        failed(MOELINK_ERR_TIMEOUT, fmt::format("round {}: {}", round_.generation, missing_text()), moving_);
    }
}

std::string Exchange::missing_text() const {
    std::string text;
    for (const auto &[rank, peer] : peers_) {
        if (rank == place_.group.rank() || (peer.ready && peer.missing == 0)) continue;
        text += fmt::format("{}{} of rank {}", text.empty() ? "waited in vain for " : ", ",
                            peer.ready ? fmt::format("{} experts", peer.missing) : "the offer", rank);
    }
    return text;
}

void Exchange::agree(const Deadline &deadline) {
    log(MOELINK_LOG_DEBUG, "round {}: rank {} votes", round_.generation, place_.group.rank());
    const Vote mine{round_.generation, context_, outcome_.status, lost_ ? 1 : 0};
    std::vector<Vote> votes;
    try {
        votes = place_.group.allgather(mine, deadline, &rounds_);
    } catch (const Error &error) {
        if (outcome_.status == MOELINK_OK || error.status() != MOELINK_ERR_TIMEOUT) throw;
        throw Error(error.status(), fmt::format("{}; {}", outcome_.text, error.text()));
    }
    size_t other = 0;
    bool refused = false;  // by the votes alone, which are the same everywhere: what failed here since is the next vote's
    for (size_t rank = 0; rank < votes.size(); ++rank) {
        if (votes[rank].generation != mine.generation) {
            lost_ = true;
            fail(MOELINK_ERR_MISMATCH, "rank {} is in round {} and rank {} in round {}", place_.group.rank(), mine.generation, rank,
                 votes[rank].generation);
        }
        lost_ = lost_ || votes[rank].lost != 0;
        refused = refused || votes[rank].status != MOELINK_OK;
        if (votes[rank].context == 0) continue;
        if (votes[other].context == 0) other = rank;
        if (votes[rank].context != votes[other].context && !refused) {
            refused = true;
            failed(MOELINK_ERR_MISMATCH, fmt::format("the layers or old_indices of rank {} and rank {} differ", other, rank));
        }
    }
    if (refused) {
        settle(place_.group, outcome_, Deadline::after_ns(std::max(deadline.left_ns(), uint64_t{1'000'000'000})));
    }
    log(MOELINK_LOG_DEBUG, "round {}: rank {} knows that all agree", round_.generation, place_.group.rank());
}

void Exchange::on_message(const MessageHead &head, const Message &message) noexcept {
    guarded([&] {
        const uint8_t *body = message.payload.data + sizeof head;
        const uint64_t bytes = message.payload.bytes - sizeof head;
        if (head.kind == kind_offer) return on_offer(message.from, body, bytes);
        if (head.kind == kind_abort) {
            log(MOELINK_LOG_DEBUG, "round {}: rank {} is told by rank {} to give up", round_.generation, place_.group.rank(), message.from);
            return failed(-static_cast<int32_t>(head.item), fmt::format("rank {}: {}", message.from, std::string(body, body + bytes)));
        }
        if (head.kind < first_backend_kind) fail(MOELINK_ERR_PROTOCOL, "rank {} sent a message of kind {}", message.from, head.kind);
        if (flight_) flight_->on_message(message.from, head, message.payload);
    });
}

void Exchange::on_offer(int from, const uint8_t *body, uint64_t bytes) {
    // A rank that this one has nothing to do with: match says what contradicts.
    const bool known = peers_.count(from) != 0;
    Peer none;
    Peer &peer = known ? peers_[from] : none;
    guarded([&] { match(from, peer, body, bytes); });
    if (outcome_.status != MOELINK_OK) return peer.told ? void() : send_abort(from);
    peer.ready = true;
    settle_waits(from, peer);
    log(MOELINK_LOG_DEBUG, "round {}: rank {} has the offer of rank {}", round_.generation, place_.group.rank(), from);
    if (!place_.kind.together) flight_->ready(from);
}

void Exchange::match(int from, Peer &peer, const uint8_t *body, uint64_t bytes) {
    OfferHead head{};
    if (bytes >= sizeof head) std::memcpy(&head, body, sizeof head);
    if (bytes != sizeof head + uint64_t{head.items} * sizeof(OfferItem) + uint64_t{head.wants} * sizeof(int32_t)) {
        fail(MOELINK_ERR_PROTOCOL, "rank {} sent an offer that is not well formed", from);
    }
    const int me = place_.group.rank();
    if (round_.layer != nullptr && head.layer != round_.layer->number) {
        fail(MOELINK_ERR_MISMATCH, "rank {} moves layer {} and rank {} layer {}", me, round_.layer->number, from, head.layer);
    }
    if (context_ != 0 && head.context != context_) {
        fail(MOELINK_ERR_MISMATCH, "layer {}: old_indices or the layer's shape are not the same on rank {} and rank {}", head.layer, me,
             from);
    }
    const uint8_t *at = body + sizeof head;
    auto next = [&](auto value) {
        std::memcpy(&value, at, sizeof value);
        at += sizeof value;
        return value;
    };
    // Both lists are by expert, so the first difference tells who lacks what.
    auto differ = [&](int sender, int receiver, bool sender_lacks, int32_t expert) {
        fail(MOELINK_ERR_MISMATCH, "layer {}: expert {} is to go from rank {} to rank {}, and rank {} has queued no {}", head.layer, expert,
             sender, receiver, sender_lacks ? sender : receiver, sender_lacks ? "send" : "receive");
    };
    size_t mine = 0;
    for (uint32_t item = 0; item < head.items; ++item) {
        const OfferItem offered = next(OfferItem{});
        if (mine == peer.receives.size() || offered.expert < peer.receives[mine]->expert) differ(from, me, false, offered.expert);
        if (offered.expert > peer.receives[mine]->expert) differ(from, me, true, peer.receives[mine]->expert);
        Transfer &receive = *peer.receives[mine++];
        receive.slot = offered.slot;
        receive.code = offered.code;
        receive.item = item;
    }
    if (mine < peer.receives.size()) differ(from, me, true, peer.receives[mine]->expert);
    mine = 0;
    for (uint32_t want = 0; want < head.wants; ++want) {
        const int32_t expert = next(int32_t{});
        if (mine == peer.sends.size() || expert < peer.sends[mine]->expert) differ(me, from, true, expert);
        if (expert > peer.sends[mine]->expert) differ(me, from, false, peer.sends[mine]->expert);
        ++mine;
    }
    if (mine < peer.sends.size()) differ(me, from, false, peer.sends[mine]->expert);
}

Busy Exchange::poll() noexcept {
    Busy busy = Busy::no;
    guarded([&] {
        if (flight_) busy = flight_->poll();
        land();
    });
    return busy;
}

void Exchange::land() {
    for (size_t i = 0; i < flying_.size();) {
        Transfer &receive = *flying_[i];
        if (!receive.landed) {
            ++i;
            continue;
        }
        flying_[i] = flying_.back();
        flying_.pop_back();
        Peer &peer = peers_[receive.peer];
        --peer.missing;
        --missing_;
        settle_waits(receive.peer, peer);
        log(MOELINK_LOG_DEBUG, "round {}: rank {} has expert {} of rank {}", round_.generation, place_.group.rank(), receive.expert,
            receive.peer);
        if (!checked_) continue;
        ++rounds_.checked_experts;
        if (code_of(place_.device, receive.rows, rounds_.room, round_.stream) != receive.code) {
            fail(MOELINK_ERR_INTERNAL, "layer {}: expert {} of rank {} arrived with another code than it was sent with",
                 round_.layer->number, receive.expert, receive.peer);
        }
    }
}

void Exchange::settle_waits(int rank, Peer &peer) {
    if (peer.timed || !peer.ready || peer.missing != 0) return;
    peer.timed = true;
    if (!waiting_since_) return;
    rounds_.wait_ns[static_cast<size_t>(rank)] +=
        static_cast<uint64_t>(std::chrono::nanoseconds(Deadline::clock::now() - *waiting_since_).count());
}

}  // namespace moelink::eplb
