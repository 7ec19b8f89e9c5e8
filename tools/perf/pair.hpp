// moelink-perf pair: dispatch and combine of one manager, checked and timed.
#pragma once

#include "options.hpp"

namespace perf {

// Returns the program's exit code. Throws std::exception with what is wrong with the options.
int run_pair(PairOptions options, const std::string &command);

}  // namespace perf
