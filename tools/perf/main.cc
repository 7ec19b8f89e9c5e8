// moelink-perf: what MoELink does on this machine, checked and timed, and what the machine itself can do.
#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <moelink/moelink.h>

#include "eplb_plan.hpp"
#include "launcher.hpp"
#include "link.hpp"
#include "litmus.hpp"
#include "pair.hpp"
#include "shapes.hpp"
#include "stress.hpp"
#include "stress_round.hpp"

namespace {

constexpr const char *pair_examples = R"(
Examples:
  moelink-perf pair --check
      Two ranks on the host (or one on each GPU), uniform routing, three sizes; every value compared.
  moelink-perf pair --device cuda --ranks 2 --graph --check --json pair.json
      The headline: many pairs in one CUDA graph, one rank a GPU.
  moelink-perf pair --device host --ranks 4 --topk 6 --tokens 512 --routing 'load:expert_load.csv:*' --check
      Real loads, each topic of the file in turn; the number of experts is the file's.
  moelink-perf pair --ranks 2 --routing uniform --routing zipf:1.0 --routing hot
      Several routings in one table.
  moelink-perf pair --sweep --check --jitter --call-time --baseline --compare peers.json --json sweep.json
      Everything about one shape: all batch sizes, beside NCCL's all-gather and reduce-scatter and beside figures from elsewhere.
  moelink-perf pair --shape kimi-k2 --sweep --check
      The shape of another model.
  moelink-perf pair --send fp8-quantized --sweep --check --compare peers.json
      Tokens become FP8 on their way; beside the file's figures of fp8.
  moelink-perf pair --graph --tokens 4096 --sm-budget 4,8,16,24,32,64,0 --json budgets.json
      How few multiprocessors are enough.
)";

constexpr const char *stress_examples = R"(
Each pair has random numbers of tokens, ids (masked and invalid ones too), rows, sizes, slots and delays; managers change all the
time. Every value is recomputed from the seed and compared on the device. Exit code 1: a value was wrong, or a rank failed.

Examples:
  moelink-perf stress --seconds 10
  moelink-perf stress --device cuda --ranks 2 --pairs 1000000 --seconds 240 --json stress.json
  moelink-perf stress --device cuda --ranks 4 --tokens 128 --delay-us 200 --seed 7
      Several ranks a GPU where there are fewer; longer delays between the calls of each.
)";

constexpr const char *link_examples = R"(
Examples:
  moelink-perf link
      The host and, where there are any, the first two GPUs.
  moelink-perf link --device cuda --gpus 0,3 --json link.json
)";

constexpr const char *litmus_examples = R"(
Outcomes that the memory model forbids must be seen 0 times, else the exit code is 1. Those of variants without a fence or an
acquire are allowed; how often they were seen is for information.

Examples:
  moelink-perf litmus
  moelink-perf litmus --gpus 0,0 --rounds 20000
      Between blocks of one GPU.
)";

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

