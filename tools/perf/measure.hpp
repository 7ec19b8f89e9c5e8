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

// Where the host's time goes in one eager call.
struct CallTime {
    double call_us = 0;  // p50
    double bare_us = 0;  // p50 of a bare launch with as many parameter bytes, between the calls
    int blocks = 0;      // of the call's largest kernel
    int parameter_bytes = 0;
    int kernels = 0;
};

struct Measured {
    Timing dispatch;
    Timing combine;
    Timing pair;
    int pairs = 0;  // in one graph, or in one stretch of eager calls
    bool graph = false;
    CheckResult chain;     // the timed outputs themselves
    Timing stamped;        // with --jitter: each of many pairs in a row
    bool launches = false;  // CUDA: the calls' kernels are known
    CallTime dispatch_call;
    CallTime combine_call;
    double memcpy_us = 0;  // host device: a memcpy of the bytes that must move, on the same threads; 0 elsewhere
    double over_memcpy = 0;  // median over rounds of pairs and such copies in turn
};

// Collective. Every sample is the slowest rank's.
Measured measure(Job &job, Channel &channel, const std::string &name);
// The pair alone.
Measured measure_baseline(Job &job);

}  // namespace perf
