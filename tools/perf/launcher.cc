// Ranks as processes: each is this program again, with its task on standard input and its messages, a JSON object a line, on
// standard output.
#include "launcher.hpp"

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iostream>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <moelink/moelink.h>

#include "rank.hpp"
#include "session.hpp"
#include "watch.hpp"

extern char **environ;

namespace perf {

namespace {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto grace = milliseconds(2500);  // for the others to say what they saw, once one rank is gone
constexpr size_t longest_line = 1u << 20;

class Descriptor {
public:
    explicit Descriptor(int fd = -1) : fd_(fd) {}
    Descriptor(Descriptor &&other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
    Descriptor &operator=(Descriptor &&other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Descriptor() { close(); }
    int get() const { return fd_; }
    void close() {
        if (fd_ >= 0) {
            ::close(fd_);
        }
        fd_ = -1;
    }

private:
    int fd_;
};

struct Pipe {
    Descriptor read;
    Descriptor write;
};

Pipe make_pipe() {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0) {
        throw std::runtime_error(fmt::format("pipe2: {}", std::strerror(errno)));
    }
    return {Descriptor(fds[0]), Descriptor(fds[1])};
}

struct Child {
    pid_t pid = -1;
    int status = 0;
    bool running = false;
    bool finished = false;  // said "done" or "error"
    bool failed = false;
    Descriptor input;
    Descriptor streams[2];  // messages, standard error
    std::string partial[2];
    std::string at = "starting";
};

void start(Child &child) {
    Pipe input = make_pipe();
    Pipe output = make_pipe();
    Pipe errors = make_pipe();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input.read.get(), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, output.write.get(), STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, errors.write.get(), STDERR_FILENO);
    std::string name = "moelink-perf";
    std::string task = "rank";
    char *arguments[] = {name.data(), task.data(), nullptr};
    const int error = ::posix_spawn(&child.pid, "/proc/self/exe", &actions, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) {
        throw std::runtime_error(fmt::format("a rank's process cannot be started: {}", std::strerror(error)));
    }
    child.running = true;
    child.input = std::move(input.write);
    child.streams[0] = std::move(output.read);
    child.streams[1] = std::move(errors.read);
}

void write_all(int fd, const std::string &text) {
    size_t written = 0;
    while (written < text.size()) {
        const ssize_t some = ::write(fd, text.data() + written, text.size() - written);
        if (some < 0 && errno == EINTR) {
            continue;
        }
        if (some <= 0) {
            return;  // the child is gone; its exit is reported
        }
        written += static_cast<size_t>(some);
    }
}

std::string hex(const moelink_unique_id &id) {
    std::string text;
    for (const uint8_t byte : id.bytes) {
        text += fmt::format("{:02x}", byte);
    }
    return text;
}

std::string describe_exit(int status) {
    if (WIFSIGNALED(status)) {
        return fmt::format("was ended by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)));
    }
    return fmt::format("exited with code {}", WEXITSTATUS(status));
}

class Processes {
public:
    Processes(const Task &task, const Listener &listener)
        : task_(task), listener_(listener), watch_(task.run.timeout), children_(static_cast<size_t>(task.run.ranks)) {}
    ~Processes() {
        for (Child &child : children_) {
            if (child.running) {
                ::kill(child.pid, SIGKILL);
                ::waitpid(child.pid, nullptr, 0);
            }
        }
    }

    bool run() {
        std::signal(SIGPIPE, SIG_IGN);
        for (Child &child : children_) {
            start(child);
        }
        moelink_unique_id id;
        moelink_rendezvous *made = nullptr;
        // The ranks are children of this process: the loopback address reaches them all.
        must(moelink_rendezvous_create("127.0.0.1", task_.run.ranks, &made, &id), "moelink_rendezvous_create");
        const std::unique_ptr<moelink_rendezvous, void (*)(moelink_rendezvous *)> rendezvous(made, moelink_rendezvous_destroy);
        for (size_t rank = 0; rank < children_.size(); ++rank) {
            const nlohmann::json mine = {{"command", task_.command}, {"rank", rank}, {"id", hex(id)}, {"options", task_.options}};
            write_all(children_[rank].input.get(), mine.dump() + "\n");
            children_[rank].input.close();
        }
        std::memset(&id, 0, sizeof id);
        while (any_running()) {
            read_messages(milliseconds(200));
            collect_exits();
            const auto now = clock::now();
            if (!stopping_ && watch_.expired()) {
                for (size_t rank = 0; rank < children_.size(); ++rank) {
                    if (children_[rank].running) {
                        report(rank, {{"error", fmt::format("gave no sign of life for {:.0f} s while {}", watch_.limit_s(),
                                                            children_[rank].at)}});
                    }
                }
                stop_at_ = now;
                stopping_ = true;
            }
            if (stopping_ && now >= stop_at_) {
                for (Child &child : children_) {
                    if (child.running) {
                        ::kill(child.pid, SIGKILL);
                        child.status = -1;
                    }
                }
            }
        }
        return !failed_;
    }

private:
    bool any_running() const {
        for (const Child &child : children_) {
            if (child.running) {
                return true;
            }
        }
        return false;
    }

    void report(size_t rank, const nlohmann::json &message) {
        Child &child = children_[rank];
        if (message.contains("at")) {
            child.at = message["at"];
        }
        child.finished = child.finished || message.contains("done") || message.contains("error");
        if (message.contains("error")) {
            child.failed = true;
            failed_ = true;
            begin_stop();
        }
        listener_(static_cast<int>(rank), message);
    }

    void begin_stop() {
        if (!stopping_) {
            stopping_ = true;
            stop_at_ = clock::now() + grace;
        }
    }

    void take_line(size_t rank, int stream, const std::string &line) {
        watch_.seen();
        if (stream == 0 && !line.empty() && line.front() == '{') {
            const auto message = nlohmann::json::parse(line, nullptr, false);
            if (message.is_object()) {
                report(rank, message);
                return;
            }
        }
        listener_(static_cast<int>(rank), {{"text", line}});
    }

    // True when the stream still lives.
    bool read_some(size_t rank, int stream) {
        Child &child = children_[rank];
        char buffer[4096];
        const ssize_t got = ::read(child.streams[stream].get(), buffer, sizeof buffer);
        if (got < 0 && errno == EINTR) {
            return true;
        }
        std::string &partial = child.partial[stream];
        if (got > 0) {
            partial.append(buffer, static_cast<size_t>(got));
        }
        size_t from = 0;
        for (size_t end; (end = partial.find('\n', from)) != std::string::npos; from = end + 1) {
            take_line(rank, stream, partial.substr(from, end - from));
        }
        partial.erase(0, from);
        if (!partial.empty() && (got <= 0 || partial.size() > longest_line)) {
            take_line(rank, stream, partial);
            partial.clear();
        }
        if (got <= 0) {
            child.streams[stream].close();
        }
        return got > 0;
    }

    void read_messages(milliseconds most) {
        std::vector<pollfd> polled;
        std::vector<std::pair<size_t, int>> whose;
        for (size_t rank = 0; rank < children_.size(); ++rank) {
            for (int stream = 0; stream < 2; ++stream) {
                if (children_[rank].streams[stream].get() >= 0) {
                    polled.push_back({children_[rank].streams[stream].get(), POLLIN, 0});
                    whose.emplace_back(rank, stream);
                }
            }
        }
        if (::poll(polled.data(), polled.size(), static_cast<int>(most.count())) <= 0) {
            return;
        }
        for (size_t i = 0; i < polled.size(); ++i) {
            if (polled[i].revents != 0) {
                read_some(whose[i].first, whose[i].second);
            }
        }
    }

    void collect_exits() {
        for (size_t rank = 0; rank < children_.size(); ++rank) {
            Child &child = children_[rank];
            const bool killed = child.status == -1;
            int status = 0;
            if (!child.running || ::waitpid(child.pid, &status, WNOHANG) != child.pid) {
                continue;
            }
            child.running = false;
            for (int stream = 0; stream < 2; ++stream) {
                while (child.streams[stream].get() >= 0 && has_input(child.streams[stream].get()) && read_some(rank, stream)) {
                }
            }
            if (!child.finished || (status != 0 && !child.failed)) {
                report(rank, {{"error", killed ? fmt::format("was stopped while {}", child.at)
                                               : fmt::format("{} while {}", describe_exit(status), child.at)},
                              {"stopped", killed}});
            }
        }
    }

    static bool has_input(int fd) {
        pollfd polled{fd, POLLIN, 0};
        return ::poll(&polled, 1, 0) > 0;
    }

    const Task &task_;
    const Listener &listener_;
    Watch watch_;
    std::vector<Child> children_;
    bool failed_ = false;
    bool stopping_ = false;
    clock::time_point stop_at_{};
};

class StdoutChannel final : public Channel {
public:
    void send(const nlohmann::json &message) override {
        const std::lock_guard lock(mutex_);
        write_all(STDOUT_FILENO, message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    }

private:
    std::mutex mutex_;
};

}  // namespace

bool run_ranks(const Task &task, const Listener &listener) {
    return task.run.threads ? run_threads(task, listener) : Processes(task, listener).run();
}

int rank_main() {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    StdoutChannel channel;
    std::string line;
    std::getline(std::cin, line);
    const auto given = nlohmann::json::parse(line, nullptr, false);
    if (!given.is_object()) {
        std::cerr << "moelink-perf rank is started by moelink-perf itself, not by hand\n";
        return 2;
    }
    const Task task{given.at("command"), given.at("options").get<RunOptions>(), given.at("options")};
    const int rank = given.at("rank");
    moelink_unique_id id{};
    const std::string text = given.at("id");
    for (size_t i = 0; i < sizeof id.bytes; ++i) {
        id.bytes[i] = static_cast<uint8_t>(std::stoi(text.substr(2 * i, 2), nullptr, 16));
    }
    const auto join = [&] {
        moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
        params.rank = rank;
        params.size = task.run.ranks;
        params.device = task.run.device == "cuda" ? MOELINK_DEVICE_CUDA : MOELINK_DEVICE_HOST;
        params.device_ordinal = ordinal_of(task.run, rank);
        params.timeout_ns = static_cast<uint64_t>(task.run.timeout * 1e9);
        moelink_group *group = nullptr;
        must(moelink_group_create(&id, &params, &group), "moelink_group_create");
        return group;
    };
    return run_rank(task, join, channel) ? 0 : 1;
}

}  // namespace perf
