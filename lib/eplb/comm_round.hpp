// One round as a rank sees it. Each pair of ranks that has something to move tells each other what (an offer: the sender's rows
// are stable from then on, and both lists must match); data then move as the back end does it; when a rank has all that it wants
// it says so to all, which is also its word that it reads no peer's rows any more. Every message carries the round's number.
#pragma once

#include "base/guard.hpp"
#include "eplb/comm_backend.hpp"

#include <deque>
#include <functional>

namespace moelink::eplb {

// The back end's connections or queues are in a state that only a new communicator mends, on every rank.
class LostRound : public Error {
public:
    using Error::Error;
};

// What outlives a round.
struct RoundMemory {
    std::deque<Message> early;        // of rounds that this rank has not begun
    std::vector<uint64_t> wait_ns;    // by rank
    uint64_t stale_messages = 0;
    uint64_t checked_experts = 0;
    std::vector<unsigned char> room;  // for codes
};

class Exchange final : private Attendant {
public:
    struct Place {
        Group &group;
        const Device &device;
        CommBackend &backend;
        const CommKind &kind;
    };
    // context tells apart what ranks believe about the layer; 0: this rank believes nothing.
    Exchange(const Place &place, Round &round, RoundMemory &memory, uint64_t context, bool checked);

    // Collective. Returns when every rank has everything that it wants. Throws Error, and then no rank returns from here, but
    // one that heard of the agreement before it lost the others.
    void run(const Deadline &deadline);
    // Ranks may disagree about the outcome.
    bool lost() const { return lost_; }

private:
    struct Peer {
        std::vector<Transfer *> sends;     // by expert
        std::vector<Transfer *> receives;  // by expert
        size_t missing = 0;                // receives that have not landed
        bool offered = false;              // our offer is out
        bool ready = false;                // its offer is here, and matches
        bool timed = false;
    };

    void prepare();
    void move_inside();
    void send_offers();
    void send_offer(int to, Peer &peer);
    void send_abort(int to);
    // Serves peers until it is reached or something has failed.
    void wait_until(const std::function<bool()> &reached);
    bool all_ready() const;
    bool all_landed() const { return missing_ == 0; }
    std::string missing_text() const;
    // Collective: every rank's word; throws unless all go on.
    void agree(const Deadline &deadline);

    void on_message(const Message &message) noexcept override;
    bool poll() noexcept override;
    void on_offer(int from, const uint8_t *body, uint64_t bytes);
    void match(int from, Peer &peer, const uint8_t *body, uint64_t bytes);
    void land();
    void settle_waits(int rank, Peer &peer);
    void failed(moelink_status status, std::string text, bool lost = false);
    template <class Body>
    void guarded(Body &&body) noexcept;

    Place place_;
    Round &round_;
    RoundMemory &memory_;
    uint64_t context_;
    bool checked_;
    std::map<int, Peer> peers_;
    std::vector<Transfer *> flying_;  // receives from other ranks that have not landed
    size_t missing_ = 0;
    Deadline deadline_;
    Deadline::clock::time_point started_;
    Outcome outcome_;
    bool lost_ = false;
    bool moving_ = false;  // in a kind that acts together: nobody can call back what has been started
};

}  // namespace moelink::eplb
