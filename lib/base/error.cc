#include "base/error.hpp"

#include <cerrno>
#include <cstring>
#include <new>

namespace moelink {

namespace {

struct Texts {
    std::string last_error;
    std::string kept;
};

// Exit handlers and the destructors of other libraries may still call when the thread's own objects are gone: a plain pointer is
// there to the end, and no text is kept any more.
thread_local Texts *thread_texts = nullptr;
thread_local bool thread_ends = false;

struct End {
    ~End() {
        thread_ends = true;
        delete std::exchange(thread_texts, nullptr);
    }
};

// NULL: there is no place for a text.
Texts *texts() noexcept {
    if (thread_texts != nullptr || thread_ends) return thread_texts;
    thread_local const End end;
    thread_texts = new (std::nothrow) Texts;
    return thread_texts;
}

}  // namespace

std::string errno_text(const char *what, int error) {
    char buffer[256];
    return fmt::format("{}: {} (errno {})", what, strerror_r(error, buffer, sizeof buffer), error);
}

moelink_status errno_status(int error, moelink_status otherwise) {
    const bool full = error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
    return full ? MOELINK_ERR_OUT_OF_MEMORY : otherwise;
}

void set_last_error(std::string text) noexcept {
    if (Texts *all = texts()) all->last_error = std::move(text);
}

const char *last_error() noexcept {
    const Texts *all = texts();
    return all != nullptr ? all->last_error.c_str() : "";
}

const char *keep_text(std::string text) noexcept {
    Texts *all = texts();
    if (all == nullptr) return "";
    all->kept = std::move(text);
    return all->kept.c_str();
}

}  // namespace moelink

const char *moelink_last_error(void) { return moelink::last_error(); }
