// Which rank on which device: checks what the caller asks for against this machine.
#pragma once

#include "group/group.hpp"

namespace moelink {

// Reads and checks params. Throws Error INVALID_ARGUMENT or NO_DRIVER.
Group::Place read_place(const moelink_group_params *params, const char *name);

const char *device_name(int32_t device);
std::string device_contradiction(int rank, int32_t device, int other_rank, int32_t other_device);

}  // namespace moelink
