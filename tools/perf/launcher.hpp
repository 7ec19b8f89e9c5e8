// Starts the ranks, listens to them, and stops all when one fails.
#pragma once

#include <functional>
#include <string>

#include <nlohmann/json.hpp>

namespace perf {

// Called on the launcher's thread for each message of a rank (see channel.hpp), and with {"text": line} for what a rank's process
// wrote elsewhere.
using Listener = std::function<void(int rank, const nlohmann::json &message)>;

// Decides what the user left open: device "auto", and ranks 0 (one a GPU, at least 2; on the host 2). Throws std::invalid_argument.
void resolve_device(std::string &device, int &ranks);

// What the ranks are started for.
struct Task {
    std::string kind;  // "pair", "stress" or "eplb"
    std::string device;
    int ranks;
    double timeout;          // [s] of every wait for another rank
    nlohmann::json options;  // of the kind
};

// Each returns true when every rank came to its end. Failures have gone to the listener as {"error": text} with their rank.
bool run_processes(const Task &task, const Listener &listener);
bool run_threads(const Task &task, const Listener &listener);

// The main function of a rank's process: reads its task from standard input, writes messages to standard output.
int rank_main();

}  // namespace perf
