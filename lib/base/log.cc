#include "base/log.hpp"

#include "base/guard.hpp"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace moelink {

namespace {

constexpr std::array<const char *, 6> level_names = {"off", "error", "warn", "info", "debug", "trace"};

int32_t level_from_environment() noexcept {
    const char *text = std::getenv("MOELINK_LOG_LEVEL");
    if (text == nullptr || *text == '\0') return MOELINK_LOG_WARN;
    for (size_t i = 0; i < level_names.size(); ++i) {
        if (std::strcmp(text, level_names[i]) == 0) return static_cast<int32_t>(i);
        if (text[0] == static_cast<char>('0' + i) && text[1] == '\0') return static_cast<int32_t>(i);
    }
    std::fprintf(stderr, "moelink warn: MOELINK_LOG_LEVEL=%s is none of off, error, warn, info, debug, trace; warn is used\n", text);
    return MOELINK_LOG_WARN;
}

std::atomic<int32_t> &level() noexcept {
    static std::atomic<int32_t> value{level_from_environment()};
    return value;
}

struct Sink {
    std::mutex mutex;
    moelink_log_callback callback = nullptr;
    void *user = nullptr;
};

Sink &sink() noexcept {
    static Sink *value = new Sink;  // never freed: the library's threads may log while the process exits
    return *value;
}

}  // namespace

bool log_enabled(int32_t wanted) noexcept { return wanted <= level().load(std::memory_order_relaxed); }

void log_write(int32_t wanted, const std::string &text) noexcept {
    Sink &to = sink();
    std::lock_guard lock(to.mutex);
    if (to.callback != nullptr) {
        to.callback(to.user, wanted, text.c_str());
    } else {
        std::fprintf(stderr, "moelink %s: %s\n", level_names[static_cast<size_t>(wanted)], text.c_str());
    }
}

}  // namespace moelink

void moelink_log_set_callback(moelink_log_callback callback, void *user) {
    moelink::Sink &to = moelink::sink();
    std::lock_guard lock(to.mutex);
    to.callback = callback;
    to.user = user;
}

moelink_status moelink_log_set_level(int32_t wanted) {
    return moelink::guard("moelink_log_set_level", [&] {
        if (wanted < MOELINK_LOG_OFF || wanted > MOELINK_LOG_TRACE) {
            moelink::fail(MOELINK_ERR_INVALID_ARGUMENT, "level {} is not one of 0 (off) to 5 (trace)", wanted);
        }
        moelink::level().store(wanted, std::memory_order_relaxed);
    });
}

int32_t moelink_log_level_of(void) { return moelink::level().load(std::memory_order_relaxed); }
