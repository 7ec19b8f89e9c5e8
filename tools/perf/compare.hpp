// Our pairs beside figures that were measured elsewhere.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "options.hpp"

namespace perf {

// Figures of one file, for one shape.
struct Peers {
    std::string file;
    std::string machine;  // and date: where and when they were measured
    std::string routing;  // "": any
    struct Figure {
        std::string lib;
        int64_t tokens;
        double pair_us;
        std::string note;
    };
    std::vector<Figure> figures;
};

// What a file has for the options' shape and type: either {meta: {machine, date, shape}, rows: [{lib, dtype, tokens, pair_us}]} or
// a document of moelink-perf pair. Throws std::invalid_argument when it is neither, or has nothing for the shape.
Peers read_peers(const std::string &file, const PairOptions &options);

// One line for each library: our pair's time over its. Fills `document["compare"]` too; prints only with `show`.
void compare(const std::vector<Peers> &peers, nlohmann::json &document, bool show);

}  // namespace perf
