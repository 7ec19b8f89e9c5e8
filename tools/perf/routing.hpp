// Which experts each token names.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "npy.hpp"
#include "options.hpp"

namespace perf {

// One way to route; made once, the same on every rank.
struct Routing {
    std::string name;                     // for the table
    std::vector<double> loads;            // [experts] relative load; empty when ids are exact
    std::shared_ptr<const NpyTable> ids;  // exact ids, or null
    std::string note;                     // what a reader should know about it, or ""
};

// Expands the routings of the options ("load:FILE:*" is one a topic) and fills options.experts and options.topk in where the
// user left them to the files. Throws std::runtime_error or std::invalid_argument with what is wrong.
std::vector<Routing> make_routings(PairOptions &options);

// Where fewer experts than topk have any load, the others get a little, so that a draw without replacement can end; the note says so.
void lift_zeros(Routing &routing, int topk);

// [tokens, topk] expert ids of a rank. Draws without replacement with probability proportional to the loads; a share `mask` of
// the ids is replaced by -1. With options.slice_of, the tokens are those of ranks 0 and 1 of that larger group, and only the experts of the
// one peer are left.
std::vector<int32_t> route(const Routing &routing, const PairOptions &options, int rank, int64_t tokens);
// [tokens, topk] positive weights; each row sums to 1.
std::vector<float> draw_weights(const PairOptions &options, int rank, int64_t tokens);

}  // namespace perf
