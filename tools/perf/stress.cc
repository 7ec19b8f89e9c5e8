#include "stress.hpp"

#include <fmt/format.h>

#include <moelink/moelink.h>

#include "launcher.hpp"
#include "progress.hpp"
#include "rank.hpp"
#include "report.hpp"

namespace perf {

namespace {

class StressReport {
public:
    StressReport(const StressOptions &options, const std::string &command) : options_(options), document_(document_head(command)) {
        document_["settings"] = options;
        document_["wrong"] = nlohmann::json::array();
        document_["notes"] = nlohmann::json::array();
    }

    // A message of a rank (see channel.hpp and launcher.hpp).
    void take(int rank, const nlohmann::json &message) {
        if (message.contains("progress")) {
            document_["totals"] = message["progress"];
            progress_.show(totals());
        } else if (message.contains("setting")) {
            document_["devices"] = message["setting"]["devices"];
            if (options_.json != "-") {
                fmt::print("{} ranks on {}, seed {}\n", options_.ranks, message["setting"]["devices"][0].get<std::string>(), options_.seed);
                std::fflush(stdout);
            }
        } else if (message.contains("note")) {
            document_["notes"].push_back(message["note"]);
        } else if (message.contains("wrong")) {
            document_["wrong"].push_back({{"rank", rank}, {"what", message["wrong"]}});
            say(rank, "WRONG", message["wrong"]);
        } else if (message.contains("error")) {
            failed_ = true;
            if (!message.value("stopped", false)) {
                say(rank, "error", message["error"]);
            }
        } else if (message.contains("text")) {
            progress_.clear();
            fmt::print(stderr, "{}\n", message["text"].get<std::string>());
        }
    }

    int finish(bool every_rank_ended) {
        progress_.clear();
        const bool ended = every_rank_ended && !failed_ && document_.contains("totals");
        const bool good = ended && document_["totals"]["wrong"] == 0;
        document_["ok"] = good;
        if (options_.json != "-" && document_.contains("totals")) {
            fmt::print("{}\n", totals());
        }
        if (!options_.json.empty()) {
            write_json(options_.json, document_);
        }
        if (!good) {
            fmt::print(stderr, "moelink-perf: {}\n", ended ? "WRONG RESULTS; see above" : "not every rank came to its end; the errors above say why");
        }
        return good ? 0 : 1;
    }

private:
    std::string totals() const {
        const nlohmann::json &all = document_["totals"];
        const double seconds = all["seconds"];
        const auto pairs = all["pairs"].get<int64_t>();
        return fmt::format("{} pairs with {} managers in {:.1f} s ({:.0f} a second): {} rows, {:.3f} GB compared, {} wrong values", pairs,
                           all["chapters"].get<int64_t>(), seconds, static_cast<double>(pairs) / seconds, all["rows"].get<uint64_t>(),
                           static_cast<double>(all["bytes"].get<uint64_t>()) * 1e-9, all["wrong"].get<uint64_t>());
    }

    void say(int rank, const char *what, const nlohmann::json &text) {
        progress_.clear();
        fmt::print(stderr, "rank {}: {}: {}\n", rank, what, text.get<std::string>());
    }

    const StressOptions &options_;
    nlohmann::json document_;
    Progress progress_;
    bool failed_ = false;
};

}  // namespace

int run_stress(StressOptions options, const std::string &command) {
    resolve_device(options.device, options.ranks);
    provider_of(options.provider);
    check_writable(options.json);
    StressReport report(options, command);
    const auto listener = [&](int rank, const nlohmann::json &message) { report.take(rank, message); };
    const Task task = {"stress", options.device, options.ranks, options.timeout, options};
    return report.finish(options.threads ? run_threads(task, listener) : run_processes(task, listener));
}

}  // namespace perf
