// Accepts connections and lets in those that prove that they know the secret; all others are closed without a byte of an answer,
// and counted. Nothing a stranger does takes a thread or more than a short time.
#pragma once

#include "group/endpoint.hpp"
#include "group/link.hpp"

#include <atomic>
#include <functional>
#include <map>
#include <memory>

#include <asio/io_context.hpp>
#include <asio/steady_timer.hpp>

namespace moelink {

class Listener {
public:
    using OnLink = std::function<void(std::shared_ptr<Link>, const Hello &)>;

    // Binds, to one address or (NULL) to all of this host, but accepts nobody yet. Throws Error PEER_UNREACHABLE.
    Listener(asio::io_context &io, const Address *address);
    ~Listener();

    uint16_t port() const { return port_; }
    uint64_t strangers() const { return strangers_.load(std::memory_order_relaxed); }

    // Both on the I/O thread.
    void start(const Secret &secret, OnLink on_link);
    void close();

private:
    class Greeting;
    void accept();
    void greet(asio::ip::tcp::socket socket);
    void done(uint64_t number) { greetings_.erase(number); }

    asio::ip::tcp::acceptor acceptor_;
    asio::steady_timer pause_;
    bool warned_ = false;  // that descriptors ran out; once is enough
    uint16_t port_ = 0;
    Secret secret_{};
    OnLink on_link_;
    std::map<uint64_t, std::shared_ptr<Greeting>> greetings_;  // by age
    uint64_t next_number_ = 0;
    std::atomic<uint64_t> strangers_{0};
};

}  // namespace moelink
