// One round as a rank sees it. Each pair of ranks that has something to move tells each other what (an offer: the sender's rows
// are stable from then on, and both lists must match); data then move as the back end does it; when a rank has all that it wants
// it says so to all, which is also its word that it reads no peer's rows any more. Every message carries the round's number.
#pragma once

#include "base/guard.hpp"
#include "eplb/comm_backend.hpp"

#include <deque>
#include <functional>
#include <optional>

namespace moelink::eplb {

// The back end's connections or queues are in a state that only a new communicator mends, on every rank.
class LostRound : public Error {
public:
    using Error::Error;
};

class Exchange;

// The rounds that a rank has under way, oldest first, and what outlives them. Messages go to the round that they name, and all rounds
// go on while the rank waits in any.
class Rounds final : public Attendant {
public:
    explicit Rounds(int ranks) : wait_ns(static_cast<size_t>(ranks), 0) {}

    void enter(Exchange &exchange);  // newer than all others; gets what came too early for it
    void leave(const Exchange &exchange) noexcept;

    std::vector<uint64_t> wait_ns;    // by rank
    uint64_t stale_messages = 0;
    uint64_t checked_experts = 0;
    std::vector<unsigned char> room;  // for codes

private:
    void on_message(const Message &message) noexcept override;
    Busy poll() noexcept override;

    std::vector<Exchange *> under_way_;
    uint64_t newest_ = 0;        // generation that has been entered
    std::deque<Message> early_;  // of rounds that have not
};

// All ranks make the same calls on their rounds in the same order.
class Exchange final {
public:
    struct Place {
        Group &group;
        const Device &device;
        StripCopier &copier;
        CommBackend &backend;
        const CommKind &kind;
    };
    // context tells apart what ranks believe about the layer; 0: this rank believes nothing.
    Exchange(const Place &place, Round &round, Rounds &rounds, uint64_t context, bool checked);
    ~Exchange() { rounds_.leave(*this); }
    Exchange(const Exchange &) = delete;
    Exchange &operator=(const Exchange &) = delete;

    // Local. Tells peers what this rank has for them; what fails is kept for finish. The data move whenever this rank waits.
    void start(const Deadline &deadline);
    // Local, after start: finish will fail, on every rank; lost: as a LostRound.
    void call_off(const Outcome &why, bool lost) noexcept;
    // Collective. Returns when every rank has everything that it wants. Throws Error, and then no rank returns from here, but
    // one that heard of the agreement before it lost the others.
    void finish(const Deadline &deadline);
    // Ranks may disagree about the outcome.
    bool lost() const { return lost_; }

    uint64_t generation() const { return round_.generation; }
    void on_message(const MessageHead &head, const Message &message) noexcept;
    Busy poll() noexcept;
    void failed(moelink_status status, std::string text, bool lost = false);

private:
    struct Peer {
        std::vector<Transfer *> sends;     // by expert
        std::vector<Transfer *> receives;  // by expert
        size_t missing = 0;                // receives that have not landed
        bool offered = false;              // our offer is out
        bool told = false;                 // that this rank has failed
        bool ready = false;                // its offer is here, and matches
        bool timed = false;
    };

    void prepare();
    void move_inside();
    void send_offers();
    void send_offer(int to, Peer &peer);
    void send_abort(int to);
    void broke(moelink_status status, std::string text, bool lost) noexcept;
    // Serves peers until it is reached or something has failed.
    void wait_until(const std::function<bool()> &reached);
    bool all_ready() const;
    bool all_landed() const { return missing_ == 0; }
    std::string missing_text() const;
    // Collective: every rank's word; throws unless all go on.
    void agree(const Deadline &deadline);

    void set_deadline(const Deadline &deadline);
    void on_offer(int from, const uint8_t *body, uint64_t bytes);
    void match(int from, Peer &peer, const uint8_t *body, uint64_t bytes);
    void land();
    void settle_waits(int rank, Peer &peer);
    template <class Body>
    void guarded(Body &&body) noexcept;

    Place place_;
    Round &round_;
    Rounds &rounds_;
    std::unique_ptr<CommFlight> flight_;  // NULL: it could not begin
    uint64_t context_;
    bool checked_;
    std::map<int, Peer> peers_;
    std::vector<Transfer *> flying_;  // receives from other ranks that have not landed
    size_t missing_ = 0;
    Deadline deadline_;
    std::optional<Deadline::clock::time_point> waiting_since_;
    Outcome outcome_;
    bool lost_ = false;
    bool moving_ = false;  // in a kind that acts together: nobody can call back what has been started
};

}  // namespace moelink::eplb
