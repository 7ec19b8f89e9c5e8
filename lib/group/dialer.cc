#include "group/dialer.hpp"

#include "base/error.hpp"

#include <algorithm>
#include <chrono>

#include <asio/post.hpp>
#include <asio/read.hpp>
#include <asio/steady_timer.hpp>
#include <asio/write.hpp>

namespace moelink {

namespace {

// A first address that leads nowhere must not cost the whole deadline.
constexpr std::chrono::milliseconds stagger{250};

class Dial : public std::enable_shared_from_this<Dial> {
public:
    Dial(asio::io_context &io, DialTarget target, const Deadline &deadline, std::function<void(Dialed)> done)
        : io_(io), target_(std::move(target)), deadline_(deadline), done_(std::move(done)), next_timer_(io), end_timer_(io) {}

    void start() {
        if (target_.addresses.empty()) return finish({nullptr, MOELINK_ERR_PEER_UNREACHABLE, target_.name + " gave no address"});
        end_timer_.expires_at(deadline_.at());
        end_timer_.async_wait([self = shared_from_this()](const asio::error_code &error) {
            if (!error) self->expired();
        });
        try_next();
    }

private:
    struct Attempt {
        explicit Attempt(asio::io_context &io) : socket(io) {}
        asio::ip::tcp::socket socket;
        asio::ip::tcp::endpoint address;
        Hello connector{};
        Hello acceptor{};
        Proof proof{};
        bool connected = false;
        bool over = false;
    };
    using AttemptPointer = std::shared_ptr<Attempt>;

    void try_next() {
        if (finished_ || next_ == target_.addresses.size()) return;
        auto attempt = std::make_shared<Attempt>(io_);
        attempt->address = target_.addresses[next_++];
        attempts_.push_back(attempt);
        next_timer_.expires_after(stagger);
        next_timer_.async_wait([self = shared_from_this()](const asio::error_code &error) {
            if (!error) self->try_next();
        });
        asio::error_code error;
        attempt->socket.open(attempt->address.protocol(), error);
        if (error) return failed(*attempt, MOELINK_ERR_PEER_UNREACHABLE, error.message());
        prepare_socket(attempt->socket);
        attempt->socket.async_connect(attempt->address, [self = shared_from_this(), attempt](const asio::error_code &refused) {
            if (self->finished_) return;
            if (refused) return self->failed(*attempt, MOELINK_ERR_PEER_UNREACHABLE, refused.message());
            self->introduce(attempt);
        });
    }

    void introduce(const AttemptPointer &attempt) {
        attempt->connected = true;
        attempt->connector = connector_hello(target_.secret, target_.purpose, target_.session, target_.from, target_.to);
        asio::async_write(attempt->socket, asio::buffer(&attempt->connector, sizeof(Hello)),
                          [](const asio::error_code &, size_t) {});  // the read below fails too
        asio::async_read(attempt->socket, asio::buffer(&attempt->acceptor, sizeof(Hello)),
                         [self = shared_from_this(), attempt](const asio::error_code &error, size_t) {
                             if (self->finished_) return;
                             if (error) {
                                 return self->failed(*attempt, MOELINK_ERR_AUTHENTICATION,
                                                     "closed the connection when it saw our hello, "
                                                     "as it does to those with another secret");
                             }
                             self->prove(attempt);
                         });
    }

    void prove(const AttemptPointer &attempt) {
        if (!acceptor_is_genuine(target_.secret, attempt->connector, attempt->acceptor)) {
            return failed(*attempt, MOELINK_ERR_AUTHENTICATION, "did not prove that it knows the secret");
        }
        if (attempt->acceptor.version != protocol_version) {
            return failed(*attempt, MOELINK_ERR_MISMATCH,
                          fmt::format("speaks protocol version {}, this library speaks version {}; use the same library on all "
                                      "ranks",
                                      attempt->acceptor.version, protocol_version));
        }
        attempt->proof = connector_proof(target_.secret, attempt->connector, attempt->acceptor);
        asio::async_write(attempt->socket, asio::buffer(attempt->proof),
                          [self = shared_from_this(), attempt](const asio::error_code &error, size_t) {
                              if (self->finished_) return;
                              if (error) return self->failed(*attempt, MOELINK_ERR_PEER_UNREACHABLE, error.message());
                              self->won(*attempt);
                          });
    }

    void won(Attempt &attempt) {
        attempt.over = true;
        Dialed result;
        result.link = std::make_shared<Link>(std::move(attempt.socket), FrameKey(target_.secret, attempt.connector,
                                                                                 attempt.acceptor, false),
                                             FrameKey(target_.secret, attempt.connector, attempt.acceptor, true), target_.to);
        finish(std::move(result));
    }

    static int weight(moelink_status status) {
        return status == MOELINK_ERR_MISMATCH ? 2 : status == MOELINK_ERR_AUTHENTICATION ? 1 : 0;
    }

    void note(Attempt &attempt, moelink_status status, const std::string &text) {
        attempt.over = true;
        asio::error_code ignored;
        attempt.socket.close(ignored);
        reasons_ += fmt::format("{}{} {}", reasons_.empty() ? "" : "; ", endpoint_text(attempt.address), text);
        if (worst_ == MOELINK_OK || weight(status) > weight(worst_)) worst_ = status;
    }

    void failed(Attempt &attempt, moelink_status status, const std::string &text) {
        if (attempt.over) return;
        note(attempt, status, text);
        bool all_over = std::all_of(attempts_.begin(), attempts_.end(), [](const AttemptPointer &one) { return one->over; });
        if (next_ < target_.addresses.size()) {
            try_next();
        } else if (all_over) {
            finish({nullptr, worst_, fmt::format("cannot connect to {}: {}", target_.name, reasons_)});
        }
    }

    void expired() {
        bool unanswered = false;
        for (const AttemptPointer &attempt : attempts_) {
            if (attempt->over) continue;
            unanswered = unanswered || attempt->connected;
            note(*attempt, MOELINK_ERR_PEER_UNREACHABLE, attempt->connected ? "accepted and said nothing" : "gave no answer");
        }
        moelink_status status = unanswered && worst_ == MOELINK_ERR_PEER_UNREACHABLE ? MOELINK_ERR_TIMEOUT : worst_;
        finish({nullptr, status, fmt::format("could not connect to {} before the deadline: {}", target_.name, reasons_)});
    }

    void finish(Dialed result) {
        if (std::exchange(finished_, true)) return;
        next_timer_.cancel();
        end_timer_.cancel();
        asio::error_code ignored;
        for (const AttemptPointer &attempt : attempts_) attempt->socket.close(ignored);
        attempts_.clear();
        std::exchange(done_, {})(std::move(result));
    }

    asio::io_context &io_;
    DialTarget target_;
    Deadline deadline_;
    std::function<void(Dialed)> done_;
    asio::steady_timer next_timer_;
    asio::steady_timer end_timer_;
    std::vector<AttemptPointer> attempts_;
    size_t next_ = 0;
    bool finished_ = false;
    moelink_status worst_ = MOELINK_OK;
    std::string reasons_;
};

}  // namespace

void dial(asio::io_context &io, DialTarget target, const Deadline &deadline, std::function<void(Dialed)> done) {
    auto one = std::make_shared<Dial>(io, std::move(target), deadline, std::move(done));
    asio::post(io, [one] { one->start(); });
}

}  // namespace moelink
