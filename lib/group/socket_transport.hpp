// Ranks that are processes: a tree of authenticated connections. Calls go up to rank 0, which decides the outcome of each
// collective for all, and the outcome comes down.
#pragma once

#include "group/group.hpp"
#include "group/hub.hpp"
#include "group/origin.hpp"
#include "group/round.hpp"

#include <condition_variable>
#include <map>
#include <mutex>
#include <vector>

namespace moelink {

class SocketTransport final : public Transport, private Link::Owner {
public:
    // What the ranks of a group know of each other.
    struct Plan {
        std::shared_ptr<Hub> hub;
        Secret secret;
        Session session;
        int rank;
        std::vector<Endpoint> endpoints;  // of all ranks
    };

    explicit SocketTransport(Plan plan);
    ~SocketTransport() override;

    // Connects; collective, the first call; returns when all ranks are connected. Throws Error.
    void open(const Deadline &deadline);

    void allgather(const void *mine, void *all, uint64_t bytes, const Deadline &deadline, Attendant *attendant) override;
    void broadcast(void *data, uint64_t bytes, int root, const Deadline &deadline) override;
    void finalize(const Deadline &deadline) override;
    void send(int to, Payload payload, const Deadline &deadline) override;
    bool attend(Attendant &attendant, const std::function<bool()> &done, const Deadline &deadline) override;
    void abort() noexcept override;
    moelink_status fault(std::string *text) const noexcept override;
    uint64_t strangers() const noexcept override { return plan_.hub->strangers(); }
    std::unique_ptr<Transport> split(const std::vector<int> &members, uint64_t number, const Deadline &deadline) override;

private:
    int size() const { return static_cast<int>(plan_.endpoints.size()); }
    int parent() const;
    bool is_child(int rank) const;

    Decision call(uint32_t op, uint64_t bytes, int root, const void *data, uint64_t data_bytes, const Deadline &deadline,
                  Attendant *attendant = nullptr);
    DialTarget target(int rank, Purpose purpose) const;
    bool wait_opening(std::unique_lock<std::mutex> &lock, const std::function<bool()> &over, const Deadline &deadline);

    // From here on: on the I/O thread.
    void attach(std::shared_ptr<Link> link, const Hello &hello);
    void dialed(int rank, Dialed result);
    void deliver(int rank, Payload payload, const Deadline &deadline);
    bool is_incoming(const Link &link) const;
    void attach_parent(Dialed result);
    void take_on(Link &link);
    void on_frame(Link &link, uint32_t type, Bytes payload) override;
    void on_lost(Link &link, moelink_status status, const std::string &text) override;
    Bytes spare() override { return pool_->take(); }
    void on_call(Bytes frame);
    void on_give_up(Bytes frame);
    void on_decision(const Decision &decision);
    void on_fault(const Bytes &frame, const Link *from);
    void up(uint32_t type, SharedBytes frame);
    void down(uint32_t type, const SharedBytes &frame);
    void end(moelink_status status, const std::string &text, const Link *from);
    void detach();

    void note_fault(moelink_status status, const std::string &text);
    void note_origin(moelink_status status, const std::string &text);

    const Plan plan_;
    uint64_t next_ = 0;    // the caller's thread

    std::shared_ptr<Link> parent_;
    std::map<int, std::shared_ptr<Link>> children_;
    std::vector<std::pair<uint32_t, SharedBytes>> waiting_for_parent_;
    // Messages to a peer go over a connection that this rank makes, those from it over one that the peer makes.
    struct Outgoing {
        std::shared_ptr<Link> link;  // NULL while it is being made
        std::vector<Payload> waiting;
        bool gone = false;  // it has left; it does not come back under this session's name
    };
    std::map<int, Outgoing> outgoing_;
    std::map<int, std::shared_ptr<Link>> incoming_;
    std::shared_ptr<bool> attached_ = std::make_shared<bool>(true);  // false: a connection that is made now comes too late
    std::shared_ptr<BytePool> pool_ = std::make_shared<BytePool>();
    Round round_;  // rank 0 only
    bool finalized_ = false;
    bool flooded_ = false;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::map<uint64_t, Decision> decisions_;  // that this rank has not read yet
    std::deque<Message> inbox_;
    moelink_status fault_ = MOELINK_OK;
    std::string fault_text_;
    bool over_ = false;  // finalized: later faults are none
    SocketTransport *opening_ = nullptr;  // a part that is being opened
    Origin origin_;
};

}  // namespace moelink
