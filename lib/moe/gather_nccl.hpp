// The gathering manager over NCCL.
#pragma once

#include "moe/backend.hpp"

namespace moelink {

// Throws OUT_OF_MEMORY when the sizes do not fit 64 bits.
moelink_manager_sizes gather_nccl_sizes(const Group &group, const Config &config);

std::unique_ptr<Backend> make_gather_nccl(const BackendParams &params);

}  // namespace moelink
