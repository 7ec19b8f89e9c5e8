// One rank of whatever moelink-perf runs.
#pragma once

#include <functional>

#include <moelink/moelink.h>

#include "channel.hpp"
#include "launcher.hpp"
#include "options.hpp"

namespace perf {

using Join = std::function<moelink_group *()>;

// Runs the task on this rank's group, which it destroys. Errors are sent over the channel, not thrown.
// Returns true when the rank came to its end (failed checks included).
bool run_rank(const Task &task, const Join &join, Channel &channel);

// Settles device and number of ranks where they were left open. Throws std::invalid_argument for a device that is not there.
void resolve(RunOptions &options);

// CUDA device of a rank: ranks take GPUs in turn.
int ordinal_of(const RunOptions &options, int rank);

}  // namespace perf
