// What the user asked for. The same struct travels to every rank as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace perf {

// Of every command that starts ranks.
struct RunOptions {
    std::string device = "auto";
    int ranks = 0;  // 0: one per GPU, on the host 2
    bool threads = false;
    uint64_t seed = 1;
    double timeout = 30;
    std::string json;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RunOptions, device, ranks, threads, seed, timeout, json)

struct PairOptions : RunOptions {
    std::string manager = "one-sided";
    std::vector<int> tokens = {1, 128, 4096};
    bool sweep = false;
    int hidden = 7168;
    int topk = 0;     // 0: 8, or the number that the ids file has
    int experts = 0;  // 0: 256, or the number that the load file has
    std::string dtype = "bf16";
    std::string send = "rows";
    std::string layout = "rank-major";
    std::vector<std::string> routing = {"uniform"};
    bool graph = false;
    bool check = false;
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
    std::string provider = "auto";
    double mask = 0;
    bool uneven = false;
    int slice_of = 0;  // ranks of the group of which two ranks' slices run; 0: the whole of this one
    std::string corrupt;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PairOptions, device, ranks, manager, tokens, sweep, hidden, topk, experts, dtype, send, layout, routing,
                                   graph, check, threads, json, iterations, warmup, pairs, sm_budgets, copy_out, weighted, jitter,
                                   call_time, baseline, compare, seed, timeout, provider, mask, uneven, slice_of, corrupt)

struct StressOptions : RunOptions {
    int64_t pairs = 0;  // 0: until the seconds are over
    double seconds = 60;
    int tokens = 640;
    double delay_us = 20;
    std::string provider = "auto";
    std::string manager = "one-sided";
    std::string corrupt;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(StressOptions, device, ranks, threads, manager, pairs, seconds, tokens, seed, delay_us, timeout, provider, json,
                                   corrupt)

struct EplbOptions : RunOptions {
    std::string loads;
    int layers = 0;   // 0: as many as the load file has
    int experts = 0;  // 0: as many as the load file has
    int slots = 0;    // 0: at least an eighth more than the experts
    int changes = 0;  // of traffic; 0: all that the load file has
    std::string back_end = "auto";
    int staging = 4;  // experts
    std::string overlap = "auto";
    uint64_t expert_bytes = 65536;
    int tensors = 3;  // of an expert
    int sms = 0;      // moelink_eplb_comm_params.sm_budget
    bool from_scratch = false;
    bool check = false;
    bool checksum = false;
    int repeat = 3;
    std::string manager = "one-sided";
    int tokens = 512;
    int topk = 6;
    int hidden = 1024;
    std::string dtype = "bf16";
    std::string policy = "capacity";
    int iterations = 0;  // of the pairs; 0: about a second's worth
    int warmup = 2;
    std::string corrupt;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(EplbOptions, device, ranks, threads, check, seed, timeout, json, loads, layers, experts, slots,
                                   changes, back_end, staging, overlap, expert_bytes, tensors, sms, from_scratch, checksum, repeat, manager,
                                   tokens, topk, hidden, dtype, policy, iterations, warmup, corrupt)

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

struct ModelOptions {
    PairOptions pair;  // shape, tokens, routing and seed of what is modelled; its ranks are set for each group
    std::vector<std::string> runs;
    std::string link;
    std::string published;
    std::vector<int> groups = {4, 8, 16, 32, 72};
    std::string json;
};

}  // namespace perf
