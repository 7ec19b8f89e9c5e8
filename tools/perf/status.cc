#include "status.hpp"

#include <stdexcept>
#include <string>

#include <fmt/format.h>

namespace perf {

void must(moelink_status status, const char *call) {
    if (status == MOELINK_OK) {
        return;
    }
    const std::string text = moelink_last_error();  // begins with the call
    const char *name = moelink_status_name(status);
    throw std::runtime_error(text.empty() ? fmt::format("{}: {} ({})", call, moelink_status_string(status), name)
                                          : fmt::format("{} ({})", text, name));
}

}  // namespace perf
