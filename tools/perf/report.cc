#include "report.hpp"

#include <cstdio>
#include <ctime>
#include <stdexcept>

#include <fmt/format.h>

#include <moelink/moelink.h>

namespace perf {

namespace {

using nlohmann::json;

// Four significant digits as far as that goes.
std::string number(double value) {
    return fmt::format("{:.{}f}", value, value < 100 ? 2 : value < 10000 ? 1 : 0);
}

std::string count(const json &row, const char *key) {
    return std::to_string(row.at(key).get<int64_t>());
}

double value(const json &row, const char *key) {
    return row.at(key).get<double>();
}

enum Show { always, on_host, with_push, on_cuda, with_budgets, with_jitter, with_call_time, with_baseline };

struct Column {
    Show show;
    const char *head;
    const char *unit;
    int width;  // negative: to the left
    std::string (*text)(const json &row);  // may throw json::out_of_range: the row has none
    const char *legend;
};
const Column columns[] = {
    {always, "tokens", "per rank", 8, [](const json &row) { return count(row, "tokens"); }, nullptr},
    {always, "routing", "", -15, [](const json &row) { return row.at("routing").get<std::string>(); }, nullptr},
    {with_budgets, "budget", "SMs", 6,
     [](const json &row) { return row.at("sm_budget") == 0 ? std::string("auto") : count(row, "sm_budget"); },
     "budget    multiprocessors that a kernel may use"},
    {always, "rows", "crossed", 8, [](const json &row) { return count(row, "rows_crossed"); },
     "rows      that a dispatch moved to or from other ranks, busiest rank"},
    {always, "dispatch", "us p50", 9, [](const json &row) { return number(value(row, "dispatch_us_p50")); },
     "dispatch  (and combine) alone, from idle"},
    {always, "", "p99", 9, [](const json &row) { return number(value(row, "dispatch_us_p99")); }, nullptr},
    {always, "combine", "us p50", 9, [](const json &row) { return number(value(row, "combine_us_p50")); }, nullptr},
    {always, "", "p99", 9, [](const json &row) { return number(value(row, "combine_us_p99")); }, nullptr},
    {always, "pair", "us p50", 9, [](const json &row) { return number(value(row, "pair_us_p50")); },
     "pair      dispatch and combine, many times in a row without expert work, each dispatch reading the combine before it"},
    {always, "", "p99", 9, [](const json &row) { return number(value(row, "pair_us_p99")); }, nullptr},
    {on_host, "pair /", "memcpy", 7,
     [](const json &row) { return fmt::format("{:.2f}", value(row, "pair_over_memcpy")); },
     "/ memcpy  the pair over a memcpy of the bytes that it must move, in turn on the same threads: median of the ratios"},
    {always, "wire", "GB/s", 7, [](const json &row) { return number(value(row, "wire_gbps")); },
     "wire      those rows, there and back, over the pair's p50"},
    {with_push, "of", "push", 6, [](const json &row) { return fmt::format("{:.0f} %", 100 * value(row, "push_share")); },
     "of push   wire over the rate of plain stores between the first two GPUs, both directions at once, measured in this run"},
    {with_push, "bytes", "us", 8, [](const json &row) { return number(value(row, "bytes_us")); },
     "bytes     those rows, there and back, at that rate"},
    {on_cuda, "SMs", "d/c", 9,
     [](const json &row) { return count(row, "dispatch_blocks") + "/" + count(row, "combine_blocks"); },
     "SMs       multiprocessors that dispatch and combine used at most: blocks of their kernels"},
    {with_jitter, "jitter", "p99/p50", 8,
     [](const json &row) { return fmt::format("{:.2f}", value(row, "stamped_us_p99") / value(row, "stamped_us_p50")); },
     "jitter    each of many pairs in a row stamped: p99 over p50, and the longest; the stamps add to the time"},
    {with_jitter, "", "max us", 9, [](const json &row) { return number(value(row, "stamped_us_max")); }, nullptr},
    {with_call_time, "call", "us d/c", 12,
     [](const json &row) { return number(value(row, "dispatch_call_us")) + "/" + number(value(row, "combine_call_us")); },
     "call      the host's time in an eager dispatch and combine, p50"},
    {with_call_time, "over", "bare d/c", 10,
     [](const json &row) {
         return fmt::format("{:.2f}/{:.2f}", value(row, "dispatch_call_us") / value(row, "dispatch_bare_us"),
                            value(row, "combine_call_us") / value(row, "combine_bare_us"));
     },
     "over bare that time over a bare cudaLaunchKernelExC with as many parameter bytes, in between"},
    {with_baseline, "AG+RS", "us p50", 9, [](const json &row) { return number(value(row, "baseline_pair_us_p50")); },
     "AG+RS     the pair by all-gather and reduce-scatter of the same tokens, in the same processes"},
    {with_baseline, "pair /", "AG+RS", 7,
     [](const json &row) { return fmt::format("{:.2f}", value(row, "pair_us_p50") / value(row, "baseline_pair_us_p50")); },
     nullptr},
    {always, "space", "MiB", 9, [](const json &row) { return fmt::format("{:.1f}", value(row, "workspace_mib")); },
     "space     one rank's workspace"},
    {always, "skew of", "rows", 7, [](const json &row) { return fmt::format("{:.2f}", value(row, "skew")); },
     "skew      received rows of a rank, most over mean"},
    {always, "checked", "", 7, [](const json &row) { return row.at("checked").get<std::string>(); }, nullptr},
};

std::string cell(const Column &column, const std::string &text) {
    return column.width < 0 ? fmt::format("{:<{}}", text, -column.width) : fmt::format("{:>{}}", text, column.width);
}

void print_line(std::string line) {
    line.resize(line.find_last_not_of(' ') + 1);
    fmt::print("{}\n", line);
}

bool shown(const Column &column, const PairOptions &options, double push_gbps) {
    const bool cuda = options.device == "cuda";
    switch (column.show) {
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

nlohmann::json document_head(const std::string &command) {
    char date[32] = "";
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return {{"program", "moelink-perf"}, {"command", command}, {"date", date}, {"version", moelink_version_string()}};
}

void check_writable(const std::string &path) {
    if (path.empty() || path == "-") {
        return;
    }
    std::FILE *file = std::fopen(path.c_str(), "a");
    if (file == nullptr) {
        throw std::invalid_argument(fmt::format("--json {}: cannot be written", path));
    }
    std::fclose(file);
}

void write_json(const std::string &path, const nlohmann::json &document) {
    const std::string text = document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    std::FILE *file = path == "-" ? stdout : std::fopen(path.c_str(), "w");
    if (file == nullptr) {
        throw std::runtime_error(fmt::format("{}: cannot be written", path));
    }
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed = (file == stdout ? std::fflush(file) : std::fclose(file)) == 0;
    if (!written || !closed) {
        throw std::runtime_error(fmt::format("{}: could not be written in full", path));
    }
}

Report::Report(const PairOptions &options, std::string command)
    : options_(options),
      document_(document_head(command)) {
    document_["rows"] = nlohmann::json::array();
}

void Report::note(const std::string &text) {
    notes_.push_back(text);
}

void Report::set_push_gbps(double gbps) {
    push_gbps_ = gbps;
    document_["push_gbps"] = gbps;
}

void Report::take(int rank, const nlohmann::json &message) {
    if (message.contains("at")) {
        if (rank == 0) {
            progress_.show(message["at"]);
        }
        return;
    }
    progress_.clear();
    if (message.contains("row")) {
        json row = message["row"];
        wrong_ = wrong_ || row["checked"] == "WRONG";
        if (push_gbps_ > 0) {
            row["push_share"] = row["wire_gbps"].get<double>() / push_gbps_;
            row["bytes_us"] = row["bytes_crossed"].get<double>() / push_gbps_ * 1e-3;
        }
        document_["rows"].push_back(row);
        print_row(row);
    } else if (message.contains("setting")) {
        document_.update(message["setting"]);
        print_head();
    } else if (message.contains("note")) {
        note(message["note"]);
    } else if (message.contains("wrong")) {
        wrong_ = true;
        fmt::print(stderr, "rank {}: {}\n", rank, message["wrong"].get<std::string>());
    } else if (message.contains("error")) {
        const bool stopped = message.contains("stopped") && message["stopped"].get<bool>();
        document_["errors"].push_back({{"rank", rank}, {"text", message["error"]}});
        errors_ += 1;
        fmt::print(stderr, "rank {}: {}{}\n", rank, stopped ? "" : "error: ", message["error"].get<std::string>());
    } else if (message.contains("text")) {
        fmt::print(stderr, "rank {}: {}\n", rank, message["text"].get<std::string>());
    }
}

void Report::print_head() {
    if (options_.json == "-" || head_printed_) {
        return;
    }
    head_printed_ = true;
    const auto &devices = document_["devices"];
    std::string names = devices.at(0);
    for (size_t i = 1; i < devices.size() && document_["device"] == "cuda"; ++i) {
        names += fmt::format(", {}", devices[i].get<std::string>());
    }
    fmt::print("MoELink {}\n{} ranks as {} on {}: {}\n", moelink_version_string(), options_.ranks,
               options_.threads ? "threads" : "processes", document_["device"].get<std::string>(), names);
    const std::string sent = options_.send == "rows" ? "" : " sent as " + options_.send;
    fmt::print("{}, hidden {} {}{}, top-{} of {} experts, {}\n\n", options_.manager, options_.hidden, options_.dtype, sent,
               options_.topk, options_.experts, options_.graph ? "graph replay" : "eager calls");
    std::string heads;
    std::string units;
    for (const Column &column : columns) {
        if (!shown(column, options_, push_gbps_)) {
            continue;
        }
        heads += cell(column, column.head) + ' ';
        units += cell(column, column.unit) + ' ';
    }
    print_line(heads);
    print_line(units);
    std::fflush(stdout);
}

void Report::print_row(const nlohmann::json &row) {
    if (options_.json == "-") {
        return;
    }
    std::string line;
    for (const Column &column : columns) {
        if (!shown(column, options_, push_gbps_)) {
            continue;
        }
        std::string text = "-";
        try {
            text = column.text(row);
        } catch (const json::out_of_range &) {
            // Not measured for this row.
        }
        line += cell(column, text) + ' ';
    }
    print_line(line);
    std::fflush(stdout);
}

int Report::finish(bool every_rank_ended) {
    progress_.clear();
    document_["settings"] = options_;
    document_["notes"] = notes_;
    const bool good = every_rank_ended && !wrong_ && errors_ == 0;
    document_["ok"] = good;
    const auto &rows = document_["rows"];
    if (options_.json != "-" && !rows.empty()) {
        fmt::print("\nEvery time is the slowest rank's.\n");
        for (const Column &column : columns) {
            if (column.legend != nullptr && shown(column, options_, push_gbps_)) {
                fmt::print("{}\n", column.legend);
            }
        }
        if (push_gbps_ > 0) {
            fmt::print("The push rate of this run is {:.0f} GB/s.\n", push_gbps_);
        }
        for (const std::string &text : notes_) {
            fmt::print("Note: {}.\n", text);
        }
        uint64_t compared = 0;
        for (const auto &row : rows) {
            compared += row["values_compared"].get<uint64_t>();
        }
        if (good && options_.check) {
            fmt::print("All {} values compared were right.\n", compared);
        }
        std::fflush(stdout);
    }
    if (!rows.empty()) {
        compare(peers_, document_, options_.json != "-");
    }
    if (!options_.json.empty()) {
        write_json(options_.json, document_);
    }
    if (!every_rank_ended || errors_ > 0) {
        fmt::print(stderr, "moelink-perf: not every rank came to its end; the errors above say why\n");
        return 1;
    }
    if (wrong_) {
        fmt::print(stderr, "moelink-perf: WRONG RESULTS; see above\n");
        return 1;
    }
    return 0;
}

}  // namespace perf
