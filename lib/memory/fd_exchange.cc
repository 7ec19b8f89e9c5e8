#include "memory/fd_exchange.hpp"

#include "base/log.hpp"
#include "memory/fd_socket.hpp"
#include "memory/place.hpp"

#include <poll.h>
#include <sodium.h>

#include <algorithm>
#include <cerrno>
#include <optional>

namespace moelink {

namespace {

// What every rank tells the others over the group's own connections.
struct Card {
    ProcessPlace place;
    FdSocketName name;
    FdToken token;
};

constexpr size_t most_outgoing = 16;  // connections at once, so that many ranks need few descriptors
constexpr size_t most_unproven = 64;  // incoming connections beyond one a peer that have not said anything

// One rank's part: connects to every higher rank and is connected to by every lower one; the caller of a connection speaks
// first, and both show the token that the other made. A rank that cannot go on closes all that it has and tells the higher ranks that
// still wait for it.
class Exchange {
public:
    Exchange(int rank, const std::vector<Card> &cards, const std::string &directory, std::optional<FdListener> &listener, int mine,
             const std::function<void(int, Fd)> &take)
        : rank_(rank), cards_(cards), directory_(directory), listener_(listener), mine_(mine), take_(take),
          done_(cards.size(), 0), next_(static_cast<size_t>(rank) + 1) {
        done_[static_cast<size_t>(rank)] = 1;
    }

    Outcome run(const Group &group, const Deadline &deadline) {
        const Outcome own = attempt([&] { pass_all(group, deadline); });
        if (own.status != MOELINK_OK) {
            note(own);
            abandon();
        }
        return outcome_;
    }

private:
    struct Link {
        Fd fd;
        int peer;  // -1: not yet proven
    };

    const Card &card(int rank) const { return cards_[static_cast<size_t>(rank)]; }
    FdMessage message_to(int peer, bool failed = false) const { return FdMessage{card(peer).token, rank_, failed ? 1u : 0u}; }

    void pass_all(const Group &group, const Deadline &deadline) {
        std::string lost;
        while (true) {
            connect_more();
            auto missing = std::count(done_.begin(), done_.end(), 0);
            if (missing == 0) return;
            if (moelink_status fault = group.fault(&lost); fault != MOELINK_OK) {  // whoever is missing will not come any more
                return note({fault, lost});
            }
            if (deadline.passed()) {
                return note({MOELINK_ERR_TIMEOUT, fmt::format("no file descriptor came from {}", missing_text()), true});
            }
            wait(deadline);
        }
    }

    void abandon() noexcept {
        listener_.reset();
        outgoing_.clear();
        incoming_.clear();
        for (; next_ < cards_.size(); ++next_) {
            const int peer = static_cast<int>(next_);
            const Outcome told = attempt([&] {
                Fd fd = connect_fd_socket(directory_, card(peer).name);
                if (fd) send_fd(fd.get(), message_to(peer, true), -1);
            });
            if (told.status != MOELINK_OK) log(MOELINK_LOG_DEBUG, "rank {}: rank {} is not told: {}", rank_, peer, told.text);
        }
    }

    // The first problem of this rank's own is kept, or else the first.
    void note(Outcome problem) {
        if (outcome_.status == MOELINK_OK || (outcome_.secondhand && !problem.secondhand)) outcome_ = std::move(problem);
    }

    void finish(int peer, Fd fd) {
        done_[static_cast<size_t>(peer)] = 1;
        try {
            take_(peer, std::move(fd));
        } catch (const Error &error) {
            note({error.status(), fmt::format("memory of rank {}: {}", peer, error.text())});
        }
    }

    // The rest goes on, so that one bad peer does not stall the others.
    void give_up(int peer, const std::string &why) {
        done_[static_cast<size_t>(peer)] = 1;
        note({MOELINK_ERR_INTERNAL, fmt::format("rank {}: {}", peer, why), true});
    }

    // What went wrong between this rank and the peer: only what lies with the peer is no reason to end here.
    void failed(int peer, const Error &error) {
        if (error.status() != MOELINK_ERR_PEER_UNREACHABLE) throw Error(error.status(), fmt::format("rank {}: {}", peer, error.text()));
        give_up(peer, error.text());
    }

    void connect_more() {
        busy_ = false;
        while (next_ < cards_.size() && outgoing_.size() < most_outgoing) {
            int peer = static_cast<int>(next_);
            try {
                Fd fd = connect_fd_socket(directory_, card(peer).name);
                if (!fd) {
                    busy_ = true;
                    return;
                }
                send_fd(fd.get(), message_to(peer), mine_);
                outgoing_.push_back(Link{std::move(fd), peer});
            } catch (const Error &error) {
                failed(peer, error);
            }
            ++next_;
        }
    }

