// Checks of what callers pass to dispatch and combine.
#pragma once

#include "moe/backend.hpp"

namespace moelink {

// Throws INVALID_ARGUMENT, TOO_SMALL or UNSUPPORTED naming the field and its value.
void check_slot(int32_t slot, const Config &config);
// read_dispatch does it too, but not for a repeated routing, whose layout is that of the slot's last dispatch.
void check_layout(const moelink_dispatch_args &args, const Config &config, int ranks);
DispatchCall read_dispatch(const moelink_dispatch_args *args, const Config &config, const Group &group);
PrepareCall read_prepare(const moelink_prepare_args *args, const Config &config);
// num_tokens: bound of the slot's routing.
AlltoallvCall read_alltoallv(int32_t slot, const moelink_rows *tensors, int32_t count, const moelink_rows *outputs, int32_t num_tokens,
                             const Config &config);
CombineCall read_combine(const moelink_combine_args *args, const Config &config);

}  // namespace moelink
