#include "eplb.hpp"

#include <stdexcept>

#include <fmt/format.h>

#include "eplb_traffic.hpp"
#include "launcher.hpp"
#include "rank.hpp"
#include "report.hpp"
#include "session.hpp"
#include "table.hpp"
#include "values.hpp"

namespace perf {

namespace {

using nlohmann::json;

std::string balance(const json &row, const char *key) {
    return fmt::format("{:.3f}", value(row, key));
}

const std::vector<Column> columns = {
    {"traffic", "from, to", -20,
     [](const json &row) { return row.at("from").get<std::string>() + ", " + row.at("to").get<std::string>(); }, nullptr},
    {"balance", "before", 7, [](const json &row) { return balance(row, "balance_before"); },
     "balance   mean over largest rank load, mean over layers: the old map and the new one under the new load; 1 is even"},
    {"", "after", 6, [](const json &row) { return balance(row, "balance_after"); }, nullptr},
    {"experts", "crossed", 8, [](const json &row) { return count(row, "copies"); },
     "experts   copies that went to another rank, and to another slot of their rank"},
    {"", "local", 6, [](const json &row) { return count(row, "local_copies"); }, nullptr},
    {"MiB", "crossed", 8, [](const json &row) { return number(value(row, "bytes") / (1 << 20)); }, nullptr},
    {"plan", "ms", 7, [](const json &row) { return number(value(row, "plan_ms")); }, nullptr},
    {"move", "ms", 8, [](const json &row) { return number(value(row, "move_ms")); },
     "move      the whole rearrangement with all its agreements, median; GB/s: what crossed, all ranks together, over that time"},
    {"", "GB/s", 7, [](const json &row) { return number(value(row, "move_gbps")); }, nullptr},
    {"copy", "GB/s", 7, [](const json &row) { return number(value(row, "copy_gbps")); },
     "copy      the same experts pulled from the same ranks by plain copies, all ranks at once"},
    {"copied", "by", 8, [](const json &row) { return row.at("copied_by").get<std::string>(); },
     "by        who made those copies, and the reads of mapped memory in the move: a processor, copy engines, or so many multiprocessors"},
    {"move /", "copy", 6, [](const json &row) { return fmt::format("{:.2f}", value(row, "move_gbps") / value(row, "copy_gbps")); },
     "/ copy    share of that rate that the move reached"},
    {"staging", "MiB", 8, [](const json &row) { return number(value(row, "staging_bytes") / (1 << 20)); },
     "staging   one rank's memory for experts on their way"},
    {"pair", "before", 9, [](const json &row) { return number(value(row, "pair_us_before")); },
     "pair      [us] p50 of dispatch and combine of the new traffic's first layer, with the old map and with the new one"},
    {"us", "after", 9, [](const json &row) { return number(value(row, "pair_us_after")); }, nullptr},
    {"skew of", "tokens", 9,
     [](const json &row) { return fmt::format("{:.2f}/{:.2f}", value(row, "skew_before"), value(row, "skew_after")); },
     "skew      tokens for the experts of a rank in those dispatches, most over mean: before/after"},
    {"checked", "", 7, [](const json &row) { return row.at("checked").get<std::string>(); }, nullptr},
};

// What can be said before any rank is started.
void check_options(const EplbOptions &options) {
    manager_of(options.manager);
    policy_of(options.policy);
    dtype_of(options.dtype);
    check_writable(options.json);
    int32_t kind = 0;
    must(moelink_eplb_comm_kind_of(options.back_end.c_str(), &kind), "--back-end");
    char why[512] = "";
    const int32_t device = options.device == "cuda" ? MOELINK_DEVICE_CUDA : MOELINK_DEVICE_HOST;
    if (kind != MOELINK_EPLB_COMM_AUTO && moelink_eplb_comm_kind_describe(kind, device, why, sizeof why) != MOELINK_OK) {
        throw std::invalid_argument(fmt::format("--back-end {}: {}", options.back_end, why));
    }
    if (kind == MOELINK_EPLB_COMM_NCCL) {
        throw std::invalid_argument("--back-end nccl needs a program with a communicator of its own; nccl-own makes one");
    }
    if (options.sms > 0 && device == MOELINK_DEVICE_HOST) {
        throw std::invalid_argument(fmt::format("--sms is {}, and ranks on the host have no multiprocessors", options.sms));
    }
    if (options.expert_bytes < static_cast<uint64_t>(options.tensors)) {
        throw std::invalid_argument(fmt::format("--tensors is {}, and an expert has {} bytes", options.tensors, options.expert_bytes));
    }
    if (options.slots % options.ranks != 0 || options.slots < options.experts) {
        throw std::invalid_argument(fmt::format("--slots is {}; it must be a multiple of the {} ranks and at least the {} experts",
                                                options.slots, options.ranks, options.experts));
    }
}

}  // namespace

int run_eplb(EplbOptions options, const std::string &command) {
    resolve(options);
    options.check = options.check || !options.corrupt.empty();
    read_topics(options);
    check_options(options);
    Table table;
    table.title = fmt::format("{} layer{} of {} experts of {} bytes in {} tensors, in {} slots; {}, {} staged experts; {} tokens, top-{}, "
                              "hidden {} {}",
                              options.layers, options.layers == 1 ? "" : "s", options.experts, options.expert_bytes, options.tensors,
                              options.slots, options.back_end, options.staging, options.tokens, options.topk, options.hidden,
                              options.dtype);
    table.columns = columns;
    Report report(options, std::move(table), command);
    report.say("what", "eplb");
    report.say("settings", options);
    const auto listener = [&](int rank, const nlohmann::json &message) { report.take(rank, message); };
    return report.finish(run_ranks({"eplb", options, options}, listener));
}

}  // namespace perf
