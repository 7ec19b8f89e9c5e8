// What a person sees, and the JSON file.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "compare.hpp"
#include "options.hpp"
#include "progress.hpp"

namespace perf {

class Report {
public:
    Report(const PairOptions &options, std::string command);

    // A message of a rank (see channel.hpp and launcher.hpp).
    void take(int rank, const nlohmann::json &message);
    void note(const std::string &text);
    // The rate at which GPUs push to each other, measured in this run [GB/s]; before the first message.
    void set_push_gbps(double gbps);
    // Figures to set the rows beside.
    void set_peers(std::vector<Peers> peers) { peers_ = std::move(peers); }
    // The table's last line and its legend; writes the JSON file. Returns the program's exit code.
    int finish(bool every_rank_ended);

private:
    void print_head();
    void print_row(const nlohmann::json &row);

    const PairOptions &options_;
    nlohmann::json document_;
    std::vector<std::string> notes_;
    std::vector<Peers> peers_;
    double push_gbps_ = 0;
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
