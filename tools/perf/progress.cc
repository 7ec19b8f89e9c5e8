#include "progress.hpp"

#include <cstdio>

#include <fmt/format.h>
#include <unistd.h>

namespace perf {

namespace {

constexpr auto rare = std::chrono::seconds(10);  // between lines where there is no terminal

}  // namespace

Progress::Progress() : terminal_(::isatty(STDERR_FILENO) != 0), last_(std::chrono::steady_clock::now()) {}

void Progress::show(const std::string &text) {
    const auto now = std::chrono::steady_clock::now();
    if (terminal_) {
        fmt::print(stderr, "\r\033[K{}", text);
        shown_ = true;
    } else if (now - last_ > rare) {
        fmt::print(stderr, "{}\n", text);
        last_ = now;
    }
    std::fflush(stderr);
}

void Progress::clear() {
    if (shown_) {
        fmt::print(stderr, "\r\033[K");
        shown_ = false;
    }
}

}  // namespace perf
