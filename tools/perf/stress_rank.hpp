// One rank of a stress run.
#pragma once

#include <cstdint>
#include <functional>

#include <moelink/moelink.h>

#include "channel.hpp"
#include "options.hpp"

namespace perf {

// Runs pairs until the options' end or the first wrong value. Returns the number of wrong values on all ranks. Throws.
uint64_t run_stress_rank(const StressOptions &options, const std::function<moelink_group *()> &join, Channel &channel);

}  // namespace perf
