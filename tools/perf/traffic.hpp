// How many rows a dispatch moves, and where.
#pragma once

#include <cstdint>

#include "check.hpp"

namespace perf {

// Rows of one dispatch; each figure is that of the rank which has most.
struct Traffic {
    double crossed = 0;  // to other ranks or from them, whichever is more
    double own = 0;      // that stay on their rank
    double sent = 0;     // to all ranks, its own included; combine adds as many
};

// Counts a job's rows.
Traffic count_traffic(const World &world);
// Expected rows when each token names `topk` different experts of `experts`, all sets equally likely: a rank with e of them gets a
// token with probability 1 - C(experts - e, topk) / C(experts, topk).
Traffic uniform_traffic(int experts, int topk, int ranks, int64_t tokens);
// Rows when a token's experts are on min(topk, ranks) different ranks and all ranks get as many.
Traffic spread_traffic(int topk, int ranks, int64_t tokens);

}  // namespace perf
