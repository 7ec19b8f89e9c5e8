// Checks of what callers pass to dispatch and combine.
#pragma once

#include "moe/backend.hpp"

namespace moelink {

// Throws INVALID_ARGUMENT, TOO_SMALL or UNSUPPORTED naming the field and its value.
void check_slot(int32_t slot, const Config &config);
DispatchCall read_dispatch(const moelink_dispatch_args *args, const Config &config, const Group &group);
CombineCall read_combine(const moelink_combine_args *args, const Config &config);

}  // namespace moelink
