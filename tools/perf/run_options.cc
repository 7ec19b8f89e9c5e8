#include "commands.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "shapes.hpp"

namespace perf {

void add_run(CLI::App &app, RunOptions &options, int most_ranks) {
    app.option_defaults()->take_last();
    app.add_option("--device", options.device, "host, cuda, or auto: CUDA where a GPU is found")
        ->check(CLI::IsMember({"auto", "host", "cuda"}))
        ->capture_default_str();
    app.add_option("--ranks", options.ranks, "ranks; 0: one a GPU (at least 2), on the host 2. Ranks take GPUs in turn")
        ->check(CLI::Range(0, most_ranks))
        ->capture_default_str();
    app.add_flag("--threads", options.threads, "ranks are threads of one process instead of processes");
    app.add_option("--seed", options.seed, "of tokens, routes and all else that is drawn; the same seed gives the same values")
        ->capture_default_str();
    app.add_option("--timeout", options.timeout, "[s] of every wait for another rank")
        ->check(CLI::Range(0.1, 86400.0))
        ->capture_default_str();
    app.add_option("--json", options.json, "also write everything to this file; - is standard output, where nothing else goes then");
}

void add_shape(CLI::App &app, PairOptions &options) {
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
    for (const Shape &shape : shapes) {
        names.push_back(shape.name);
    }
    app.add_option_function<std::string>(
           "--shape",
           [&](const std::string &name) {
               const auto *shape = std::find_if(shapes.begin(), shapes.end(),
                                                [&](const Shape &one) { return name == one.name; });
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
    app.add_option(
           "--routing", options.routing,
           "which experts tokens name; may be given several times:\n"
           "uniform | zipf:S (popularity 1/place^S, places in random order) | hot (rank 0's experts have 80 % of the load) |\n"
           "load:FILE[:TOPIC] (lines of topic,count,count,...; * is each topic, none the sum of all) |\n"
           "ids:FILE.npy (exact ids, int16 or int32, [tokens, top-k])")
        ->expected(1)
        ->take_all()
        ->capture_default_str();
}

}  // namespace perf
