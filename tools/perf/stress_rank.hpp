// One rank of a stress run.
#pragma once

#include "channel.hpp"
#include "options.hpp"
#include "rank.hpp"

namespace perf {

// Pairs until the options' end or the first wrong value. Throws.
void run_stress_rank(const StressOptions &options, const Join &join, Channel &channel);

}  // namespace perf
