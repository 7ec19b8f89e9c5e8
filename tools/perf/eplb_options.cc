#include "commands.hpp"

#include <moelink/moelink.h>

namespace perf {

namespace {

constexpr const char *eplb_examples = R"(
Examples:
  moelink-perf eplb --loads expert_load.csv --ranks 4 --layers 4 --check
      Traffic goes from topic to topic of the file. For each change: a plan from the map in use, the experts' weights moved as it
      says, every byte of every slot compared, and dispatch and combine of the new traffic with the old map and with the new one.
  moelink-perf eplb --loads expert_load.csv --device cuda --ranks 2 --layers 4 --expert-bytes 44040192 --staging 4 --check --json eplb.json
      Experts as large as DeepSeek-V3's in fp8.
  moelink-perf eplb --loads trace.txt --ranks 8 --slots 288 --back-end staged --from-scratch
      Through host memory, and with as much to move as a plan from scratch makes.
  moelink-perf eplb --loads expert_load.csv --device cuda --ranks 2 --layers 4 --expert-bytes 1048576 --tensors 64 --sms 8
      Many small tensors, copied by 8 multiprocessors; with --sms -1 by the copy engines.
)";

}  // namespace

void add_eplb(CLI::App &app, EplbOptions &options) {
    app.footer(eplb_examples);
    add_run(app, options, MOELINK_GROUP_MAX_RANKS);
    app.add_option("--loads", options.loads, "file of expert loads, one step or topic after the other")->required();
    app.add_option("--layers", options.layers, "layers; 0: as many as the file has; more are its layers with the experts turned")
        ->check(CLI::Range(0, int{MOELINK_EPLB_MAX_LAYERS}))
        ->capture_default_str();
    app.add_option("--experts", options.experts, "experts of a layer; 0: as many as the file has; fewer share the others' load")
        ->check(CLI::Range(0, int{MOELINK_EPLB_MAX_EXPERTS}))
        ->capture_default_str();
    app.add_option("--slots", options.slots,
                   "physical experts of a layer, over all ranks: a multiple of the ranks; 0: at least an eighth more than the experts")
        ->check(CLI::Range(0, int{MOELINK_EPLB_MAX_SLOTS}))
        ->capture_default_str();
    app.add_option("--changes", options.changes, "changes of traffic; 0: all that the file has")
        ->check(CLI::Range(0, int{MOELINK_EPLB_MAX_STEPS}))
        ->capture_default_str();
    app.add_option("--back-end", options.back_end, "auto, nccl-own, staged or read, or one of vLLM's names for them")->capture_default_str();
    app.add_option("--staging", options.staging, "experts that a rank may have on their way beside its live rows")
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str();
    app.add_option("--overlap", options.overlap,
                   "whether a batch's transfers begin before the one before it has ended: auto (where experts are large), never or always")
        ->check(CLI::IsMember({"auto", "never", "always"}))
        ->capture_default_str();
    app.add_option("--expert-bytes", options.expert_bytes, "[bytes] of one expert's weights in one layer")
        ->check(CLI::Range(uint64_t{16}, uint64_t{1} << 32))
        ->capture_default_str();
    app.add_option("--tensors", options.tensors,
                   "tensors that these bytes are: 3 are two matrices, the second half the size of the first, and scales; else equal parts")
        ->check(CLI::Range(1, int{MOELINK_EPLB_MAX_TENSORS}))
        ->capture_default_str();
    app.add_option("--sms", options.sms,
                   "multiprocessors that copy rows, where they are read on CUDA; -1: none, the copy engines; 0: as the library chooses")
        ->check(CLI::Range(-1, 1 << 16))
        ->capture_default_str();
    app.add_flag("--from-scratch", options.from_scratch, "plan without regard to the map in use, for much to move");
    app.add_flag("--checksum", options.checksum, "a code over every expert, made by the sender and compared by the receiver");
    app.add_option("--repeat", options.repeat, "times that a move is made, back and forth, of which the median is shown")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_option("--manager", options.manager,
                   "one-sided, two-sided, allgather-reducescatter (with -nccl or -nccl-deterministic: over NCCL), or reference")
        ->capture_default_str();
    app.add_option("--policy", options.policy, "how a token's copy of an expert is chosen: round-robin, hashed or capacity")
        ->capture_default_str();
    app.add_option("--tokens", options.tokens, "tokens on each rank")->check(CLI::Range(1, 1 << 24))->capture_default_str();
    app.add_option("--hidden", options.hidden, "values in a token's row")->check(CLI::Range(1, 1 << 20))->capture_default_str();
    app.add_option("--topk", options.topk, "experts of each token")->check(CLI::Range(1, 1 << 16))->capture_default_str();
    app.add_option("--dtype", options.dtype, "bf16, fp16 or fp32")->capture_default_str();
    app.add_option("--iterations", options.iterations, "timed repetitions of the pair; 0: about a second's worth, 5 to 200")
        ->check(CLI::Range(0, 100000))
        ->capture_default_str();
    app.add_option("--warmup", options.warmup, "repetitions before the timed ones")
        ->check(CLI::Range(0, 100000))
        ->capture_default_str();
    app.add_flag("--check", options.check, "compare every byte of every slot after each move");
    app.add_option("--corrupt", options.corrupt, "self-test: damage one byte of the last rank after the 'move'; must fail")
        ->check(CLI::IsMember({"move"}))
        ->group("");
}

}  // namespace perf
