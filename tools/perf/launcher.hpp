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

// Each returns true when every rank came to its end. Failures have gone to the listener as {"error": text} with their rank.
bool run_processes(const PairOptions &options, const Listener &listener);
bool run_threads(const PairOptions &options, const Listener &listener);

// The main function of a rank's process: reads its task from standard input, writes messages to standard output.
int rank_main();

}  // namespace perf
