// The options of each command on the command line, with help and examples.
#pragma once

#include <CLI/CLI.hpp>

#include "options.hpp"

namespace perf {

void add_pair(CLI::App &app, PairOptions &options);
void add_stress(CLI::App &app, StressOptions &options);
void add_link(CLI::App &app, LinkOptions &options);
void add_litmus(CLI::App &app, LitmusOptions &options);
void add_eplb_plan(CLI::App &app, EplbPlanOptions &options);
void add_eplb(CLI::App &app, EplbOptions &options);
void add_model(CLI::App &app, ModelOptions &options);

// What all commands that start ranks have.
void add_run(CLI::App &app, RunOptions &options, int most_ranks);
// What is moved: the shape of the model, and which experts tokens name.
void add_shape(CLI::App &app, PairOptions &options);

}  // namespace perf
