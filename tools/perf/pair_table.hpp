// The table of moelink-perf pair.
#pragma once

#include "options.hpp"
#include "report.hpp"

namespace perf {

// push_gbps: the rate at which GPUs push to each other, measured in this run [GB/s]; 0: not measured.
Table pair_table(const PairOptions &options, double push_gbps);

}  // namespace perf
