#include "runs.hpp"

#include <algorithm>
#include <fstream>
#include <stdexcept>

#include <fmt/format.h>

#include "values.hpp"

namespace perf {

namespace {

using nlohmann::json;

// What must be the same in all files: how and on what was measured.
struct Setting {
    std::string machine;
    std::string calls;
    std::string variant;

    static Setting of(const json &document) {
        const json &settings = document.at("settings");
        const std::string device = document.at("devices").at(0);
        Setting setting;
        setting.machine = device.substr(0, device.find(" #"));
        setting.calls = document.at("rows").at(0).at("graph").get<bool>() ? "graph replay" : "eager calls";
        setting.variant = settings.at("weighted").get<bool>() ? "weighted combine" : "plain combine";
        setting.variant += settings.at("copy_out").get<bool>() ? ", received rows copied out" : ", received rows in the view";
        return setting;
    }
};

void must_agree(const std::string &what, const std::string &first, const std::string &here) {
    if (first != here) {
        throw std::invalid_argument(fmt::format("{} here, {} in the first file: one fit is of one {}", here, first, what));
    }
}

void add_row(const json &row, const json &settings, const Sync &sync, Runs &runs) {
    const int ranks = settings.at("ranks");
    const int slice_of = settings.value("slice_of", 0);
    const int64_t tokens = row.at("tokens");
    const double bytes = settings.at("hidden").get<double>() * dtype_of(settings.at("dtype")).bytes;
    if (!row.contains("rows_sent")) {
        throw std::invalid_argument("its rows have no rows_sent: an older moelink-perf wrote it");
    }
    const Traffic traffic{row.at("rows_crossed"), row.at("rows_own"), row.at("rows_sent")};
    PointSets &points = ranks == 2 ? runs.two_ranks : runs.larger[ranks];
    json kept = {{"ranks", ranks},
                 {"slice_of", slice_of},
                 {"tokens", tokens},
                 {"routing", row.at("routing")},
                 {"hidden", settings.at("hidden")},
                 {"topk", settings.at("topk")},
                 {"experts", settings.at("experts")},
                 {"dtype", settings.at("dtype")}};
    for (const Operation operation : operations) {
        const double us = row.at(fmt::format("{}_us_p50", name_of(operation)));
        points[static_cast<size_t>(operation)].push_back(
            {work_of(operation, traffic, tokens, {bytes, bytes}, sync.us(ranks)), us, slice_of});
        kept[fmt::format("{}_us", name_of(operation))] = us;
    }
    runs.rows.push_back(std::move(kept));
}

void read_run(const std::string &file, const Sync &sync, Runs &runs) {
    std::ifstream stream(file);
    const json document = json::parse(stream);
    if (document.value("program", "") != "moelink-perf" || !document.contains("settings") || !document.contains("devices")) {
        throw std::invalid_argument("it is not what moelink-perf pair --json writes");
    }
    const json &settings = document.at("settings");
    if (settings.at("manager") != "one-sided") {
        throw std::invalid_argument(
            fmt::format("it is of the manager {}; the model is of one-sided", settings.at("manager").get<std::string>()));
    }
    if (!document.at("ok").get<bool>()) {
        throw std::invalid_argument("the run failed, so its times mean nothing");
    }
    if (settings.at("ranks").get<int>() < 2) {
        throw std::invalid_argument("it is of one rank: nothing crosses");
    }
    const Setting setting = Setting::of(document);
    if (runs.machine.empty()) {
        runs.machine = setting.machine;
        runs.calls = setting.calls;
        runs.variant = setting.variant;
    }
    must_agree("machine", runs.machine, setting.machine);
    must_agree("kind of calls", runs.calls, setting.calls);
    must_agree("way to call", runs.variant, setting.variant);
    runs.push_gbps = std::max(runs.push_gbps, document.value("push_gbps", 0.0));
    int limited = 0;
    for (const json &row : document.at("rows")) {
        if (row.at("sm_budget") != 0) {
            ++limited;
        } else {
            add_row(row, settings, sync, runs);
        }
    }
    if (limited > 0) {
        runs.notes.push_back(fmt::format("{}: {} rows with a budget of multiprocessors were not used", file, limited));
    }
}

}  // namespace

Runs read_runs(const std::vector<std::string> &files, const Sync &sync) {
    Runs runs;
    for (const std::string &file : files) {
        try {
            read_run(file, sync, runs);
        } catch (const std::exception &error) {
            throw std::invalid_argument(fmt::format("{}: {}", file, error.what()));
        }
    }
    return runs;
}

}  // namespace perf
