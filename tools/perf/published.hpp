// Points that others have published, and what the model's formula makes of them.
#pragma once

#include <array>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "fit.hpp"
#include "work.hpp"

namespace perf {

// Times of one library in groups of one size.
struct PublishedGroup {
    int ranks = 0;
    std::string source;
    std::string boundary;                       // what was timed
    std::array<std::vector<Point>, operations.size()> points;
};

struct PublishedSeries {
    std::string name;
    std::string machine;
    std::vector<PublishedGroup> groups;
};

// Reads a file of the form of tests/data/published_ep.json. Throws std::invalid_argument with what is wrong.
std::vector<PublishedSeries> read_published(const std::string &file, const Sync &sync);

// For each series: the formula is fitted on its first group alone and predicts its others; and what `ours` gives for the same work,
// over theirs. `ours` holds one fit an operation.
nlohmann::json check_published(const std::vector<PublishedSeries> &all, const std::array<Fit, operations.size()> &ours);
void print_published(const nlohmann::json &checked, const std::string &file);

}  // namespace perf
