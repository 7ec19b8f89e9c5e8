// One rank of a run.
#pragma once

#include <functional>

#include <moelink/moelink.h>

#include "channel.hpp"
#include "launcher.hpp"

namespace perf {

class Session;

// MOELINK_MANAGER_* of a name such as "one-sided". Throws std::invalid_argument.
int32_t manager_kind(const std::string &name);
// MOELINK_MEMORY_* of a name such as "posix-fd" or "auto". Throws std::invalid_argument.
int32_t provider_of(const std::string &name);

// Does the task's part on this rank's group, which it destroys. Errors are sent over the channel, not thrown.
// Returns true when the rank came to its end (failed checks included).
bool run_rank(const Task &task, const std::function<moelink_group *()> &join, Channel &channel);

// Tells the launcher, from rank 0, which devices there are. Collective.
void send_setting(const Session &session, Channel &channel);

// CUDA device of a rank: ranks take GPUs in turn.
int ordinal_of(const Task &task, int rank);

}  // namespace perf
