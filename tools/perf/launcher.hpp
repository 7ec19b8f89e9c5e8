// Starts the ranks, listens to them, and stops all when one fails.
#pragma once

#include <functional>
#include <string>

#include <nlohmann/json.hpp>

#include "options.hpp"

namespace perf {

// Called on the launcher's thread for each message of a rank (see channel.hpp), and with {"text": line} for what a rank's process
// wrote elsewhere.
using Listener = std::function<void(int rank, const nlohmann::json &message)>;

// What ranks are started for.
struct Task {
    std::string command;  // "pair", "stress" or "eplb"
    RunOptions run;
    nlohmann::json options;  // all of the command's
};

// As processes, or as threads of this one. Returns true when every rank came to its end. Failures have gone to the listener as
// {"error": text} with their rank.
bool run_ranks(const Task &task, const Listener &listener);
bool run_threads(const Task &task, const Listener &listener);

// The main function of a rank's process: reads its task from standard input, writes messages to standard output.
int rank_main();

}  // namespace perf
