// One rank of an eplb run.
#pragma once

#include <cstdint>
#include <functional>

#include <moelink/moelink.h>

#include "channel.hpp"
#include "options.hpp"

namespace perf {

// Every change of traffic of the options. Returns the number of wrong values on all ranks. Throws.
uint64_t run_eplb_rank(const EplbOptions &given, const std::function<moelink_group *()> &join, Channel &channel);

}  // namespace perf
