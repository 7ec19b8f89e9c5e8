#include "commands.hpp"

namespace perf {

namespace {

constexpr const char *litmus_examples = R"(
Outcomes that the memory model forbids must be seen 0 times, else the exit code is 1. Those of variants without a fence or an
acquire are allowed; how often they were seen is for information.

Examples:
  moelink-perf litmus
  moelink-perf litmus --gpus 0,0 --rounds 20000
      Between blocks of one GPU.
)";

}  // namespace

void add_litmus(CLI::App &app, LitmusOptions &options) {
    app.footer(litmus_examples);
    app.option_defaults()->take_last();
    app.add_option("--gpus", options.gpus, "the GPU that writes, and the one into whose memory it does; may be the same")
        ->delimiter(',')
        ->take_all()
        ->capture_default_str();
    app.add_option("--rounds", options.rounds, "rounds of each program")->check(CLI::Range(1, 10000000))->capture_default_str();
    app.add_option("--timeout", options.timeout, "[s] of every wait")->check(CLI::Range(0.1, 3600.0))->capture_default_str();
    app.add_option("--json", options.json, "also write everything to this file; - is standard output, without the table");
}

}  // namespace perf
