// One rank of a pair run.
#pragma once

#include "channel.hpp"
#include "options.hpp"
#include "rank.hpp"

namespace perf {

// Every case of the options.
void run_pair_rank(const PairOptions &given, const Join &join, Channel &channel);

}  // namespace perf
