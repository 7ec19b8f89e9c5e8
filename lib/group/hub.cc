#include "group/hub.hpp"

#include "base/error.hpp"
#include "base/log.hpp"

#include <algorithm>
#include <chrono>
#include <future>
#include <thread>

#include <csignal>
#include <pthread.h>

namespace moelink {

namespace {

// The last words of a rank that goes (why it goes) are worth this wait, no more.
constexpr std::chrono::milliseconds last_words{500};

// Sessions to remember: connections that come later than so many groups after their own are from nobody that still waits.
constexpr size_t most_forgotten = 1024;

}  // namespace

Hub::Hub(bool watchful) : watchful_(watchful), io_(1), work_(asio::make_work_guard(io_)) {
    // The caller's signal handlers are not for our thread.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
        thread_ = std::thread([this] { serve(); });
    } catch (...) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Hub::~Hub() {
    post([this] {
        if (listener_) listener_->close();
        for (Early &early : early_) early.link->close();
        early_.clear();
    });
    {
        std::unique_lock lock(mutex_);
        flushed_.wait_until(lock, std::chrono::steady_clock::now() + last_words, [&] { return finishing_ == 0; });
    }
    io_.stop();
    thread_.join();
}

void Hub::serve() {
    pthread_setname_np(pthread_self(), "moelink-group");
    for (;;) {
        try {
            work();
            return;
        } catch (const std::exception &error) {
            log(MOELINK_LOG_ERROR, "the group's thread caught: {}", error.what());
        }
    }
}

// Until it is stopped.
void Hub::work() {
    constexpr std::chrono::microseconds watch{200};  // a few answers
    while (io_.run_one() != 0) {
        auto last = std::chrono::steady_clock::now();
        for (auto now = last; watchful_ && now - last < watch; now = std::chrono::steady_clock::now()) {
            if (io_.poll_one() != 0) {
                last = std::chrono::steady_clock::now();
            } else if (io_.stopped()) {
                return;
            } else {
                std::this_thread::yield();
            }
        }
    }
}

void Hub::listen(const Address *address) {
    listener_ = std::make_unique<Listener>(io_, address);
    std::vector<Address> addresses = address != nullptr ? std::vector<Address>{*address} : own_addresses();
    endpoint_ = {};
    endpoint_.network = this_network();
    endpoint_.port = listener_->port();
    endpoint_.named = address != nullptr ? 1 : 0;
    endpoint_.count = static_cast<uint8_t>(addresses.size());
    std::copy(addresses.begin(), addresses.end(), endpoint_.addresses.begin());
}

void Hub::start(const Secret &secret) {
    run([&] {
        listener_->start(secret, [this](std::shared_ptr<Link> link, const Hello &hello) { arrived(std::move(link), hello); });
    });
}

void Hub::run(const std::function<void()> &work) {
    // Shared, since the I/O thread may still be leaving the task when the wait here is over.
    auto task = std::make_shared<std::packaged_task<void()>>(work);
    auto done = task->get_future();
    post([task] { (*task)(); });
    done.get();
}

std::shared_ptr<Link> Hub::dial(DialTarget target, const Deadline &deadline) {
    auto promise = std::make_shared<std::promise<Dialed>>();
    auto result = promise->get_future();
    moelink::dial(io_, std::move(target), deadline, [promise](Dialed dialed) { promise->set_value(std::move(dialed)); });
    Dialed dialed = result.get();
    if (!dialed.link) throw Error(dialed.status, dialed.text);
    return dialed.link;
}

void Hub::arrived(std::shared_ptr<Link> link, const Hello &hello) {
    auto expected = expected_.find(hello.session);
    if (expected != expected_.end()) {
        expected->second(std::move(link), hello);
    } else if (std::find(forgotten_.begin(), forgotten_.end(), hello.session) != forgotten_.end()) {
        link->close();
    } else {
        early_.push_back({std::move(link), hello});
    }
}

void Hub::expect(const Session &session, OnLink on_link) {
    expected_[session] = on_link;
    std::vector<Early> others;
    for (Early &early : early_) {
        if (early.hello.session == session) {
            on_link(std::move(early.link), early.hello);
        } else {
            others.push_back(std::move(early));
        }
    }
    early_ = std::move(others);
}

void Hub::forget(const Session &session) {
    expected_.erase(session);
    forgotten_.push_back(session);
    if (forgotten_.size() > most_forgotten) forgotten_.pop_front();
}

void Hub::finish(std::shared_ptr<Link> link) {
    {
        std::lock_guard lock(mutex_);
        ++finishing_;
    }
    link->finish([this] {
        std::lock_guard lock(mutex_);
        --finishing_;
        flushed_.notify_all();
    });
}

}  // namespace moelink
