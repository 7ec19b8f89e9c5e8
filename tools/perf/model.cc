#include "model.hpp"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include <fmt/format.h>

#include <moelink/moelink.h>

#include "fit.hpp"
#include "published.hpp"
#include "report.hpp"
#include "routing.hpp"
#include "runs.hpp"
#include "table.hpp"
#include "values.hpp"

namespace perf {

namespace {

using nlohmann::json;
using Fits = std::array<Fit, operations.size()>;

constexpr int64_t most_drawn = 512;  // tokens on each rank that are drawn to count rows; more tokens are as many times the rows

Traffic traffic_of(const Routing &routing, const PairOptions &options, int64_t tokens) {
    if (routing.name == "uniform") {
        return uniform_traffic(options.experts, options.topk, options.ranks, tokens);
    }
    const int64_t drawn = std::min(tokens, most_drawn);
    const Traffic traffic = count_traffic(World(options, routing, drawn));
    const double times = static_cast<double>(tokens) / static_cast<double>(drawn);
    return {traffic.crossed * times, traffic.own * times, traffic.sent * times};
}

json json_of(const Line &line) {
    const auto gbps = [](double us_a_byte) { return us_a_byte > 0 ? json(1e-3 / us_a_byte) : json(nullptr); };
    return {{"t0_us", line.t0_us},
            {"link_gbps", gbps(line.us_a_crossed_byte)},
            {"local_gbps", gbps(line.us_a_local_byte)},
            {"local_told_apart", line.splits_local},
            {"points", line.points}};
}

json json_of(const Fit &fit) {
    if (fit.most_few == 0) {
        return {{"lines", {json_of(fit.many)}}};
    }
    json few = json_of(fit.few);
    few["most_tokens"] = fit.most_few;
    return {{"lines", {few, json_of(fit.many)}}};
}

json modelled_row(const Fits &fits, const Sync &sync, const PairOptions &options, const Routing &routing, int64_t tokens) {
    const double bytes = static_cast<double>(options.hidden) * dtype_of(options.dtype).bytes;
    const Traffic traffic = traffic_of(routing, options, tokens);
    json row = {{"modelled", true},
                {"ranks", options.ranks},
                {"tokens", tokens},
                {"routing", routing.name},
                {"rows_crossed", traffic.crossed},
                {"bytes_crossed", 2 * traffic.crossed * bytes}};
    for (const Operation operation : operations) {
        const Work work = work_of(operation, traffic, tokens, {bytes, bytes}, sync.us(options.ranks));
        const Line &line = fits[static_cast<size_t>(operation)].line(tokens);
        const std::string name = name_of(operation);
        row[name + "_us"] = line.us(work);
        row[name + "_parts_us"] = {{"t0", line.t0_us},
                                   {"sync", work.sync_us},
                                   {"link", line.us_a_crossed_byte * work.crossed},
                                   {"local", line.us_a_local_byte * work.local}};
    }
    return row;
}

// In the fit, and on points that had no part in it.
json errors_json(const Fit &fit, Operation operation, const Runs &runs, double least_us) {
    const auto at = static_cast<size_t>(operation);
    json errors = {{"in_fit", errors_of(fit, runs.two_ranks[at])},
                   {"tokens_left_out", left_out_errors(runs.two_ranks[at], LeftOut::tokens, least_us)},
                   {"slice_left_out", left_out_errors(runs.two_ranks[at], LeftOut::slice, least_us)},
                   {"larger_groups", json::array()}};
    for (const auto &[ranks, sets] : runs.larger) {
        json one = errors_of(fit, sets[at]);
        one["ranks"] = ranks;
        errors["larger_groups"].push_back(std::move(one));
    }
    return errors;
}

void print_rows(const json &rows) {
    constexpr const char *format = "{:<8} {:>8} {:<14} {:>9} {:>10} {:>10} {:>10}   {:>8} {:>8} {:>9} {:>9}";
    const auto line = [&](const auto &...cells) { print_line(fmt::format(fmt::runtime(format), cells...)); };
    line("MODELLED", "tokens", "routing", "rows", "dispatch", "combine", "pair", "of it:", "t_sync", "link", "local");
    line("group", "per rank", "", "crossed", "us", "us", "us", "t0 us", "us", "us", "us");
    for (const json &row : rows) {
        const json &parts = row.at("pair_parts_us");
        line(fmt::format("EP{}", row.at("ranks").get<int>()), row.at("tokens").get<int64_t>(), row.at("routing").get<std::string>(),
             number(row.at("rows_crossed")), number(row.at("dispatch_us")), number(row.at("combine_us")), number(row.at("pair_us")),
             number(parts.at("t0")), number(parts.at("sync")), number(parts.at("link")), number(parts.at("local")));
    }
}

void print_fits(const json &fits) {
    constexpr const char *format = "{:<9} {:<18} {:>8} {:>10} {:>10} {:>7}\n";
    fmt::print("\nWhat was fitted on two ranks\n");
    fmt::print(format, "", "tokens", "t0 us", "link GB/s", "local GB/s", "points");
    for (const Operation operation : operations) {
        const json &fit = fits.at(name_of(operation));
        int64_t below = 0;
        for (const json &line : fit.at("lines")) {
            const std::string range = line.contains("most_tokens") ? fmt::format("up to {}", line.at("most_tokens").get<int64_t>())
                                      : below > 0                  ? fmt::format("more than {}", below)
                                                                   : "all";
            below = line.value("most_tokens", int64_t{0});
            const auto rate = [&](const char *key) { return line.at(key).is_null() ? "-" : number(line.at(key)); };
            fmt::print(format, name_of(operation), range, number(line.at("t0_us")), rate("link_gbps"), rate("local_gbps"),
                       line.at("points").get<int>());
        }
    }
}

void print_errors(const json &fits) {
    constexpr const char *format = "{:<9} {:<36} {:>7} {:>8} {:>9}  {}";
    const auto line = [&](const auto &...cells) { print_line(fmt::format(fmt::runtime(format), cells...)); };
    fmt::print("\nErrors: modelled over measured, less 1\n");
    line("", "points", "number", "median", "worst", "at");
    for (const Operation operation : operations) {
        const json &errors = fits.at(name_of(operation)).at("errors");
        const auto print = [&](const std::string &what, const json &error) {
            if (error.at("points") == 0) {
                line(name_of(operation), what, "none", "-", "-", "too few are left to fit without them");
                return;
            }
            const int slice = error.at("worst_slice");
            line(name_of(operation), what, error.at("points").get<int>(), percent(error.at("median"), false),
                 percent(error.at("worst"), true),
                 fmt::format("{} tokens{}", error.at("worst_tokens").get<int64_t>(), slice > 0 ? fmt::format(", slice of {}", slice) : ""));
        };
        print("in the fit", errors.at("in_fit"));
        print("predicted: a batch size left out", errors.at("tokens_left_out"));
        print("predicted: a slice left out", errors.at("slice_left_out"));
        for (const json &group : errors.at("larger_groups")) {
            print(fmt::format("predicted: measured EP{}", group.at("ranks").get<int>()), group);
        }
    }
}

std::vector<std::string> doubts(const ModelOptions &options, const Runs &runs, const Fits &fits, const Sync &sync) {
    std::vector<std::string> notes = runs.notes;
    const auto &pairs = runs.two_ranks[static_cast<size_t>(Operation::pair)];
    if (!sync.known()) {
        notes.push_back("no --link: t_sync is taken to be that of two ranks, whatever the group, and is in t0");
    }
    for (const Operation operation : operations) {
        const Fit &fit = fits[static_cast<size_t>(operation)];
        if (!fit.few.splits_local || !fit.many.splits_local) {
            notes.push_back(fmt::format(
                "{}: the points do not tell local work from bytes on the link, so larger groups get too much of it; add runs with --slice-of",
                name_of(operation)));
        }
    }
    const int64_t most = largest_batch(pairs).work.tokens;
    for (const int tokens : options.pair.tokens) {
        if (tokens > most) {
            notes.push_back(fmt::format("{} tokens are beyond the {} that were measured", tokens, most));
        }
    }
    for (const int ranks : options.groups) {
        if (options.pair.experts % ranks != 0) {
            notes.push_back(fmt::format(
                "EP{}: {} experts are not shared evenly, so ranks with {} of them receive most; --experts may count redundant ones", ranks,
                options.pair.experts, options.pair.experts / ranks + 1));
        }
    }
    for (const auto &[ranks, sets] : runs.larger) {
        notes.push_back(fmt::format("{} points measured in groups of {} ranks had no part in the fit", sets.front().size(), ranks));
    }
    return notes;
}

constexpr const char *legend = R"(
t(R) = t0 + t_sync(R) + max(out, in) / B + local / L, an operation each; nothing was measured in these groups.
rows       that a dispatch moves to or from other ranks, busiest rank: expected ones for uniform routing, drawn ones else
t_sync     each rank's flags to all others and theirs to it, twice a pair
link       bytes of those rows, there and back, at the fitted link rate, which is no higher than the push rate measured with the runs
local      rows read and written in a rank's own memory, at the fitted local rate
)";

}  // namespace