    void wait(const Deadline &deadline) {
        polls_.assign(1, pollfd{listener_->fd(), POLLIN, 0});
        for (const Link &link : outgoing_) polls_.push_back(pollfd{link.fd.get(), POLLIN, 0});
        for (const Link &link : incoming_) polls_.push_back(pollfd{link.fd.get(), POLLIN, 0});
        uint64_t left_ms = deadline.left_ns() / 1'000'000 + 1;
        int ready = poll(polls_.data(), polls_.size(), static_cast<int>(std::min<uint64_t>(left_ms, busy_ ? 5 : 1000)));
        if (ready < 0 && errno != EINTR) fail(MOELINK_ERR_INTERNAL, "{}", errno_text("poll", errno));
        if (ready <= 0) return;
        size_t outgoing = outgoing_.size();
        for (size_t i = 0; i < outgoing; ++i) {
            if (polls_[1 + i].revents != 0) serve_outgoing(outgoing_[i]);
        }
        for (size_t i = 0; i < incoming_.size(); ++i) {
            if (polls_[1 + outgoing + i].revents != 0) serve_incoming(incoming_[i]);
        }
        std::erase_if(outgoing_, [](const Link &link) { return !link.fd; });
        std::erase_if(incoming_, [](const Link &link) { return !link.fd; });
        if (polls_[0].revents != 0) accept_one();
    }

    void accept_one() {
        Fd fd = listener_->accept();
        if (!fd) return;
        if (incoming_.size() >= cards_.size() + most_unproven) incoming_.erase(incoming_.begin());
        incoming_.push_back(Link{std::move(fd), -1});
    }

    bool is_for_me(const FdMessage &message) const {
        return sodium_memcmp(message.token.data(), card(rank_).token.data(), message.token.size()) == 0;
    }

    void serve_outgoing(Link &link) {
        FdMessage message;
        Fd fd;
        Received what = receive_fd(link.fd.get(), message, fd);
        if (what == Received::nothing) return;
        if (what == Received::message && is_for_me(message) && message.rank == link.peer && fd) {
            finish(link.peer, std::move(fd));
        } else {
            give_up(link.peer, "it closed the connection without its file descriptor");
        }
        link.fd.close();
    }

    void serve_incoming(Link &link) {
        FdMessage message;
        Fd fd;
        Received what = receive_fd(link.fd.get(), message, fd);
        if (what == Received::nothing) return;
        bool known = what == Received::message && is_for_me(message) && message.rank >= 0 && message.rank < rank_ &&
                     done_[static_cast<size_t>(message.rank)] == 0;
        if (known && !fd) {
            give_up(message.rank, "it gave up before it had passed its file descriptor");
        } else if (known) {
            try {
                send_fd(link.fd.get(), message_to(message.rank), mine_);
                finish(message.rank, std::move(fd));
            } catch (const Error &error) {
                failed(message.rank, error);
            }
        } else {
            log(MOELINK_LOG_INFO, "rank {}: a stranger's connection for file descriptors was closed", rank_);
        }
        link.fd.close();
    }

    std::string missing_text() const {
        std::string text;
        int count = 0;
        for (size_t rank = 0; rank < done_.size(); ++rank) {
            if (done_[rank] != 0) continue;
            if (++count <= 8) text += fmt::format("{}{}", count == 1 ? "rank " : ", ", rank);
        }
        return count <= 8 ? text : text + fmt::format(" and {} more", count - 8);
    }

    int rank_;
    const std::vector<Card> &cards_;
    const std::string &directory_;
    std::optional<FdListener> &listener_;
    int mine_;
    const std::function<void(int, Fd)> &take_;
    std::vector<char> done_;
    size_t next_;
    bool busy_ = false;
    std::vector<Link> outgoing_;
    std::vector<Link> incoming_;
    std::vector<pollfd> polls_;
    Outcome outcome_;
};

// Says at once what would otherwise only show as a deadline that passes.
void require_reachable(int rank, const std::vector<Card> &cards, const std::string &directory) {
    const Card &mine = cards[static_cast<size_t>(rank)];
    for (size_t peer = 0; peer < cards.size(); ++peer) {
        if (!may_share_host(mine.place, cards[peer].place)) {
            fail(MOELINK_ERR_UNSUPPORTED, "rank {} is on another host, and file descriptors do not leave theirs", peer);
        }
        if (directory.empty() && !may_share_network(mine.place, cards[peer].place)) {
            fail(MOELINK_ERR_UNSUPPORTED,
                 "rank {} is in another network namespace; name a shared directory as the group's socket_dir", peer);
        }
        require_fd_socket(directory, cards[peer].name);
    }
}

}  // namespace

void exchange_fds(Group &group, int mine, const Deadline &deadline, const std::function<void(int rank, Fd fd)> &take) {
    if (group.size() == 1) return;
    const std::string &directory = group.socket_dir();
    std::optional<FdListener> listener;
    Card card{};
    step(group, deadline, [&] {
        listener.emplace(directory);
        card.place = process_place();
        card.name = listener->name();
        randombytes_buf(card.token.data(), card.token.size());
    });
    std::vector<Card> cards = group.allgather(card, deadline);
    step(group, deadline, [&] { require_reachable(group.rank(), cards, directory); });
    Exchange exchange(group.rank(), cards, directory, listener, mine, take);
    settle(group, exchange.run(group, Deadline::after_ns(deadline.left_ns() / 2)), deadline);
}

}  // namespace moelink
