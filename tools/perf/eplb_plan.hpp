// moelink-perf eplb-plan: plans from loads in a file, rated, timed, and beside them the published algorithm's.
#pragma once

#include <string>

#include "options.hpp"

namespace perf {

// Returns the program's exit code. Throws std::exception with what is wrong with the options or a file.
int run_eplb_plan(const EplbPlanOptions &options, const std::string &command);

}  // namespace perf
