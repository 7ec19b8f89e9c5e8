#include "group/thread_transport.hpp"

#include "group/origin.hpp"
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
        int absent;  // ranks that have not been through with its opening
    };
    using PartName = std::pair<uint64_t, std::vector<int>>;

    const int size;
    mutable std::mutex mutex;
    std::condition_variable changed;
    Round round;
    std::map<uint64_t, Outcome> outcomes;  // until every rank has read them
    std::vector<std::deque<Message>> inboxes;
    std::map<PartName, Part> parts;  // that are being opened
    Origin origin;
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
        for (auto &[name, part] : parts) part.board->note_origin(fault, fault_text);
    }

    void note_origin(moelink_status status, const std::string &text) {
        std::lock_guard lock(mutex);
        origin.note(status, text);
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
        const Board::PartName name(number, members);
        int rank = 0;
        while (members[static_cast<size_t>(rank)] != rank_) ++rank;
        auto transport = std::make_unique<ThreadTransport>(begin_opening(name), rank);
        try {
            transport->call(op_open, 0, 0, nullptr, deadline);
        } catch (...) {
            end_opening(name);
            throw;
        }
        end_opening(name);
        return transport;
    }

private:
    std::shared_ptr<Board> begin_opening(const Board::PartName &name) {
        std::lock_guard lock(board_->mutex);
        auto size = static_cast<int>(name.second.size());
        Board::Part &part = board_->parts.try_emplace(name, Board::Part{nullptr, size}).first->second;
        if (!part.board) part.board = std::make_shared<Board>(size);
        if (board_->fault != MOELINK_OK) part.board->note_origin(board_->fault, board_->fault_text);
        return part.board;
    }

    void end_opening(const Board::PartName &name) {
        std::lock_guard lock(board_->mutex);
        auto part = board_->parts.find(name);
        if (--part->second.absent == 0) board_->parts.erase(part);
    }

    // False when the deadline passes first.
    bool wait_opening(std::unique_lock<std::mutex> &lock, const std::function<bool()> &over, const Deadline &deadline) {
        const Opening how = wait_to_open(lock, board_->changed, board_->origin, deadline, over);
        if (how == Opening::orphaned) board_->end(board_->origin.fault, board_->origin.text);
        return how != Opening::late;
    }

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
        const bool in_time = op == op_open ? wait_opening(lock, decided, deadline)
                                           : wait_attending(lock, board_->changed, inbox(), deadline, attendant, decided);
        if (!in_time) {
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
