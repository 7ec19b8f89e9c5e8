// What must come out, computed from the seed alone: no MoELink call is used here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device.hpp"
#include "options.hpp"
#include "routing.hpp"
#include "send.hpp"

namespace perf {

// The whole job: every rank's tokens.
struct World {
    uint64_t seed = 0;
    Dtype dtype{};
    Send send{};
    int ranks = 0;
    int hidden = 0;
    int topk = 0;
    int experts = 0;
    bool weighted = false;                    // combine multiplies each rank's row
    int32_t layout = 0;                       // MOELINK_LAYOUT_*
    std::vector<int64_t> tokens;              // [ranks]
    std::vector<std::vector<int32_t>> ids;    // [ranks][tokens, topk]
    std::vector<std::vector<float>> weights;  // [ranks][tokens, topk]

    World() = default;
    World(const PairOptions &options, const Routing &routing, int64_t most_tokens);

    // A row for each of a token's experts.
    bool by_expert() const;
    // Experts of `to` that the token names.
    int experts_there(int source, int64_t token, int to) const;
    bool sends(int source, int64_t token, int to) const { return experts_there(source, token, to) > 0; }
    int distinct_ranks(int source, int64_t token) const;
    // What combine multiplies a rank's row of the token by: 1, or with `weighted` the token's weights for experts of the rank.
    float factor(int source, int64_t token, int owner) const;
    // Rows that `source` sends to `to`.
    int64_t rows_between(int source, int to) const;
    int64_t most_tokens() const;
};

// Which rows a dispatch was given: those of an input (0: the tokens), or what a combine without expert work made of them.
struct Given {
    int input = 0;
    bool summed = false;
};

// In the run's type: a token times its distinct ranks, or by_expert its experts, when summed, rounded as combine does.
void given_row(const World &world, const Given &given, int source, int64_t token, void *row);

struct CheckResult {
    uint64_t compared = 0;  // values
    uint64_t wrong = 0;
    std::string first;  // the first wrong one, in words

    void add(bool right, const std::string &what_if_wrong);
    void merge(const CheckResult &other);
};

// What a rank received, as host memory holds it.
struct Received {
    int64_t slots = 0;  // row i of source s is row s * slots + i
    int32_t invalid_id = -1;
    std::vector<int32_t> counts;          // [ranks]
    std::vector<int32_t> ids;             // [ranks * slots, topk]
    std::vector<float> weights;           // [ranks * slots, topk]
    std::vector<std::vector<char>> rows;  // [ranks][count, bytes as sent], packed
};

// Counts, ids of every row (also the empty ones), weights and every bit of every row. `gathers_all`: every rank receives every
// token, as an all-gather does.
CheckResult check_dispatch(const World &world, int rank, bool gathers_all, const Given &given, const Received &received);

// Every element of a rank's output against fp64: |y - y64| <= u |y64| + one wire rounding a rank + n 2^-24 sum |x_i|.
// extra_roundings: further roundings of partial sums (a reduce-scatter by NCCL rounds at every hop).
CheckResult check_combine(const World &world, int rank, int extra_roundings, const std::vector<char> &output);

// The outputs of a timing run: `steps` pairs in a row without expert work multiply a token by its number of distinct ranks each
// time, or by its weights, rounded once a pair. With `any_order`, only to within the roundings, and a token may count every rank;
// weighted, also only to within the roundings.
CheckResult check_chain(const World &world, int rank, int steps, bool any_order, const std::vector<char> &output);

}  // namespace perf
