#include "commands.hpp"

namespace perf {

namespace {

constexpr const char *link_examples = R"(
Examples:
  moelink-perf link
      The host and, where there are any, the first two GPUs.
  moelink-perf link --device cuda --gpus 0,3 --json link.json
)";

}  // namespace

void add_link(CLI::App &app, LinkOptions &options) {
    app.footer(link_examples);
    app.option_defaults()->take_last();
    app.add_option("--device", options.device, "host, cuda, or auto: both, where a GPU is found")
        ->check(CLI::IsMember({"auto", "host", "cuda"}))
        ->capture_default_str();
    app.add_option("--gpus", options.gpus, "the two GPUs")->delimiter(',')->take_all()->capture_default_str();
    app.add_option("--megabytes", options.megabytes, "[10^6 bytes] of one copy")
        ->check(CLI::Range(1.0, 16384.0))
        ->capture_default_str();
    app.add_option("--threads", options.threads, "threads of the parallel memcpy; 0: one a core")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app.add_option("--timeout", options.timeout, "[s] of every wait")->check(CLI::Range(0.1, 3600.0))->capture_default_str();
    app.add_option("--json", options.json, "also write everything to this file; - is standard output, without the table");
}

}  // namespace perf
