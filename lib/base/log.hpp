#pragma once

#include <moelink/log.h>

#include <string>
#include <utility>

#include <fmt/format.h>

namespace moelink {

bool log_enabled(int32_t level) noexcept;
void log_write(int32_t level, const std::string &text) noexcept;

template <class... Args>
void log(int32_t level, fmt::format_string<Args...> format, Args &&...args) noexcept {
    if (!log_enabled(level)) return;
    try {
        log_write(level, fmt::format(format, std::forward<Args>(args)...));
    } catch (...) {
    }
}

}  // namespace moelink
