// moelink-perf eplb: traffic that changes, planned for, and the experts' weights moved.
#pragma once

#include "options.hpp"

namespace perf {

// Returns the program's exit code. Throws std::exception with what is wrong with the options.
int run_eplb(EplbOptions options, const std::string &command);

}  // namespace perf
