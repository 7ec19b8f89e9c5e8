// Messages between two ranks of a group, beside its collectives.
#pragma once

#include "base/deadline.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace moelink {

using Bytes = std::vector<uint8_t>;
using SharedBytes = std::shared_ptr<const Bytes>;

// Bytes on their way, and what keeps them alive until they are out.
struct Payload {
    Payload() = default;
    Payload(SharedBytes bytes_kept)
        : data(bytes_kept ? bytes_kept->data() : nullptr), bytes(bytes_kept ? bytes_kept->size() : 0), keep(std::move(bytes_kept)) {}
    Payload(std::shared_ptr<Bytes> bytes_kept) : Payload(SharedBytes(std::move(bytes_kept))) {}
    Payload(std::shared_ptr<const void> kept, const uint8_t *at, uint64_t size) : data(at), bytes(size), keep(std::move(kept)) {}

    const uint8_t *data = nullptr;
    uint64_t bytes = 0;
    std::shared_ptr<const void> keep;
};

struct Message {
    int from = -1;
    Payload payload;
};

// What an attendant has under way.
enum class Busy {
    no,       // nothing that it must be asked for
    waiting,  // something that goes on by itself: it wants to be asked again soon
    working   // its own work: it wants to be asked again at once
};

// What a rank does for its peers while it waits for something else. Called on the waiting thread.
class Attendant {
public:
    virtual void on_message(const Message &message) noexcept = 0;
    // Advances what is under way.
    virtual Busy poll() noexcept = 0;

protected:
    ~Attendant() = default;
};

// Waits, under the lock of `changed` and of the inbox, until over() holds; messages go to the attendant meanwhile (NULL: they
// stay in the inbox). False when the deadline passes first.
template <class Over>
bool wait_attending(std::unique_lock<std::mutex> &lock, std::condition_variable &changed, std::deque<Message> &inbox,
                    const Deadline &deadline, Attendant *attendant, Over &&over) {
    if (attendant == nullptr) return changed.wait_until(lock, deadline.at(), over);
    // A nap takes several times as long as it is asked to, so what is short, such as a copy of some experts, is waited for without one.
    constexpr std::chrono::microseconds watch{1000}, nap{20};
    bool waiting = false;
    auto waiting_since = Deadline::clock::now();
    while (!over()) {
        if (deadline.passed()) return false;
        if (!inbox.empty()) {
            Message message = std::move(inbox.front());
            inbox.pop_front();
            lock.unlock();
            attendant->on_message(message);
            message = {};  // outside the lock: what it keeps may have a lock of its own
            lock.lock();
            waiting = false;
            continue;
        }
        lock.unlock();
        const Busy busy = attendant->poll();
        const auto now = Deadline::clock::now();
        if (!waiting) waiting_since = now;
        waiting = busy == Busy::waiting;
        const bool watching = waiting && now - waiting_since < watch;
        if (watching) std::this_thread::yield();
        lock.lock();
        if (watching || busy == Busy::working) continue;
        const auto until = waiting ? std::min(deadline.at(), now + nap) : deadline.at();
        changed.wait_until(lock, until, [&] { return over() || !inbox.empty(); });
    }
    return true;
}

// Buffers that received payloads go back to, so that a stream of large messages takes no new memory.
class BytePool : public std::enable_shared_from_this<BytePool> {
public:
    // A used buffer, of any size, or an empty one.
    Bytes take() {
        std::lock_guard lock(mutex_);
        if (free_.empty()) return {};
        Bytes bytes = std::move(free_.back());
        free_.pop_back();
        return bytes;
    }
    // Those bytes as a payload that comes back here.
    Payload lend(Bytes &&bytes) {
        auto *kept = new Bytes(std::move(bytes));
        std::shared_ptr<Bytes> shared(kept, [pool = shared_from_this()](Bytes *used) {
            pool->put(std::move(*used));
            delete used;
        });
        return Payload(shared, shared->data(), shared->size());
    }

private:
    static constexpr size_t most = 32;
    void put(Bytes &&bytes) noexcept {
        std::lock_guard lock(mutex_);
        if (free_.size() < free_.capacity()) free_.push_back(std::move(bytes));
    }
    std::mutex mutex_;
    std::vector<Bytes> free_ = [] {
        std::vector<Bytes> room;
        room.reserve(most);
        return room;
    }();
};

}  // namespace moelink
