// MoELink's errors as exceptions.
#pragma once

#include <moelink/base.h>

namespace perf {

// Throws std::runtime_error with the call, the status and the library's text.
void must(moelink_status status, const char *call);

}  // namespace perf
