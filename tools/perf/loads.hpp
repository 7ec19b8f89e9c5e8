// Expert loads from files, as moelink_eplb_trace_load reads them.
#pragma once

#include <string>
#include <vector>

namespace perf {

struct LoadStep {
    std::string name;
    std::vector<double> loads;  // [layers, experts]
};

struct LoadTrace {
    int layers = 0;
    int experts = 0;
    std::vector<LoadStep> steps;
};

// Slots where the user names none: at least an eighth more than the experts, a multiple of the ranks.
int default_slots(int experts, int ranks);

// Throws std::runtime_error with the place of what is wrong.
LoadTrace read_loads(const std::string &path);

}  // namespace perf