void add_pair(CLI::App &app, perf::PairOptions &options) {
    app.footer(pair_examples);
    app.option_defaults()->take_last();
    app.add_option("--device", options.device, "host, cuda, or auto: CUDA where a GPU is found")
        ->check(CLI::IsMember({"auto", "host", "cuda"}))
        ->capture_default_str();
    app.add_option("--ranks", options.ranks, "ranks; 0: one a GPU (at least 2), on the host 2. Ranks take GPUs in turn")
        ->check(CLI::Range(0, int{MOELINK_GROUP_MAX_RANKS}))
        ->capture_default_str();
    app.add_option("--manager", options.manager, "one-sided, allgather-reducescatter or reference")->capture_default_str();
    CLI::Option *tokens = app.add_option("--tokens", options.tokens, "tokens on each rank, a list: one row of the table each")
        ->delimiter(',')
        ->take_all()
        ->check(CLI::Range(1, 1 << 24))
        ->capture_default_str();
    app.add_flag_callback(
           "--sweep",
           [&] {
               options.sweep = true;
               options.tokens.assign(perf::sweep_tokens.begin(), perf::sweep_tokens.end());
           },
           "the headline's table: --tokens 1,8,32,64,128,256,512,1024,2048,4096, and on CUDA --graph")
        ->excludes(tokens);
    CLI::Option *hidden = app.add_option("--hidden", options.hidden, "values in a token's row")
                              ->check(CLI::Range(1, 1 << 20))
                              ->capture_default_str();
    CLI::Option *topk = app.add_option("--topk", options.topk, "experts of each token; 0: 8, or as many as the ids file has")
        ->check(CLI::Range(0, 1 << 16))
        ->capture_default_str();
    CLI::Option *experts =
        app.add_option("--experts", options.experts, "experts of all ranks; 0: 256, or as many as the load file has")
            ->check(CLI::Range(0, 1 << 20))
            ->capture_default_str();
    std::vector<std::string> names;
    for (const perf::Shape &shape : perf::shapes) {
        names.push_back(shape.name);
    }
    app.add_option_function<std::string>(
           "--shape",
           [&](const std::string &name) {
               const auto *shape = std::find_if(perf::shapes.begin(), perf::shapes.end(),
                                                [&](const perf::Shape &one) { return name == one.name; });
               options.hidden = shape->hidden;
               options.topk = shape->topk;
               options.experts = shape->experts;
           },
           "--hidden, --topk and --experts of a model")
        ->check(CLI::IsMember(names))
        ->excludes(hidden)
        ->excludes(topk)
        ->excludes(experts);
    app.add_option("--dtype", options.dtype, "bf16, fp16 or fp32")->capture_default_str();
    app.add_option("--send", options.send,
                   "what a dispatch of bf16 tokens sends:\n"
                   "rows (as they are) | fp8 (E4M3 and an fp32 scale for each 128 values, made before the timing) |\n"
                   "fp8-quantized (the same, made inside dispatch) | fp8-quantized-e8m0 (with scales of one byte).\n"
                   "Combine is of bf16 rows always")
        ->check(CLI::IsMember({"rows", "fp8", "fp8-quantized", "fp8-quantized-e8m0"}))
        ->capture_default_str();
    app.add_option(
           "--routing", options.routing,
           "which experts tokens name; may be given several times:\n"
           "uniform | zipf:S (popularity 1/place^S, places in random order) | hot (rank 0's experts have 80 % of the load) |\n"
           "load:FILE[:TOPIC] (lines of topic,count,count,...; * is each topic, none the sum of all) |\n"
           "ids:FILE.npy (exact ids, int16 or int32, [tokens, top-k])")
        ->expected(1)
        ->take_all()
        ->capture_default_str();
    app.add_option("--mask", options.mask, "share of the ids that is replaced by -1")
        ->check(CLI::Range(0.0, 1.0))
        ->capture_default_str();
    app.add_flag("--uneven", options.uneven, "token counts rise from none on rank 0 to --tokens on the last rank");
    app.add_flag("--check", options.check,
                 "compare every value with a computation that uses no MoELink call, before and after timing");
    app.add_flag("--graph", options.graph, "time replays of a CUDA graph instead of eager calls");
    app.add_option("--pairs-per-graph", options.pairs,
                   "pairs in one graph or stretch of eager calls; 0: 20, on the host fewer for long ones")
        ->check(CLI::Range(0, 10000))
        ->capture_default_str();
    app.add_option("--iterations", options.iterations, "timed repetitions; 0: about a second's worth, 5 to 200")
        ->check(CLI::Range(0, 100000))
        ->capture_default_str();
    app.add_option("--warmup", options.warmup, "repetitions before the timed ones")
        ->check(CLI::Range(0, 100000))
        ->capture_default_str();
    app.add_flag("--threads", options.threads, "ranks are threads of one process instead of processes");
    app.add_option("--sm-budget", options.sm_budgets,
                   "multiprocessors that a kernel may use, a list: one row of the table each; 0: automatic")
        ->delimiter(',')
        ->take_all()
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app.add_flag("--copy-out", options.copy_out,
                 "received rows go into the caller's own buffers, from which combine reads them, instead of views");
    CLI::Option *weighted =
        app.add_flag("--weighted", options.weighted, "combine multiplies each rank's row by the token's weights there");
    app.add_flag("--jitter", options.jitter, "also stamp each of many pairs in a row: p99 over p50, and the longest");
    app.add_flag("--call-time", options.call_time,
                 "CUDA: also the host's time in one eager call, beside a bare launch with as many parameter bytes");
    app.add_flag("--baseline", options.baseline,
                 "also time all-gather and reduce-scatter in the same processes: NCCL on CUDA, shared memory on the host")
        ->excludes(weighted);
    app.add_option("--compare", options.compare,
                   "a JSON file of figures from elsewhere: {meta: {machine, date, shape}, rows: [{lib, dtype, tokens, pair_us}]}, "
                   "or what --json wrote; prints the ratio; may be given several times")
        ->expected(1)
        ->take_all()
        ->check(CLI::ExistingFile);
    app.add_option("--provider", options.provider, "memory of the workspace: auto, fabric, posix-fd, cuda-ipc or host-shm")
        ->capture_default_str();
    app.add_option("--seed", options.seed, "of tokens, routes and weights; the same seed gives the same values")
        ->capture_default_str();
    app.add_option("--timeout", options.timeout, "[s] of every wait for another rank")
        ->check(CLI::Range(0.1, 86400.0))
        ->capture_default_str();
    app.add_option("--json", options.json, "also write everything to this file; - is standard output, without the table");
    app.add_option("--corrupt", options.corrupt,
                   "self-test: damage one value of the last rank after 'dispatch' or 'combine'; must fail")
        ->check(CLI::IsMember({"dispatch", "combine"}))
        ->group("");
}

