#include "commands.hpp"

#include <moelink/moelink.h>

namespace perf {

namespace {

constexpr const char *eplb_plan_examples = R"(
Examples:
  moelink-perf eplb-plan --loads expert_load.csv --ranks 32 --replay
      Each line of the file in turn: the last step's map under the new load, the plan for it, and what that moves.
  moelink-perf eplb-plan --loads trace.txt --ranks 32 --slots 288 --expert-bytes 44040192 --replay --json plan.json
  tools/plot plan.json -o plan.png
      With bytes; then as a picture.
  moelink-perf eplb-plan --loads trace.txt --ranks 32 --slots 288 --from old.plan --save new.plan
      One plan for all steps of the trace together, starting from a saved one.

A load file has lines of NAME,LOAD,LOAD,... (one layer), or is a trace of moelink_eplb_trace_save (docs/eplb.md).
)";

}  // namespace

void add_eplb_plan(CLI::App &app, EplbPlanOptions &options) {
    app.footer(eplb_plan_examples);
    app.option_defaults()->take_last();
    app.add_option("--loads", options.loads, "file of expert loads, step by step")->required();
    app.add_option("--ranks", options.ranks, "ranks")->required()->check(CLI::Range(1, int{MOELINK_EPLB_MAX_RANKS}));
    app.add_option("--slots", options.slots,
                   "physical experts of a layer, over all ranks: a multiple of the ranks; 0: at least an eighth more than the experts")
        ->check(CLI::Range(0, int{MOELINK_EPLB_MAX_SLOTS}))
        ->capture_default_str();
    app.add_option("--nodes", options.nodes, "nodes that the ranks form")->capture_default_str();
    app.add_option("--groups", options.groups, "groups that the experts form")->capture_default_str();
    app.add_flag("--replay", options.replay, "plan each step from the step before, instead of one plan for all steps together");
    app.add_option("--from", options.from, "a saved plan to start from");
    app.add_option("--save", options.save, "write the last plan to this file");
    app.add_option("--expert-bytes", options.expert_bytes, "[bytes] of one expert's weights in one layer; 0: bytes are not counted")
        ->capture_default_str();
    app.add_option("--target", options.target, "a layer is good enough at this many times its bound")->capture_default_str();
    app.add_option("--move-cost", options.move_cost, "fraction of the mean rank load that a copy must save")->capture_default_str();
    app.add_option("--min-gain", options.min_gain, "keep the map when the plan would save less than this fraction")->capture_default_str();
    app.add_option("--max-copies", options.max_copies, "most copies that may cross ranks in a step; 0: any number")->capture_default_str();
    app.add_option("--max-pair-copies", options.max_pair_copies, "most copies from one rank to another, a layer; 0: any number")
        ->capture_default_str();
    app.add_option("--deadline-ms", options.deadline_ms, "[ms] after which the planner keeps what it has; 0: none")
        ->check(CLI::Range(0.0, 1e9))
        ->capture_default_str();
    app.add_option("--threads", options.threads, "threads of the planner; 0: one a core")->capture_default_str();
    app.add_option("--repeat", options.repeat, "calls of which the median time is shown")->check(CLI::Range(1, 10000))->capture_default_str();
    app.add_option("--json", options.json, "also write everything to this file; - is standard output, without the table");
}

}  // namespace perf
