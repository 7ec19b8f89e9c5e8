// moelink-perf litmus: small programs on two GPUs that show which orders of memory accesses come about. No MoELink call is involved.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "options.hpp"

namespace perf {

struct LitmusFinding {
    std::string test;
    std::string variant;
    bool forbidden;  // by the memory model: the weak outcome must never be seen
    uint64_t trials;
    uint64_t seen;  // weak outcomes
};

// Throws std::runtime_error where the GPUs are missing, or do not reach each other.
std::vector<LitmusFinding> run_cuda_litmus(const LitmusOptions &options, std::vector<std::string> *devices);

int run_litmus(const LitmusOptions &options, const std::string &command);

}  // namespace perf
