// What a person sees, and the JSON file.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "options.hpp"
#include "progress.hpp"
#include "table.hpp"

namespace perf {

class Report {
public:
    Report(const RunOptions &run, Table table, const std::string &command);

    // A message of a rank (see channel.hpp and launcher.hpp).
    void take(int rank, const nlohmann::json &message);
    void note(const std::string &text);
    // What the JSON file says beside the rows.
    void say(const std::string &key, nlohmann::json value) { document_[key] = std::move(value); }
    // The table's last line and its legend; writes the JSON file. Returns the program's exit code.
    int finish(bool every_rank_ended);

private:
    void print_head();
    void print_heads();
    void print_row(const nlohmann::json &row);
    void print_foot();

    const RunOptions &run_;
    Table table_;
    nlohmann::json document_;
    std::vector<std::string> notes_;
    bool head_printed_ = false;
    Progress progress_;
    bool wrong_ = false;
    int errors_ = 0;
};

// Writes a document to a file, or to standard output for "-". Throws std::runtime_error.
// Throws std::invalid_argument when a file cannot be written there, before anything is measured.
void check_writable(const std::string &path);
void write_json(const std::string &path, const nlohmann::json &document);
// Date and time, and what was measured with: the head of every JSON document.
nlohmann::json document_head(const std::string &command);

}  // namespace perf
