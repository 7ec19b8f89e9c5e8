// How long dispatch, combine and the pair take.
#pragma once

#include <string>
#include <vector>

#include "channel.hpp"
#include "session.hpp"

namespace perf {

struct Timing {
    double p50 = 0;  // [us]
    double p99 = 0;
    double least = 0;
    double most = 0;
    int samples = 0;
};

struct Measured {
    Timing dispatch;
    Timing combine;
    Timing pair;
    int pairs = 0;  // in one graph, or in one stretch of eager calls
    bool graph = false;
    CheckResult chain;     // the timed outputs themselves
    double memcpy_us = 0;  // host device: a memcpy of the bytes that must move, on the same threads; 0 elsewhere
};

// Collective. Every sample is the slowest rank's.
Measured measure(Job &job, Channel &channel, const std::string &name);

}  // namespace perf
