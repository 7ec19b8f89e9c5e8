#include "group/rendezvous.hpp"

#include "base/error.hpp"
#include "base/log.hpp"
#include "group/place.hpp"
#include "group/round.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include <asio/steady_timer.hpp>

namespace moelink {

// One connection that knows the secret.
class Rendezvous::Guest final : public std::enable_shared_from_this<Guest>, private Link::Owner {
public:
    Guest(Rendezvous &server, std::shared_ptr<Link> link, asio::io_context &io)
        : server_(server), link_(std::move(link)), timer_(io) {}

    void start() { link_->start(this); }

    const Join &join() const { return join_; }
    std::string place() const {
        asio::error_code ignored;
        return fmt::format("process {} at {}", join_.process, endpoint_text(link_->socket().remote_endpoint(ignored)));
    }

    void send(uint32_t type, SharedBytes frame) { link_->send(type, std::move(frame)); }

    void refuse(moelink_status status, const std::string &text) {
        Refusal head{status, 0};
        auto frame = std::make_shared<Bytes>(sizeof head + text.size());
        std::memcpy(frame->data(), &head, sizeof head);
        std::memcpy(frame->data() + sizeof head, text.data(), text.size());
        send(frame_refuse, std::move(frame));
    }

    void stop_timer() { timer_.cancel(); }

    void end() {
        timer_.cancel();
        server_.hub_.finish(link_);
    }

private:
    void on_frame(Link &, uint32_t type, Bytes payload) override {
        if (type != frame_join || payload.size() != sizeof(Join) || have_join_) {
            return refuse(MOELINK_ERR_PROTOCOL, "the rendezvous received what it does not understand");
        }
        std::memcpy(&join_, payload.data(), sizeof join_);
        have_join_ = true;
        constexpr uint64_t most = uint64_t{1} << 60;
        timer_.expires_after(std::chrono::nanoseconds(std::min(join_.left_ns, most)));
        timer_.async_wait([self = shared_from_this()](const asio::error_code &error) {
            if (!error) self->server_.expired(*self);
        });
        server_.joined(*this);
    }

    void on_lost(Link &, moelink_status, const std::string &) override {
        timer_.cancel();
        server_.left(*this);
    }

    Rendezvous &server_;
    std::shared_ptr<Link> link_;
    asio::steady_timer timer_;
    Join join_{};
    bool have_join_ = false;
};

Rendezvous::Rendezvous(const char *interface_or_null, int size)
    : id_(make_unique_id(size)), by_rank_(static_cast<size_t>(size)), processes_(static_cast<size_t>(size)) {
    if (interface_or_null != nullptr) {
        Address address = named_address(interface_or_null);
        bool any = from_address(address).is_unspecified();
        hub_.listen(any ? nullptr : &address);
    } else {
        hub_.listen(nullptr);
    }
    id_.endpoint = hub_.endpoint();
    hub_.run([this] {
        hub_.expect(id_.session, [this](std::shared_ptr<Link> link, const Hello &hello) {
            if (hello.purpose == purpose_rendezvous) return arrived(std::move(link));
            hub_.finish(link);  // a member of the group that wants something else
        });
    });
    hub_.start(id_.secret);
}

Rendezvous::~Rendezvous() {
    hub_.run([this] {
        hub_.forget(id_.session);
        for (auto &guest : strange_) guest->end();
        for (auto &guest : by_rank_) {
            if (guest) guest->end();
        }
        strange_.clear();
        by_rank_.clear();
        complete_ = true;  // a timer that has fired already finds nothing to do
    });
}

void Rendezvous::arrived(std::shared_ptr<Link> link) {
    auto guest = std::make_shared<Guest>(*this, std::move(link), hub_.io());
    strange_.push_back(guest);
    guest->start();
}

void Rendezvous::joined(Guest &guest) {
    const Join &join = guest.join();
    if (join.size != id_.size) {
        return guest.refuse(MOELINK_ERR_MISMATCH, fmt::format("rank {} says that the group has {} ranks, its unique id was made "
                                                              "for {}", join.rank,
                                                              join.size, id_.size));
    }
    if (join.rank < 0 || join.rank >= id_.size) {
        return guest.refuse(MOELINK_ERR_INVALID_ARGUMENT, fmt::format("there is no rank {} among {} ranks", join.rank, id_.size));
    }
    auto rank = static_cast<size_t>(join.rank);
    if (by_rank_[rank] || complete_) {
        std::string first = by_rank_[rank] ? by_rank_[rank]->place() : fmt::format("process {}", processes_[rank]);
        std::string text = fmt::format("two ranks have the number {}: {} came first, then {}", join.rank, first, guest.place());
        log(MOELINK_LOG_WARN, "rendezvous: {}; the second was refused", text);
        return guest.refuse(MOELINK_ERR_MISMATCH, text);
    }
    auto self = std::find_if(strange_.begin(), strange_.end(), [&](const auto &one) { return one.get() == &guest; });
    by_rank_[rank] = std::move(*self);
    strange_.erase(self);
    processes_[rank] = join.process;
    if (missing().empty()) complete();
}

void Rendezvous::left(Guest &guest) {
    std::erase_if(strange_, [&](const auto &one) { return one.get() == &guest; });
    for (auto &one : by_rank_) {
        if (one.get() == &guest) one.reset();
    }
}

void Rendezvous::expired(Guest &guest) {
    if (complete_) return;
    std::vector<int> never;
    std::vector<int> gone;
    for (int rank : missing()) (processes_[static_cast<size_t>(rank)] == 0 ? never : gone).push_back(rank);
    std::string text = fmt::format("{} of {} ranks did not come to the rendezvous", never.size(), id_.size);
    if (!never.empty()) text += ": " + ranks_text(never);
    if (!gone.empty()) text += "; came and left again: " + ranks_text(gone);
    guest.refuse(MOELINK_ERR_TIMEOUT, text);
}

std::vector<int> Rendezvous::missing() const {
    std::vector<int> ranks;
    for (size_t i = 0; i < by_rank_.size(); ++i) {
        if (!by_rank_[i]) ranks.push_back(static_cast<int>(i));
    }
    return ranks;
}

void Rendezvous::complete() {
    complete_ = true;
    auto table = std::make_shared<Bytes>(by_rank_.size() * sizeof(Endpoint));
    std::string contradiction;
    for (size_t i = 0; i < by_rank_.size(); ++i) {
        const Join &join = by_rank_[i]->join();
        std::memcpy(table->data() + i * sizeof(Endpoint), &join.endpoint, sizeof(Endpoint));
        int32_t first = by_rank_[0]->join().device;
        if (contradiction.empty() && join.device != first) contradiction = device_contradiction(0, first, join.rank, join.device);
    }
    for (auto &guest : by_rank_) {
        guest->stop_timer();
        if (contradiction.empty()) {
            guest->send(frame_table, table);
        } else {
            guest->refuse(MOELINK_ERR_MISMATCH, contradiction);
        }
    }
}

}  // namespace moelink
