#include "group/thread_transport.hpp"

#include "group/round.hpp"

#include <condition_variable>
#include <map>
#include <mutex>
#include <utility>

namespace moelink {

namespace {

struct Board {
    explicit Board(int size) : size(size), round(size), inboxes(static_cast<size_t>(size)) {}

    struct Outcome {
        Decision decision;
        int unread;
    };
    struct Part {
        std::shared_ptr<Board> board;
        int unread;
    };

    const int size;
    mutable std::mutex mutex;
    std::condition_variable changed;
    Round round;
    std::map<uint64_t, Outcome> outcomes;  // until every rank has read them
    std::vector<std::deque<Message>> inboxes;
    std::map<std::pair<uint64_t, std::vector<int>>, Part> parts;
    moelink_status fault = MOELINK_OK;
    std::string fault_text;
    bool finalized = false;

    void publish(std::unique_ptr<Decision> decision) {
        if (!decision) return;
        auto head = decision->head();
        if (head.op == op_finalize && head.status == MOELINK_OK) finalized = true;
        outcomes.emplace(head.seq, Outcome{std::move(*decision), size});
        changed.notify_all();
    }

    void end(moelink_status status, std::string text) {
        if (finalized || fault != MOELINK_OK) return;
        fault = status;
        fault_text = std::move(text);
        changed.notify_all();
    }
};

class ThreadTransport final : public Transport {
public:
    ThreadTransport(std::shared_ptr<Board> board, int rank) : board_(std::move(board)), rank_(rank) {}

    ~ThreadTransport() override {
        std::deque<Message> unread;  // given up outside the lock: what they keep may have a lock of its own
        std::lock_guard lock(board_->mutex);
        unread.swap(inbox());
        board_->end(MOELINK_ERR_PEER_EXITED, fmt::format("rank {} destroyed its group without finalize", rank_));
    }

    void allgather(const void *mine, void *all, uint64_t bytes, const Deadline &deadline, Attendant *attendant) override {
        Decision result = call(op_allgather, bytes, 0, mine, deadline, attendant);
        if (result.bytes() != 0) std::memcpy(all, result.data(), result.bytes());
    }

    void broadcast(void *data, uint64_t bytes, int root, const Deadline &deadline) override {
        Decision result = call(op_broadcast, bytes, root, data, deadline);
        if (rank_ != root && bytes != 0) std::memcpy(data, result.data(), bytes);
    }

    void finalize(const Deadline &deadline) override { call(op_finalize, 0, 0, nullptr, deadline); }

    void send(int to, Payload payload, const Deadline &) override {
        std::lock_guard lock(board_->mutex);
        if (board_->fault != MOELINK_OK) throw Error(board_->fault, board_->fault_text);
        board_->inboxes[static_cast<size_t>(to)].push_back(Message{rank_, std::move(payload)});
        board_->changed.notify_all();
    }

    bool attend(Attendant &attendant, const std::function<bool()> &done, const Deadline &deadline) override {
        std::unique_lock lock(board_->mutex);
        auto over = [&] { return board_->fault != MOELINK_OK || done(); };
        const bool in_time = wait_attending(lock, board_->changed, inbox(), deadline, &attendant, over);
        if (board_->fault != MOELINK_OK) throw Error(board_->fault, board_->fault_text);
        return in_time;
    }

    void abort() noexcept override {
        std::lock_guard lock(board_->mutex);
        board_->end(MOELINK_ERR_ABORTED, fmt::format("rank {} aborted the group", rank_));
    }

    moelink_status fault(std::string *text) const noexcept override {
        std::lock_guard lock(board_->mutex);
        if (text != nullptr) *text = board_->fault_text;
        return board_->fault;
    }

    uint64_t strangers() const noexcept override { return 0; }

    std::unique_ptr<Transport> split(const std::vector<int> &members, uint64_t number, const Deadline &deadline) override {
        std::shared_ptr<Board> board;
        {
            std::lock_guard lock(board_->mutex);
            auto key = std::make_pair(number, members);
            auto size = static_cast<int>(members.size());
            auto part = board_->parts.try_emplace(key, Board::Part{nullptr, size}).first;
            if (!part->second.board) part->second.board = std::make_shared<Board>(size);
            board = part->second.board;
            if (--part->second.unread == 0) board_->parts.erase(part);
        }
        int rank = 0;
        while (members[static_cast<size_t>(rank)] != rank_) ++rank;
        auto transport = std::make_unique<ThreadTransport>(std::move(board), rank);
        transport->call(op_open, 0, 0, nullptr, deadline);
        return transport;
    }

private:
    std::deque<Message> &inbox() { return board_->inboxes[static_cast<size_t>(rank_)]; }

    Decision call(uint32_t op, uint64_t bytes, int root, const void *data, const Deadline &deadline,
                  Attendant *attendant = nullptr) {
        auto started = Deadline::clock::now();
        std::unique_lock lock(board_->mutex);
        if (board_->fault != MOELINK_OK) throw Error(board_->fault, board_->fault_text);
        uint64_t seq = next_++;
        // A round may have been given up before this rank came to it; its outcome is there then.
        Call mine{seq, bytes, op, rank_, root, 0};
        board_->publish(board_->round.add(mine, static_cast<const uint8_t *>(data)));
        auto decided = [&] { return board_->outcomes.count(seq) != 0 || board_->fault != MOELINK_OK; };
        if (!wait_attending(lock, board_->changed, inbox(), deadline, attendant, decided)) {
            auto waited = std::chrono::nanoseconds(Deadline::clock::now() - started).count();
            board_->publish(board_->round.give_up(seq, rank_, static_cast<uint64_t>(waited)));
        }
        auto found = board_->outcomes.find(seq);
        if (found == board_->outcomes.end()) throw Error(board_->fault, board_->fault_text);
        Decision decision = found->second.decision;
        if (--found->second.unread == 0) board_->outcomes.erase(found);
        lock.unlock();
        if (decision.head().status != MOELINK_OK) throw Error(decision.head().status, decision.text());
        return decision;
    }

    std::shared_ptr<Board> board_;
    const int rank_;
    uint64_t next_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> make_thread_transports(int size) {
    auto board = std::make_shared<Board>(size);
    std::vector<std::unique_ptr<Transport>> all;
    for (int rank = 0; rank < size; ++rank) all.push_back(std::make_unique<ThreadTransport>(board, rank));
    return all;
}

}  // namespace moelink
