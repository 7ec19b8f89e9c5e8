// Experts through host memory, at the receiver's pace: it asks for one chunk after the other, the sender copies the chunk from its rows
// into a ring and sends it over the group's own connections, or says where it is to a receiver that reads the ring over a network and
// says when it has. What STAGED is, and READ where rows cannot be read.
#pragma once

#include "eplb/network_ring.hpp"

#include <atomic>
#include <deque>
#include <memory>

namespace moelink::eplb {

// Host memory for chunks in flight, pinned on CUDA; made once and used over and over. Shared, since what is being sent outlives
// a round that is given up.
class ChunkRing : public std::enable_shared_from_this<ChunkRing> {
public:
    static constexpr int slots = 8;
    static uint64_t bytes(uint64_t chunk_bytes);
    ChunkRing(const Device &device, uint64_t chunk_bytes);
    ChunkRing(const ChunkRing &) = delete;
    ChunkRing &operator=(const ChunkRing &) = delete;

    // A free slot, now taken; -1 when there is none.
    int take();
    void give_back(int slot) noexcept { taken_[slot].store(false, std::memory_order_release); }
    uint64_t offset(int slot) const { return static_cast<uint64_t>(slot) * stride_; }
    unsigned char *at(int slot) const { return memory_.as() + offset(slot); }
    // The slot as a payload of a head and `bytes` of data; it comes back when that is out.
    Payload lend(int slot, uint64_t bytes);

private:
    uint64_t stride_;
    PinnedBuffer memory_;
    std::atomic<bool> taken_[slots]{};
};

// What the pulls of a communicator share.
struct PullRoom {
    enum class Way { connections, network_too };
    PullRoom(const CommBackendParams &params, Way way);
    ~PullRoom() { network.reset(); }  // before the landing that it has registered
    PullRoom(const PullRoom &) = delete;
    PullRoom &operator=(const PullRoom &) = delete;
    // Collective, with network_too.
    void meet(const Deadline &deadline);
    bool reads(int rank) const { return network && network->reads(rank); }
    uint64_t host_bytes() const;

    Group &group;
    const Device &device;
    const std::vector<ProcessPlace> places;
    const uint64_t chunk_bytes;
    const std::shared_ptr<ChunkRing> ring;
    std::unique_ptr<NetworkRing> network;      // NULL where chunks are only sent
    const std::shared_ptr<ChunkRing> landing;  // on CUDA and with a network: where chunks wait to be copied to their rows
};

// Of one round.
class Pull {
public:
    Pull(PullRoom &room, Round &round);
    Pull(const Pull &) = delete;
    Pull &operator=(const Pull &) = delete;

    // To be pulled; its sender is ready.
    void fetch(Transfer &receive);
    void give_up() noexcept { asking_.clear(); }
    void on_message(int from, const MessageHead &head, const Payload &payload);
    Busy poll();
    void end();

private:
    // A receive on its way.
    struct Fetch {
        Transfer *receive;
        uint64_t bytes;
        uint64_t asked;   // [bytes] from the start
        uint64_t landed;  // [bytes]
        std::vector<uint64_t> open;  // offsets of the chunks that have been asked for and not come
    };
    // A chunk that a peer has asked for.
    struct Request {
        int peer;
        MessageHead head;
    };
    // A chunk on its way from a peer's ring.
    struct Read {
        int slot;  // of the landing
        int peer_slot;
        std::unique_ptr<NetworkGet> get;
        Request request;
        Fetch *fetch;
    };
    struct Loan {
        int peer;
        int slot;
    };
    // A chunk between device and ring.
    struct Copy {
        int slot;
        Mark mark;
        Request request;  // of what is sent; receives have a fetch instead
        Fetch *fetch;
    };

    void request(int from, const MessageHead &head);
    void ask();
    void serve();
    void receive(int from, const MessageHead &head, const Payload &payload);
    void read(int from, const MessageHead &head, const Payload &payload);
    void take_back(int peer, int slot);
    // Throws PROTOCOL for a chunk that is none of those that were asked for.
    Fetch &asked(int from, const MessageHead &head);
    uint64_t chunk_at(const Fetch &fetch, uint64_t offset) const;
    void accept(Fetch &fetch, const MessageHead &head);
    int landing_slot(int from, const Payload &payload);
    void move_on(Fetch &fetch, const Request &request, int slot);
    void advance_reads();
    void advance_copies();
    void hand_over(const Copy &copy);
    void arrived(Fetch &fetch, uint64_t bytes);
    const Transfer &sent(int peer, uint32_t item) const;

    PullRoom &room_;
    Round &round_;
    std::map<int, std::vector<const Transfer *>> sends_;  // by peer, in the order of items
    std::deque<Fetch> wanted_;                            // a deque: its elements stay where they are
    std::deque<Fetch *> asking_;                          // those not asked for to the end, in turn
    int in_flight_ = 0;                                   // chunks asked for
    std::deque<Request> requests_;
    std::deque<Message> parked_;                          // those that wait for a place to land
    std::vector<Read> reads_;
    std::vector<Loan> loans_;                             // slots of this rank's ring that peers read
    std::deque<Copy> copies_;                             // in stream order
};

// [bytes] of host memory that a PullRoom takes.
uint64_t pull_host_bytes(int32_t device, const moelink_eplb_comm_params &params);

}  // namespace moelink::eplb
