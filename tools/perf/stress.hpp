// moelink-perf stress: a great number of random pairs, every value compared where it lies.
#pragma once

#include <string>

#include "options.hpp"

namespace perf {

int run_stress(StressOptions options, const std::string &command);

}  // namespace perf
