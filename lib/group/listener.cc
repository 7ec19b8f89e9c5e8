#include "group/listener.hpp"

#include "base/error.hpp"
#include "base/log.hpp"

#include <algorithm>
#include <chrono>

#include <asio/ip/v6_only.hpp>
#include <asio/read.hpp>
#include <asio/write.hpp>

#include <sys/resource.h>

namespace moelink {

namespace {

// Longer than any honest handshake, also on a machine that is far too busy.
constexpr std::chrono::seconds patience{5};
constexpr int backlog = 4096;

// Beyond this many unfinished handshakes the oldest is given up: the right ranks take milliseconds. Strangers must not take
// all the descriptors that the process may have.
size_t most_greetings() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
    return static_cast<size_t>(std::clamp<rlim_t>(limit.rlim_cur / 3, 16, 2048));
}

}  // namespace

// One connection until it is a Link or closed.
class Listener::Greeting : public std::enable_shared_from_this<Greeting> {
public:
    Greeting(Listener &listener, uint64_t number, asio::ip::tcp::socket socket)
        : listener_(listener), number_(number), socket_(std::move(socket)), timer_(socket_.get_executor()) {}

    void start() {
        timer_.expires_after(patience);
        timer_.async_wait([self = shared_from_this()](const asio::error_code &error) {
            if (!error) self->stranger("said nothing useful in time");
        });
        asio::async_read(socket_, asio::buffer(&connector_, sizeof connector_),
                         [self = shared_from_this()](const asio::error_code &error, size_t) {
                             if (self->over_) return;
                             if (error) return self->stranger("left before it had introduced itself");
                             self->heard_hello();
                         });
    }

    void close() {
        over_ = true;
        timer_.cancel();
        asio::error_code ignored;
        socket_.close(ignored);
    }

    void stranger(const char *why) {
        if (over_) return;
        asio::error_code ignored;
        auto from = socket_.remote_endpoint(ignored);
        listener_.strangers_.fetch_add(1, std::memory_order_relaxed);
        log(MOELINK_LOG_DEBUG, "a stranger from {} {}", endpoint_text(from), why);
        end();
    }

private:
    void end() {
        close();
        listener_.done(number_);
    }

    void heard_hello() {
        if (!is_hello(connector_)) return stranger("does not speak this protocol");
        if (!connector_is_genuine(listener_.secret_, connector_)) return stranger("does not know the secret");
        acceptor_ = acceptor_hello(listener_.secret_, connector_);
        bool same_version = connector_.version == protocol_version;
        if (!same_version) {
            log(MOELINK_LOG_WARN, "rank {} speaks protocol version {}, this library version {}; it was refused", connector_.from,
                connector_.version, protocol_version);
        }
        asio::async_write(socket_, asio::buffer(&acceptor_, sizeof acceptor_),
                          [self = shared_from_this(), same_version](const asio::error_code &error, size_t) {
                              if (self->over_) return;
                              if (error || !same_version) return self->end();
                              self->hear_proof();
                          });
    }

    void hear_proof() {
        asio::async_read(socket_, asio::buffer(proof_), [self = shared_from_this()](const asio::error_code &error, size_t) {
            if (self->over_) return;
            // Genuine ranks leave here when another of the addresses answered first.
            if (error) return self->end();
            if (!proof_is_genuine(self->listener_.secret_, self->connector_, self->acceptor_, self->proof_)) {
                return self->stranger("repeated somebody's hello without knowing the secret");
            }
            self->welcome();
        });
    }

    void welcome() {
        over_ = true;
        timer_.cancel();
        const Secret &secret = listener_.secret_;
        auto link = std::make_shared<Link>(std::move(socket_), FrameKey(secret, connector_, acceptor_, true),
                                           FrameKey(secret, connector_, acceptor_, false), connector_.from);
        listener_.done(number_);
        listener_.on_link_(std::move(link), connector_);
    }

    Listener &listener_;
    uint64_t number_;
    asio::ip::tcp::socket socket_;
    asio::steady_timer timer_;
    Hello connector_{};
    Hello acceptor_{};
    Proof proof_{};
    bool over_ = false;
};

Listener::Listener(asio::io_context &io, const Address *address) : acceptor_(io), pause_(io) {
    asio::error_code error;
    auto bind = [&](const asio::ip::tcp::endpoint &endpoint) {
        if (acceptor_.is_open()) acceptor_.close();
        acceptor_.open(endpoint.protocol(), error);
        if (error) return;
        close_on_exec(acceptor_.native_handle());
        if (address == nullptr && endpoint.address().is_v6()) acceptor_.set_option(asio::ip::v6_only(false), error);
        if (!error) acceptor_.bind(endpoint, error);
        if (!error) acceptor_.listen(backlog, error);
    };
    if (address != nullptr) {
        asio::ip::tcp::endpoint endpoint(from_address(*address), 0);
        bind(endpoint);
        if (error) {
            fail(MOELINK_ERR_PEER_UNREACHABLE, "cannot listen on {}: {}; pass an address of this host",
                 endpoint.address().to_string(),
                 error.message());
        }
    } else {
        bind({asio::ip::tcp::v6(), 0});
        if (error) bind({asio::ip::tcp::v4(), 0});  // a host without IPv6
        if (error) fail(MOELINK_ERR_PEER_UNREACHABLE, "cannot listen on any address of this host: {}", error.message());
    }
    port_ = acceptor_.local_endpoint().port();
}

Listener::~Listener() = default;

void Listener::start(const Secret &secret, OnLink on_link) {
    secret_ = secret;
    on_link_ = std::move(on_link);
    accept();
}

void Listener::close() {
    asio::error_code ignored;
    acceptor_.close(ignored);
    pause_.cancel();
    for (auto &[number, greeting] : greetings_) greeting->close();
    greetings_.clear();
}

void Listener::accept() {
    acceptor_.async_accept([this](const asio::error_code &error, asio::ip::tcp::socket socket) {
        if (!acceptor_.is_open()) return;
        if (!error) {
            greet(std::move(socket));
            return accept();
        }
        // Out of descriptors, most likely: others wait in the backlog meanwhile.
        log(std::exchange(warned_, true) ? MOELINK_LOG_DEBUG : MOELINK_LOG_WARN, "cannot accept a connection: {}; trying again (is the limit of open files too low?)",
            error.message());
        pause_.expires_after(std::chrono::milliseconds(50));
        pause_.async_wait([this](const asio::error_code &cancelled) {
            if (!cancelled && acceptor_.is_open()) accept();
        });
    });
}

void Listener::greet(asio::ip::tcp::socket socket) {
    prepare_socket(socket);
    if (greetings_.size() >= most_greetings()) {
        auto oldest = greetings_.begin()->second;
        oldest->stranger("was the oldest of too many that said nothing");
    }
    uint64_t number = next_number_++;
    auto greeting = std::make_shared<Greeting>(*this, number, std::move(socket));
    greetings_.emplace(number, greeting);
    greeting->start();
}

}  // namespace moelink
