// What the connections of one rank share: the I/O thread, the listener, and the knowledge which group a new connection is for.
// A group and everything split off it use one hub.
#pragma once

#include "base/deadline.hpp"
#include "group/dialer.hpp"
#include "group/listener.hpp"

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/post.hpp>

namespace moelink {

class Hub {
public:
    using OnLink = Listener::OnLink;

    // watchful: after each event the I/O thread looks for the next one for a moment, before it sleeps.
    explicit Hub(bool watchful);
    ~Hub();
    Hub(const Hub &) = delete;
    Hub &operator=(const Hub &) = delete;

    // Binds to one address or (NULL) to all; nobody is accepted before start. Throws Error.
    void listen(const Address *address);
    void start(const Secret &secret);
    Endpoint endpoint() const { return endpoint_; }
    uint64_t strangers() const { return listener_ ? listener_->strangers() : 0; }

    asio::io_context &io() { return io_; }
    template <class Work>
    void post(Work &&work) {
        asio::post(io_, std::forward<Work>(work));
    }
    // Runs work on the I/O thread and waits for it; throws what it throws.
    void run(const std::function<void()> &work);

    // Connects and waits; throws Error.
    std::shared_ptr<Link> dial(DialTarget target, const Deadline &deadline);

    // All three on the I/O thread. Connections that came before their group was expected are handed over at once; those that come after
    // it was forgotten are closed.
    void expect(const Session &session, OnLink on_link);
    void forget(const Session &session);
    void finish(std::shared_ptr<Link> link);  // lets what is queued go out; the hub's end waits for it a moment

private:
    void arrived(std::shared_ptr<Link> link, const Hello &hello);
    void serve();
    void work();

    struct Early {
        std::shared_ptr<Link> link;
        Hello hello;
    };

    const bool watchful_;
    asio::io_context io_;
    asio::executor_work_guard<asio::io_context::executor_type> work_;
    std::unique_ptr<Listener> listener_;
    Endpoint endpoint_{};
    std::map<Session, OnLink> expected_;
    std::vector<Early> early_;
    std::deque<Session> forgotten_;  // the latest
    std::mutex mutex_;
    std::condition_variable flushed_;
    size_t finishing_ = 0;
    std::thread thread_;
};

}  // namespace moelink
