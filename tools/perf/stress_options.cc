#include "commands.hpp"

#include "stress_round.hpp"

namespace perf {

namespace {

constexpr const char *stress_examples = R"(
Each pair has random numbers of tokens, ids (masked and invalid ones too), rows, sizes, slots and delays; managers change all the
time. Every value is recomputed from the seed and compared on the device. Exit code 1: a value was wrong, or a rank failed.

Examples:
  moelink-perf stress --seconds 10
  moelink-perf stress --device cuda --ranks 2 --pairs 1000000 --seconds 240 --json stress.json
  moelink-perf stress --device cuda --ranks 4 --tokens 128 --delay-us 200 --seed 7
      Several ranks a GPU where there are fewer; longer delays between the calls of each.
)";

}  // namespace

void add_stress(CLI::App &app, StressOptions &options) {
    app.footer(stress_examples);
    add_run(app, options, stress_ranks);
    app.add_option("--pairs", options.pairs, "end after this many pairs; 0: only --seconds end it")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
        ->capture_default_str();
    app.add_option("--seconds", options.seconds, "[s] end after this time")->check(CLI::Range(0.0, 1e6))->capture_default_str();
    app.add_option("--tokens", options.tokens, "most tokens of a rank")->check(CLI::Range(1, 1 << 16))->capture_default_str();
    app.add_option("--delay-us", options.delay_us, "[us] longest random delay of a rank between two calls")
        ->check(CLI::Range(0.0, 1e6))
        ->capture_default_str();
    app.add_option("--provider", options.provider, "memory of the workspace: auto, fabric, posix-fd, cuda-ipc or host-shm")
        ->capture_default_str();
    app.add_option("--manager", options.manager, "one-sided or two-sided")
        ->check(CLI::IsMember({"one-sided", "two-sided"}))
        ->capture_default_str();
    app.add_option("--corrupt", options.corrupt, "self-test: damage the last rank's rows before 'dispatch' or 'combine'; must fail")
        ->check(CLI::IsMember({"dispatch", "combine"}))
        ->group("");
}

}  // namespace perf
