#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.hpp"
#include "link.hpp"

namespace perf {

namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) {
    return std::chrono::duration<double>(clock::now() - start).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : values[values.size() / 2];
}

// Bytes copied a second by `count` threads at once, each with its own buffers; source and target together are twice that.
double memcpy_gbps(size_t bytes_a_thread, int count) {
    constexpr int rounds = 7;
    std::vector<std::unique_ptr<char[]>> from;
    std::vector<std::unique_ptr<char[]>> to;
    for (int i = 0; i < count; ++i) {
        from.emplace_back(new char[bytes_a_thread]);
        to.emplace_back(new char[bytes_a_thread]);
        std::memset(from.back().get(), i + 1, bytes_a_thread);
        std::memset(to.back().get(), 0, bytes_a_thread);
    }
    std::barrier gate(count);
    std::vector<double> times(rounds);
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) {
        threads.emplace_back([&, i] {
            for (int round = 0; round < rounds; ++round) {
                gate.arrive_and_wait();
                const auto start = clock::now();
                std::memcpy(to[static_cast<size_t>(i)].get(), from[static_cast<size_t>(i)].get(), bytes_a_thread);
                gate.arrive_and_wait();
                if (i == 0) {
                    times[static_cast<size_t>(round)] = seconds_since(start);
                }
            }
        });
    }
    for (auto &thread : threads) {
        thread.join();
    }
    times.erase(times.begin());
    return static_cast<double>(bytes_a_thread) * count / median(times) * 1e-9;
}

struct alignas(128) Flag {
    std::atomic<uint64_t> value;
};

// Waits for a flag; false when the deadline passes or the other side ended.
bool await(Flag &flag, uint64_t value, clock::time_point deadline) {
    constexpr int spins_between_looks = 4096;
    for (int spins = 1; flag.value.load(std::memory_order_acquire) < value; ++spins) {
        if (spins % spins_between_looks == 0) {
            if (clock::now() > deadline) {
                return false;
            }
            sched_yield();
        }
    }
    return true;
}

// One way, between two processes over shared memory.
double flag_latency_us(double timeout_s) {
    constexpr uint64_t rounds = 20000;
    void *shared = ::mmap(nullptr, 2 * sizeof(Flag), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        throw std::runtime_error(fmt::format("mmap of shared memory: {}", std::strerror(errno)));
    }
    auto *flags = static_cast<Flag *>(shared);
    const auto deadline = clock::now() + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(timeout_s));
    const pid_t child = ::fork();
    if (child < 0) {
        ::munmap(shared, 2 * sizeof(Flag));
        throw std::runtime_error(fmt::format("fork: {}", std::strerror(errno)));
    }
    if (child == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        bool alive = true;
        for (uint64_t round = 1; alive && round <= rounds; ++round) {
            alive = await(flags[0], round, deadline);
            flags[1].value.store(round, std::memory_order_release);
        }
        ::_exit(alive ? 0 : 1);
    }
    constexpr uint64_t per_sample = 200;
    std::vector<double> samples;
    bool alive = true;
    auto start = clock::now();
    for (uint64_t round = 1; alive && round <= rounds; ++round) {
        flags[0].value.store(round, std::memory_order_release);
        alive = await(flags[1], round, deadline);
        if (round % per_sample == 0) {
            samples.push_back(seconds_since(start) / (2.0 * per_sample) * 1e6);
            start = clock::now();
        }
    }
    if (!alive) {
        ::kill(child, SIGKILL);
    }
    ::waitpid(child, nullptr, 0);
    ::munmap(shared, 2 * sizeof(Flag));
    if (!alive) {
        throw std::runtime_error(fmt::format("flag latency: the other process did not answer within {} s", timeout_s));
    }
    return median(samples);
}

}  // namespace

LinkReport measure_host_link(const LinkOptions &options) {
    LinkReport report;
    report.devices.push_back(make_host_device()->describe());
    const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    if (cores > 1) {
        report.figures.push_back(
            {"flag between two processes, one way, release to acquire", flag_latency_us(options.timeout), "us"});
    } else {
        report.skipped.push_back("flag between two processes: there is only one core");
    }
    const auto bytes = static_cast<size_t>(options.megabytes * 1e6);
    report.figures.push_back(
        {fmt::format("memcpy, 1 thread, {:.0f} MB", options.megabytes), memcpy_gbps(bytes, 1), "GB/s copied"});
    const int threads = options.threads > 0 ? options.threads : cores;
    if (threads > 1) {
        report.figures.push_back({fmt::format("memcpy, {} threads, {:.0f} MB each, sum", threads, options.megabytes),
                                  memcpy_gbps(bytes, threads), "GB/s copied"});
    }
    return report;
}

}  // namespace perf
