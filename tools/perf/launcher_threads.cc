// Ranks as threads of this process.
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "launcher.hpp"
#include "rank.hpp"
#include "session.hpp"
#include "watch.hpp"

namespace perf {

namespace {

// Messages of all threads, read by the launcher's.
class Inbox {
public:
    void put(int rank, nlohmann::json message) {
        const std::lock_guard lock(mutex_);
        messages_.emplace_back(rank, std::move(message));
        some_.notify_one();
    }
    bool take(std::pair<int, nlohmann::json> &message) {
        std::unique_lock lock(mutex_);
        if (!some_.wait_for(lock, std::chrono::milliseconds(200), [&] { return !messages_.empty(); })) {
            return false;
        }
        message = std::move(messages_.front());
        messages_.pop_front();
        return true;
    }

private:
    std::mutex mutex_;
    std::condition_variable some_;
    std::deque<std::pair<int, nlohmann::json>> messages_;
};

class ThreadChannel final : public Channel {
public:
    ThreadChannel(Inbox &inbox, int rank) : inbox_(inbox), rank_(rank) {}
    void send(const nlohmann::json &message) override { inbox_.put(rank_, message); }

private:
    Inbox &inbox_;
    int rank_;
};

}  // namespace

bool run_threads(const Task &task, const Listener &listener) {
    const RunOptions &options = task.run;
    const auto ranks = static_cast<size_t>(options.ranks);
    std::vector<moelink_group_params> params(ranks, moelink_group_params MOELINK_GROUP_PARAMS_INIT);
    for (size_t rank = 0; rank < ranks; ++rank) {
        params[rank].device = options.device == "cuda" ? MOELINK_DEVICE_CUDA : MOELINK_DEVICE_HOST;
        params[rank].device_ordinal = ordinal_of(options, static_cast<int>(rank));
        params[rank].timeout_ns = static_cast<uint64_t>(options.timeout * 1e9);
    }
    std::vector<moelink_group *> groups(ranks);
    must(moelink_group_create_threads(options.ranks, params.data(), groups.data()), "moelink_group_create_threads");

    Inbox inbox;
    std::vector<std::string> at(ranks, "starting");
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < ranks; ++rank) {
        threads.emplace_back([&, rank] {
            ThreadChannel channel(inbox, static_cast<int>(rank));
            const bool ended = run_rank(task, [&] { return groups[rank]; }, channel);
            inbox.put(static_cast<int>(rank), {{"left", ended}});
        });
    }
    Watch watch(options.timeout);
    bool good = true;
    for (size_t left = 0; left < ranks;) {
        std::pair<int, nlohmann::json> message;
        if (inbox.take(message)) {
            watch.seen();
            const auto rank = static_cast<size_t>(message.first);
            if (message.second.contains("left")) {
                ++left;
                good = good && message.second["left"].get<bool>();
                at[rank] = "";
                continue;
            }
            if (message.second.contains("at")) {
                at[rank] = message.second["at"];
            }
            listener(message.first, message.second);
        } else if (watch.expired()) {
            for (size_t rank = 0; rank < ranks; ++rank) {
                if (!at[rank].empty()) {
                    listener(static_cast<int>(rank),
                             {{"error", fmt::format("gave no sign of life for {:.0f} s while {}", watch.limit_s(), at[rank])}});
                }
            }
            std::_Exit(3);  // a thread that hangs cannot be stopped alone
        }
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
    return good;
}

}  // namespace perf
