// What the user asked for. The same struct travels to every rank as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace perf {

struct PairOptions {
    std::string device = "auto";
    int ranks = 0;  // 0: one per GPU, on the host 2
    std::string manager = "one-sided";
    std::vector<int> tokens = {1, 128, 4096};
    bool sweep = false;
    int hidden = 7168;
    int topk = 0;     // 0: 8, or the number that the ids file has
    int experts = 0;  // 0: 256, or the number that the load file has
    std::string dtype = "bf16";
    std::string send = "rows";
    std::vector<std::string> routing = {"uniform"};
    bool graph = false;
    bool check = false;
    bool threads = false;
    std::string json;
    int iterations = 0;  // 0: about a second's worth
    int warmup = 2;
    int pairs = 0;  // 0: 20 on CUDA, fewer on the host for large batches
    std::vector<int> sm_budgets = {0};  // 0: automatic
    bool copy_out = false;
    bool weighted = false;
    bool jitter = false;
    bool call_time = false;
    bool baseline = false;
    std::vector<std::string> compare;
    uint64_t seed = 1;
    double timeout = 30;
    std::string provider = "auto";
    double mask = 0;
    bool uneven = false;
    std::string corrupt;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PairOptions, device, ranks, manager, tokens, sweep, hidden, topk, experts, dtype, send, routing,
                                   graph, check, threads, json, iterations, warmup, pairs, sm_budgets, copy_out, weighted, jitter,
                                   call_time, baseline, compare, seed, timeout, provider, mask, uneven, corrupt)

struct StressOptions {
    std::string device = "auto";
    int ranks = 0;  // 0: one per GPU, on the host 2
    bool threads = false;
    int64_t pairs = 0;  // 0: until the seconds are over
    double seconds = 60;
    int tokens = 640;
    uint64_t seed = 1;
    double delay_us = 20;
    double timeout = 30;
    std::string provider = "auto";
    std::string json;
    std::string corrupt;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(StressOptions, device, ranks, threads, pairs, seconds, tokens, seed, delay_us, timeout, provider, json,
                                   corrupt)

struct LinkOptions {
    std::string device = "auto";
    std::vector<int> gpus = {0, 1};
    double megabytes = 256;
    int threads = 0;  // 0: all cores
    double timeout = 30;
    std::string json;
};

struct LitmusOptions {
    std::vector<int> gpus = {0, 1};
    uint32_t rounds = 100000;
    double timeout = 30;
    std::string json;
};

struct EplbPlanOptions {
    std::string loads;
    int ranks = 0;
    int slots = 0;  // 0: the least multiple of ranks that is an eighth more than the experts
    int nodes = 1;
    int groups = 1;
    bool replay = false;
    std::string from;
    std::string save;
    uint64_t expert_bytes = 0;
    double target = 1.01;
    double move_cost = 1e-4;
    double min_gain = 0;
    int64_t max_copies = 0;
    int max_pair_copies = 0;
    double deadline_ms = 0;
    int threads = 0;
    int repeat = 5;
    std::string json;
};

}  // namespace perf
