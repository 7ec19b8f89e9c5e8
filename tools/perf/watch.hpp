// How long ranks may be silent before they are given up. Their own waits end by --timeout; this is for what those do not cover.
#pragma once

#include <algorithm>
#include <chrono>

namespace perf {

class Watch {
public:
    explicit Watch(double timeout_s) : limit_(std::max(300.0, 4 * timeout_s)) { seen(); }
    void seen() { last_ = std::chrono::steady_clock::now(); }
    bool expired() const { return std::chrono::steady_clock::now() - last_ > limit_; }
    double limit_s() const { return limit_.count(); }

private:
    std::chrono::duration<double> limit_;
    std::chrono::steady_clock::time_point last_;
};

}  // namespace perf
