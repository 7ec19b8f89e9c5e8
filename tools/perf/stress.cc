#include "stress.hpp"

#include <fmt/format.h>

#include "launcher.hpp"
#include "rank.hpp"
#include "report.hpp"
#include "session.hpp"

namespace perf {

namespace {

std::string describe(const nlohmann::json &totals) {
    const double seconds = totals["seconds"];
    const auto pairs = totals["pairs"].get<int64_t>();
    return fmt::format("{} pairs with {} managers in {:.1f} s ({:.0f} a second): {} rows, {:.3f} GB compared, {} wrong values", pairs,
                       totals["chapters"].get<int64_t>(), seconds, static_cast<double>(pairs) / seconds, totals["rows"].get<uint64_t>(),
                       static_cast<double>(totals["bytes"].get<uint64_t>()) * 1e-9, totals["wrong"].get<uint64_t>());
}

}  // namespace

int run_stress(StressOptions options, const std::string &command) {
    resolve(options);
    provider_of(options.provider);
    check_writable(options.json);
    Table table;
    table.title = fmt::format("random pairs of up to {} tokens a rank, delays up to {} us, seed {}", options.tokens, options.delay_us, options.seed);
    table.totals = describe;
    Report report(options, std::move(table), command);
    report.say("settings", options);
    const auto listener = [&](int rank, const nlohmann::json &message) { report.take(rank, message); };
    return report.finish(run_ranks({"stress", options, options}, listener));
}

}  // namespace perf
