#include "commands.hpp"

#include <moelink/moelink.h>

#include "shapes.hpp"

namespace perf {

namespace {

constexpr const char *model_examples = R"(
Examples:
  moelink-perf pair --device cuda --ranks 2 --sweep --check --json whole.json
  moelink-perf pair --device cuda --ranks 2 --graph --tokens 1,32,128,512,4096 --slice-of 8 --check --json slice8.json
  moelink-perf pair --device cuda --ranks 2 --graph --tokens 1,32,128,512,4096 --slice-of 32 --check --json slice32.json
  moelink-perf link --device cuda --json link.json
  moelink-perf model whole.json slice8.json slice32.json --link link.json --published tests/data/published_ep.json --json model.json
  tools/plot model.json -o model.png
      MODELLED times of EP4 to EP72 from runs on two GPUs, with the errors on points that had no part in the fit.
  moelink-perf model whole.json slice8.json --shape kimi-k2 --groups 8,16 --tokens 64,4096 --routing zipf:1.0
      Another shape and routing than those that were measured.
)";

}  // namespace

void add_model(CLI::App &app, ModelOptions &options) {
    app.footer(model_examples);
    app.option_defaults()->take_last();
    app.add_option("runs", options.runs,
                   "JSON files of moelink-perf pair with the one-sided manager on one machine. Runs of two ranks, whole or with --slice-of,\n"
                   "are fitted; those of larger groups are only predicted")
        ->required()
        ->take_all()
        ->check(CLI::ExistingFile);
    app.add_option("--groups", options.groups, "ranks of the groups that are modelled, a list")
        ->delimiter(',')
        ->take_all()
        ->check(CLI::Range(2, int{MOELINK_GROUP_MAX_RANKS}))
        ->capture_default_str();
    options.pair.tokens.assign(sweep_tokens.begin(), sweep_tokens.end());
    app.add_option("--tokens", options.pair.tokens, "tokens on each rank, a list")
        ->delimiter(',')
        ->take_all()
        ->check(CLI::Range(1, 1 << 24))
        ->capture_default_str();
    add_shape(app, options.pair);
    app.add_option("--seed", options.pair.seed, "of drawn routes")->capture_default_str();
    app.add_option("--link", options.link, "JSON of moelink-perf link --device cuda: how long flags to many ranks take, which is t_sync")
        ->check(CLI::ExistingFile);
    app.add_option("--published", options.published,
                   "JSON of published times, such as tests/data/published_ep.json: the formula, fitted on a library's smallest group, must\n"
                   "predict its larger ones; and our modelled times over theirs")
        ->check(CLI::ExistingFile);
    app.add_option("--json", options.json, "also write everything to this file; - is standard output, without the table");
}

}  // namespace perf