int run_model(ModelOptions options, const std::string &command) {
    check_writable(options.json);
    dtype_of(options.pair.dtype);
    const Sync sync = options.link.empty() ? Sync() : Sync(options.link);
    const Runs runs = read_runs(options.runs, sync);
    const double least_us = runs.push_gbps > 0 ? 1e-3 / runs.push_gbps : 0;  // of a byte that crosses
    Fits fits;
    json fit_document;
    for (const Operation operation : operations) {
        const auto at = static_cast<size_t>(operation);
        fits[at] = fit_points(runs.two_ranks[at], fmt::format("{} on two ranks", name_of(operation)), least_us);
        json &one = fit_document[name_of(operation)];
        one = json_of(fits[at]);
        one["errors"] = errors_json(fits[at], operation, runs, least_us);
    }
    json document = document_head(command);
    document["what"] = "model";
    document["modelled"] = true;
    document["machine"] = runs.machine;
    document["calls"] = runs.calls;
    document["push_gbps"] = runs.push_gbps > 0 ? json(runs.push_gbps) : json(nullptr);
    document["sync_measured"] = sync.known();
    document["fits"] = std::move(fit_document);
    document["measured"] = runs.rows;
    document["rows"] = json::array();
    for (const int ranks : options.groups) {
        options.pair.ranks = ranks;
        for (const Routing &routing : make_routings(options.pair)) {
            if (options.pair.experts < ranks) {
                throw std::invalid_argument(
                    fmt::format("--groups: {} ranks and only {} experts: not one a rank", ranks, options.pair.experts));
            }
            for (const int tokens : options.pair.tokens) {
                document["rows"].push_back(modelled_row(fits, sync, options.pair, routing, tokens));
            }
        }
    }
    document["shape"] = {{"hidden", options.pair.hidden},
                         {"topk", options.pair.topk},
                         {"experts", options.pair.experts},
                         {"dtype", options.pair.dtype}};
    document["notes"] = doubts(options, runs, fits, sync);
    if (!options.published.empty()) {
        document["published"] = check_published(read_published(options.published, sync), fits);
    }
    if (options.json != "-") {
        fmt::print("MoELink {}\nMODELLED, not measured: one-sided, hidden {} {}, top-{} of {} experts\n", moelink_version_string(),
                   options.pair.hidden, options.pair.dtype, options.pair.topk, options.pair.experts);
        fmt::print("from runs on two ranks of {}, {}, {}\n\n", runs.machine, runs.calls, runs.variant);
        print_rows(document["rows"]);
        print_fits(document["fits"]);
        print_errors(document["fits"]);
        if (document.contains("published")) {
            print_published(document["published"], options.published);
        }
        fmt::print("{}", legend);
        for (const auto &note : document["notes"]) {
            fmt::print("Note: {}.\n", note.get<std::string>());
        }
        std::fflush(stdout);
    }
    if (!options.json.empty()) {
        write_json(options.json, document);
    }
    return 0;
}

}  // namespace perf
