// One rank of a pair run.
#pragma once

#include <functional>

#include <moelink/moelink.h>

#include "channel.hpp"
#include "options.hpp"

namespace perf {

// MOELINK_MANAGER_* of a name such as "one-sided". Throws std::invalid_argument.
int32_t manager_kind(const std::string &name);
// MOELINK_MEMORY_* of a name such as "posix-fd" or "auto". Throws std::invalid_argument.
int32_t provider_of(const std::string &name);

// Runs every case of the options on this rank's group, which it destroys. Errors are sent over the channel, not thrown.
// Returns true when the rank came to its end (failed checks included).
bool run_rank(const PairOptions &options, const std::function<moelink_group *()> &join, Channel &channel);

// CUDA device of a rank: ranks take GPUs in turn.
int ordinal_of(const PairOptions &options, int rank);

}  // namespace perf