void add_stress(CLI::App &app, perf::StressOptions &options) {
    app.footer(stress_examples);
    app.option_defaults()->take_last();
    app.add_option("--device", options.device, "host, cuda, or auto: CUDA where a GPU is found")
        ->check(CLI::IsMember({"auto", "host", "cuda"}))
        ->capture_default_str();
    app.add_option("--ranks", options.ranks, "ranks; 0: one a GPU (at least 2), on the host 2. Ranks take GPUs in turn")
        ->check(CLI::Range(0, perf::stress_ranks))
        ->capture_default_str();
    app.add_option("--pairs", options.pairs, "end after this many pairs; 0: only --seconds end it")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
        ->capture_default_str();
    app.add_option("--seconds", options.seconds, "[s] end after this time")->check(CLI::Range(0.0, 1e6))->capture_default_str();
    app.add_option("--tokens", options.tokens, "most tokens of a rank")->check(CLI::Range(1, 1 << 16))->capture_default_str();
    app.add_option("--delay-us", options.delay_us, "[us] longest random delay of a rank between two calls")
        ->check(CLI::Range(0.0, 1e6))
        ->capture_default_str();
    app.add_flag("--threads", options.threads, "ranks are threads of one process instead of processes");
    app.add_option("--provider", options.provider, "memory of the workspace: auto, fabric, posix-fd, cuda-ipc or host-shm")
        ->capture_default_str();
    app.add_option("--seed", options.seed, "of everything but time")->capture_default_str();
    app.add_option("--timeout", options.timeout, "[s] of every wait for another rank")
        ->check(CLI::Range(0.1, 86400.0))
        ->capture_default_str();
    app.add_option("--json", options.json, "also write everything to this file; - is standard output, without the summary");
    app.add_option("--corrupt", options.corrupt, "self-test: damage the last rank's rows before 'dispatch' or 'combine'; must fail")
        ->check(CLI::IsMember({"dispatch", "combine"}))
        ->group("");
}

void add_link(CLI::App &app, perf::LinkOptions &options) {
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

void add_litmus(CLI::App &app, perf::LitmusOptions &options) {
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

void add_eplb_plan(CLI::App &app, perf::EplbPlanOptions &options) {
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

}  // namespace

int main(int argc, char **argv) {
    CLI::App app("Measures MoELink and the machine that it runs on.");
    app.require_subcommand(1);
    app.set_version_flag("--version", moelink_version_string());
    app.footer(
        "'moelink-perf pair --help' and so on have examples. What each figure means is below each table.\n"
        "See also: moelink-info");
    perf::PairOptions pair;
    perf::StressOptions stress;
    perf::LinkOptions link;
    perf::LitmusOptions litmus;
    perf::EplbPlanOptions eplb_plan;
    CLI::App *pair_command = app.add_subcommand("pair", "dispatch and combine of one manager: checked, timed, in a table");
    CLI::App *stress_command = app.add_subcommand("stress", "a great number of random pairs, every value checked on the device");
    CLI::App *link_command = app.add_subcommand("link", "the machine's own limits: copies, links, flags; no MoELink involved");
    CLI::App *litmus_command =
        app.add_subcommand("litmus", "small programs on two GPUs: which orders of memory accesses come about; no MoELink involved");
    CLI::App *eplb_plan_command = app.add_subcommand("eplb-plan", "expert placement planned from loads in a file: balance, copies, time");
    CLI::App *rank_command = app.add_subcommand("rank", "")->group("");
    add_pair(*pair_command, pair);
    add_stress(*stress_command, stress);
    add_link(*link_command, link);
    add_litmus(*litmus_command, litmus);
    add_eplb_plan(*eplb_plan_command, eplb_plan);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError &error) {
        return app.exit(error) == 0 ? 0 : 2;
    }

    std::string command = "moelink-perf";
    for (int i = 1; i < argc; ++i) {
        command += std::string(" ") + argv[i];
    }
    try {
        if (rank_command->parsed()) {
            return perf::rank_main();
        }
        if (eplb_plan_command->parsed()) {
            return perf::run_eplb_plan(eplb_plan, command);
        }
        if (stress_command->parsed()) {
            return perf::run_stress(stress, command);
        }
        if (litmus_command->parsed()) {
            return perf::run_litmus(litmus, command);
        }
        return link_command->parsed() ? perf::run_link(link, command) : perf::run_pair(pair, command);
    } catch (const std::exception &error) {
        fmt::print(stderr, "moelink-perf: {}\n", error.what());
        return 2;
    }
}
