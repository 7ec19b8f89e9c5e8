#include "base/error.hpp"

#include <cstring>

namespace moelink {

namespace {

std::string &last_error_slot() {
    thread_local std::string text;
    return text;
}

}  // namespace

std::string errno_text(const char *what, int error) {
    char buffer[256];
    return fmt::format("{}: {} (errno {})", what, strerror_r(error, buffer, sizeof buffer), error);
}

void set_last_error(std::string text) noexcept { last_error_slot() = std::move(text); }

const char *last_error() noexcept { return last_error_slot().c_str(); }

const char *keep_text(std::string text) noexcept {
    thread_local std::string kept;
    kept = std::move(text);
    return kept.c_str();
}

}  // namespace moelink

const char *moelink_last_error(void) { return moelink::last_error(); }
