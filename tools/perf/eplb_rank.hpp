// One rank of an eplb run.
#pragma once

#include "channel.hpp"
#include "options.hpp"
#include "rank.hpp"

namespace perf {

// Every change of traffic of the options.
void run_eplb_rank(const EplbOptions &given, const Join &join, Channel &channel);

}  // namespace perf
