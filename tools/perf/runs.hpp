// What `moelink-perf pair` measured, read back from its JSON as points of a fit.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "fit.hpp"
#include "work.hpp"

namespace perf {

using PointSets = std::array<std::vector<Point>, operations.size()>;  // one an operation

struct Runs {
    std::string machine;
    std::string calls;    // "graph replay" or "eager calls"
    std::string variant;  // of combine, and where received rows lie
    double push_gbps = 0;  // of the link, the largest that a run measured; 0: none did
    PointSets two_ranks;                // whole pairs and slices: what the fit is made of
    std::map<int, PointSets> larger;    // groups of more ranks: never fitted
    nlohmann::json rows = nlohmann::json::array();  // the measured rows, with ranks, slice_of and shape
    std::vector<std::string> notes;
};

// Throws std::invalid_argument with what is wrong with a file, or which two files do not belong together.
Runs read_runs(const std::vector<std::string> &files, const Sync &sync);

}  // namespace perf
