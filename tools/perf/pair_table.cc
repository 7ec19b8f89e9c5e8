#include "pair_table.hpp"

#include <fmt/format.h>

namespace perf {

namespace {

using nlohmann::json;

enum Show { always, on_host, with_push, on_cuda, with_budgets, with_jitter, with_call_time, with_baseline };

struct Shown {
    Show show;
    Column column;
};
const Shown columns[] = {
    {always, {"tokens", "per rank", 8, [](const json &row) { return count(row, "tokens"); }, nullptr}},
    {always, {"routing", "", -15, [](const json &row) { return row.at("routing").get<std::string>(); }, nullptr}},
    {with_budgets, {"budget", "SMs", 6,
     [](const json &row) { return row.at("sm_budget") == 0 ? std::string("auto") : count(row, "sm_budget"); },
     "budget    multiprocessors that a kernel may use"}},
    {always, {"rows", "crossed", 8, [](const json &row) { return count(row, "rows_crossed"); },
     "rows      that a dispatch moved to or from other ranks, busiest rank"}},
    {always, {"dispatch", "us p50", 9, [](const json &row) { return number(value(row, "dispatch_us_p50")); },
     "dispatch  (and combine) alone, from idle"}},
    {always, {"", "p99", 9, [](const json &row) { return number(value(row, "dispatch_us_p99")); }, nullptr}},
    {always, {"combine", "us p50", 9, [](const json &row) { return number(value(row, "combine_us_p50")); }, nullptr}},
    {always, {"", "p99", 9, [](const json &row) { return number(value(row, "combine_us_p99")); }, nullptr}},
    {always, {"pair", "us p50", 9, [](const json &row) { return number(value(row, "pair_us_p50")); },
     "pair      dispatch and combine, many times in a row without expert work, each dispatch reading the combine before it"}},
    {always, {"", "p99", 9, [](const json &row) { return number(value(row, "pair_us_p99")); }, nullptr}},
    {on_host, {"pair /", "memcpy", 7,
     [](const json &row) { return fmt::format("{:.2f}", value(row, "pair_over_memcpy")); },
     "/ memcpy  the pair over a memcpy of the bytes that it must move, in turn on the same threads: median of the ratios"}},
    {always, {"wire", "GB/s", 7, [](const json &row) { return number(value(row, "wire_gbps")); },
     "wire      those rows, there and back, over the pair's p50"}},
    {with_push, {"of", "push", 6, [](const json &row) { return fmt::format("{:.0f} %", 100 * value(row, "push_share")); },
     "of push   wire over the rate of plain stores between the first two GPUs, both directions at once, measured in this run"}},
    {with_push, {"bytes", "us", 8, [](const json &row) { return number(value(row, "bytes_us")); },
     "bytes     those rows, there and back, at that rate"}},
    {on_cuda, {"SMs", "d/c", 9,
     [](const json &row) { return count(row, "dispatch_blocks") + "/" + count(row, "combine_blocks"); },
     "SMs       multiprocessors that dispatch and combine used at most: blocks of their kernels"}},
    {with_jitter, {"jitter", "p99/p50", 8,
     [](const json &row) { return fmt::format("{:.2f}", value(row, "stamped_us_p99") / value(row, "stamped_us_p50")); },
     "jitter    each of many pairs in a row stamped: p99 over p50, and the longest; the stamps add to the time"}},
    {with_jitter, {"", "max us", 9, [](const json &row) { return number(value(row, "stamped_us_max")); }, nullptr}},
    {with_call_time, {"call", "us d/c", 12,
     [](const json &row) { return number(value(row, "dispatch_call_us")) + "/" + number(value(row, "combine_call_us")); },
     "call      the host's time in an eager dispatch and combine, p50"}},
    {with_call_time, {"over", "bare d/c", 10,
     [](const json &row) {
         return fmt::format("{:.2f}/{:.2f}", value(row, "dispatch_call_us") / value(row, "dispatch_bare_us"),
                            value(row, "combine_call_us") / value(row, "combine_bare_us"));
     },
     "over bare that time over a bare cudaLaunchKernelExC with as many parameter bytes, in between"}},
    {with_baseline, {"AG+RS", "us p50", 9, [](const json &row) { return number(value(row, "baseline_pair_us_p50")); },
     "AG+RS     the pair by all-gather and reduce-scatter of the same tokens, in the same processes"}},
    {with_baseline, {"pair /", "AG+RS", 7,
     [](const json &row) { return fmt::format("{:.2f}", value(row, "pair_us_p50") / value(row, "baseline_pair_us_p50")); },
     nullptr}},
    {always, {"space", "MiB", 9, [](const json &row) { return fmt::format("{:.1f}", value(row, "workspace_mib")); },
     "space     one rank's workspace"}},
    {always, {"skew of", "rows", 7, [](const json &row) { return fmt::format("{:.2f}", value(row, "skew")); },
     "skew      received rows of a rank, most over mean"}},
    {always, {"checked", "", 7, [](const json &row) { return row.at("checked").get<std::string>(); }, nullptr}},
};

bool shown(Show show, const PairOptions &options, double push_gbps) {
    const bool cuda = options.device == "cuda";
    switch (show) {
        case on_host: return !cuda;
        case with_push: return push_gbps > 0;
        case on_cuda: return cuda;
        case with_budgets: return options.sm_budgets != std::vector<int>{0};
        case with_jitter: return options.jitter;
        case with_call_time: return options.call_time;
        case with_baseline: return options.baseline;
        default: return true;
    }
}

}  // namespace

Table pair_table(const PairOptions &options, double push_gbps) {
    Table table;
    const std::string sent = options.send == "rows" ? "" : " sent as " + options.send;
    table.title = fmt::format("{}, hidden {} {}{}, top-{} of {} experts, {}", options.manager, options.hidden, options.dtype, sent, options.topk,
                              options.experts, options.graph ? "graph replay" : "eager calls");
    if (options.slice_of > 0) {
        table.title += fmt::format("\nof a group of {} ranks: only the rows that ranks 0 and 1 send to each other", options.slice_of);
    }
    for (const Shown &one : columns) {
        if (shown(one.show, options, push_gbps)) {
            table.columns.push_back(one.column);
        }
    }
    if (push_gbps > 0) {
        table.complete = [push_gbps](json &row) {
            row["push_share"] = row["wire_gbps"].get<double>() / push_gbps;
            row["bytes_us"] = row["bytes_crossed"].get<double>() / push_gbps * 1e-3;
        };
        table.remarks.push_back(fmt::format("The push rate of this run is {:.0f} GB/s.", push_gbps));
    }
    return table;
}

}  // namespace perf
