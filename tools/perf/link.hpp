// moelink-perf link: the machine's own limits, measured without MoELink.
#pragma once

#include <string>
#include <vector>

#include "options.hpp"

namespace perf {

struct LinkFigure {
    std::string what;
    double value;
    std::string unit;
    int flags = 0;  // exchanged at once, where it is a time of that; else 0
};

struct LinkReport {
    std::vector<std::string> devices;
    std::vector<LinkFigure> figures;
    std::vector<std::string> skipped;  // what could not be measured, and why
};

// Flag latency between processes forks: call it before any thread or GPU is used.
LinkReport measure_host_link(const LinkOptions &options);
LinkReport measure_cuda_link(const LinkOptions &options);
// Bytes a second and direction that each of the first two GPUs writes into the other's memory while the other does the same: by
// 16-byte stores of all multiprocessors [GB/s]. 0 where there are no two GPUs that reach each other; then *why says so.
double measure_push_gbps(std::string *why);

int run_link(const LinkOptions &options, const std::string &command);

}  // namespace perf
