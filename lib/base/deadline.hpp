#pragma once

#include <chrono>
#include <cstdint>

namespace moelink {

// A point in time that a whole call, not each of its waits, must end by.
class Deadline {
public:
    using clock = std::chrono::steady_clock;
    static Deadline after_ns(uint64_t ns) {
        Deadline deadline;
        constexpr uint64_t most = uint64_t{1} << 61;
        deadline.at_ = clock::now() + std::chrono::nanoseconds(ns < most ? ns : most);
        return deadline;
    }
    bool passed() const { return clock::now() >= at_; }
    clock::time_point at() const { return at_; }
    uint64_t left_ns() const {
        auto left = at_ - clock::now();
        return left.count() > 0 ? static_cast<uint64_t>(std::chrono::nanoseconds(left).count()) : 0;
    }

private:
    clock::time_point at_;
};

}  // namespace moelink
