#include "base/guard.hpp"

namespace moelink {

moelink_status guard_failed(const char *call, moelink_status status, const char *text) noexcept {
    try {
        std::string full = fmt::format("{}: {}", call, text);
        log(MOELINK_LOG_INFO, "{}: {}", moelink_status_name(status), full);
        set_last_error(std::move(full));
    } catch (...) {
        set_last_error({});
    }
    return status;
}

}  // namespace moelink
