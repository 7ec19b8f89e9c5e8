// moelink-perf model: times of larger groups, from runs on two ranks.
#pragma once

#include "options.hpp"

namespace perf {

// Returns the program's exit code. Throws std::exception with what is wrong with the options or the files.
int run_model(ModelOptions options, const std::string &command);

}  // namespace perf
