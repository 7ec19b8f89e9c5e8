#include "report.hpp"

#include <cstdio>
#include <ctime>
#include <stdexcept>

#include <fmt/format.h>

#include <moelink/moelink.h>

namespace perf {

namespace {

using nlohmann::json;

std::string cell(const Column &column, const std::string &text) {
    return column.width < 0 ? fmt::format("{:<{}}", text, -column.width) : fmt::format("{:>{}}", text, column.width);
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

Report::Report(const RunOptions &run, Table table, const std::string &command)
    : run_(run),
      table_(std::move(table)),
      document_(document_head(command)) {
    document_["rows"] = nlohmann::json::array();
    document_["wrong"] = nlohmann::json::array();
}

void Report::note(const std::string &text) {
    notes_.push_back(text);
}

void Report::take(int rank, const nlohmann::json &message) {
    if (message.contains("at")) {
        if (rank == 0 && !table_.totals) {
            progress_.show(message["at"]);
        }
        return;
    }
    if (message.contains("progress")) {
        const json &totals = document_["totals"] = message["progress"];
        wrong_ = wrong_ || totals["wrong"] != 0;
        progress_.show(table_.totals(totals));
        return;
    }
    progress_.clear();
    if (message.contains("row")) {
        json row = message["row"];
        wrong_ = wrong_ || row["checked"] == "WRONG";
        if (table_.complete) {
            table_.complete(row);
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
        document_["wrong"].push_back({{"rank", rank}, {"what", message["wrong"]}});
        fmt::print(stderr, "rank {}: WRONG: {}\n", rank, message["wrong"].get<std::string>());
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
    if (run_.json == "-" || head_printed_) {
        return;
    }
    head_printed_ = true;
    const auto &devices = document_["devices"];
    std::string names = devices.at(0);
    for (size_t i = 1; i < devices.size() && document_["device"] == "cuda"; ++i) {
        names += fmt::format(", {}", devices[i].get<std::string>());
    }
    fmt::print("MoELink {}\n{} ranks as {} on {}: {}\n", moelink_version_string(), run_.ranks,
               run_.threads ? "threads" : "processes", document_["device"].get<std::string>(), names);
    fmt::print("{}\n\n", table_.title);
    if (!table_.columns.empty()) {
        print_heads();
    }
    std::fflush(stdout);
}

void Report::print_heads() {
    std::string heads;
    std::string units;
    for (const Column &column : table_.columns) {
        heads += cell(column, column.head) + ' ';
        units += cell(column, column.unit) + ' ';
    }
    print_line(heads);
    print_line(units);
}

void Report::print_row(const nlohmann::json &row) {
    if (run_.json == "-") {
        return;
    }
    std::string line;
    for (const Column &column : table_.columns) {
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

void Report::print_foot() {
    fmt::print("\nEvery time is the slowest rank's.\n");
    for (const Column &column : table_.columns) {
        if (column.legend != nullptr) {
            fmt::print("{}\n", column.legend);
        }
    }
    for (const std::string &text : table_.remarks) {
        fmt::print("{}\n", text);
    }
    for (const std::string &text : notes_) {
        fmt::print("Note: {}.\n", text);
    }
    uint64_t compared = 0;
    bool all = true;
    for (const auto &row : document_["rows"]) {
        compared += row["values_compared"].get<uint64_t>();
        all = all && row["checked"] == "yes";
    }
    if (all && document_["ok"].get<bool>()) {
        fmt::print("All {} values compared were right.\n", compared);
    }
}

int Report::finish(bool every_rank_ended) {
    progress_.clear();
    document_["notes"] = notes_;
    document_["ok"] = every_rank_ended && !wrong_ && errors_ == 0;
    const auto &rows = document_["rows"];
    if (run_.json != "-") {
        if (!rows.empty()) {
            print_foot();
        }
        if (document_.contains("totals")) {
            fmt::print("{}\n", table_.totals(document_["totals"]));
        }
        std::fflush(stdout);
    }
    if (!rows.empty() && table_.finish) {
        table_.finish(document_, run_.json != "-");
    }
    if (!run_.json.empty()) {
        write_json(run_.json, document_);
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
