// Failure inside the library: an exception with a status, turned into a return value by the guard.
#pragma once

#include <moelink/base.h>

#include <exception>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace moelink {

class Error : public std::exception {
public:
    Error(moelink_status status, std::string text) : status_(status), text_(std::move(text)) {}
    moelink_status status() const noexcept { return status_; }
    const std::string &text() const noexcept { return text_; }
    const char *what() const noexcept override { return text_.c_str(); }

private:
    moelink_status status_;
    std::string text_;
};

template <class... Args>
[[noreturn]] void fail(moelink_status status, fmt::format_string<Args...> format, Args &&...args) {
    throw Error(status, fmt::format(format, std::forward<Args>(args)...));
}

// "connect: Connection refused (errno 111)"
std::string errno_text(const char *what, int error);

// For a call that needs a new file descriptor or memory: OUT_OF_MEMORY when this process or the machine has no more, else otherwise.
moelink_status errno_status(int error, moelink_status otherwise);

// Keeps the text that moelink_last_error returns on this thread.
void set_last_error(std::string text) noexcept;
const char *last_error() noexcept;

// A copy of text that lives on this thread until the next call with the same thread; for the per-object error texts.
const char *keep_text(std::string text) noexcept;

}  // namespace moelink
