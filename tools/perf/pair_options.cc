#include "commands.hpp"

#include <moelink/moelink.h>

#include "shapes.hpp"

namespace perf {

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
  moelink-perf pair --ranks 2 --graph --tokens 1,32,128,1024,4096 --slice-of 8 --check --json slice8.json
      The rows of one link in a group of eight, for moelink-perf model.
)";

}  // namespace

void add_pair(CLI::App &app, PairOptions &options) {
    app.footer(pair_examples);
    add_run(app, options, MOELINK_GROUP_MAX_RANKS);
    app.add_option("--manager", options.manager,
                   "one-sided, two-sided, allgather-reducescatter (with -nccl or -nccl-deterministic: over NCCL), or reference")
        ->capture_default_str();
    CLI::Option *tokens = app.add_option("--tokens", options.tokens, "tokens on each rank, a list: one row of the table each")
        ->delimiter(',')
        ->take_all()
        ->check(CLI::Range(1, 1 << 24))
        ->capture_default_str();
    app.add_flag_callback(
           "--sweep",
           [&] {
               options.sweep = true;
               options.tokens.assign(sweep_tokens.begin(), sweep_tokens.end());
           },
           "the headline's table: --tokens 1,8,32,64,128,256,512,1024,2048,4096, and on CUDA --graph")
        ->excludes(tokens);
    add_shape(app, options);
    app.add_option("--mask", options.mask, "share of the ids that is replaced by -1")
        ->check(CLI::Range(0.0, 1.0))
        ->capture_default_str();
    CLI::Option *uneven = app.add_flag("--uneven", options.uneven, "token counts rise from none on rank 0 to --tokens on the last rank");
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
    app.add_option("--sm-budget", options.sm_budgets,
                   "multiprocessors that a kernel may use, a list: one row of the table each; 0: automatic")
        ->delimiter(',')
        ->take_all()
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app.add_option("--send", options.send,
                   "what a dispatch of bf16 tokens sends:\n"
                   "rows (as they are) | fp8 (E4M3 and an fp32 scale for each 128 values, made before the timing) |\n"
                   "fp8-quantized (the same, made inside dispatch) | fp8-quantized-e8m0 (with scales of one byte).\n"
                   "Combine is of bf16 rows always")
        ->check(CLI::IsMember({"rows", "fp8", "fp8-quantized", "fp8-quantized-e8m0"}))
        ->capture_default_str();
    app.add_flag("--copy-out", options.copy_out,
                 "received rows go into the caller's own buffers, from which combine reads them, instead of views");
    app.add_option("--layout", options.layout,
                   "how received rows lie: rank-major | packed (by source, without gaps) | expert-major (a row for each of a token's experts\n"
                   "here) | expert-padded. Other than rank-major, --check compares the outputs of the timed pairs only")
        ->check(CLI::IsMember({"rank-major", "packed", "expert-major", "expert-padded"}))
        ->capture_default_str();
    CLI::Option *weighted =
        app.add_flag("--weighted", options.weighted, "combine multiplies each rank's row by the token's weights there");
    app.add_flag("--jitter", options.jitter, "also stamp each of many pairs in a row: p99 over p50, and the longest");
    app.add_flag("--call-time", options.call_time,
                 "CUDA: also the host's time in one eager call, beside a bare launch with as many parameter bytes");
    CLI::Option *baseline = app.add_flag("--baseline", options.baseline,
                 "also time all-gather and reduce-scatter in the same processes: NCCL on CUDA, shared memory on the host")
        ->excludes(weighted);
    CLI::Option *compare = app.add_option("--compare", options.compare,
                   "a JSON file of figures from elsewhere: {meta: {machine, date, shape}, rows: [{lib, dtype, tokens, pair_us}]}, "
                   "or what --json wrote; prints the ratio; may be given several times")
        ->expected(1)
        ->take_all()
        ->check(CLI::ExistingFile);
    app.add_option("--slice-of", options.slice_of,
                   "two ranks run the share of ranks 0 and 1 in a group of this many: only the rows that one sends to the other, so the\n"
                   "bytes of one link there; for moelink-perf model. 0: off")
        ->check(CLI::Range(0, int{MOELINK_GROUP_MAX_RANKS}))
        ->capture_default_str()
        ->excludes(uneven)
        ->excludes(baseline)
        ->excludes(compare);
    app.add_option("--provider", options.provider, "memory of the workspace: auto, fabric, posix-fd, cuda-ipc or host-shm")
        ->capture_default_str();
    app.add_option("--corrupt", options.corrupt,
                   "self-test: damage one value of the last rank after 'dispatch' or 'combine'; must fail")
        ->check(CLI::IsMember({"dispatch", "combine"}))
        ->group("");
}

}  // namespace perf
