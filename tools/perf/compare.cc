#include "compare.hpp"

#include <algorithm>
#include <fstream>
#include <stdexcept>

#include <fmt/format.h>

#include "send.hpp"

namespace perf {

namespace {

using nlohmann::json;

// The type that files of figures name: what a dispatch sends.
std::string sent_type(const std::string &send, const std::string &dtype) {
    return send_of(send).fp8 ? "fp8" : dtype;
}

// "" when it is the options' shape, else what differs.
std::string difference(const json &shape, const PairOptions &options) {
    const auto differs = [&](const char *name, int64_t ours) {
        if (!shape.contains(name) || shape.at(name).get<int64_t>() == ours) {
            return std::string();
        }
        return fmt::format("{} {}, here {}; ", name, shape.at(name).get<int64_t>(), ours);
    };
    std::string text = differs("hidden", options.hidden) + differs("top_k", options.topk) + differs("experts", options.experts) +
                       differs("ranks", options.ranks);
    return text.empty() ? text : text.substr(0, text.size() - 2);
}

void read_table(const json &document, const PairOptions &options, Peers &peers) {
    const json &meta = document.at("meta");
    const std::string wrong = difference(meta.at("shape"), options);
    if (!wrong.empty()) {
        throw std::invalid_argument(fmt::format("it is of another shape: {}", wrong));
    }
    peers.machine = fmt::format("{}, {}", meta.at("machine").get<std::string>(), meta.value("date", "no date"));
    peers.routing = meta.at("shape").value("routing", "");
    for (const json &row : document.at("rows")) {
        if (row.at("dtype") == sent_type(options.send, options.dtype) && row.contains("pair_us")) {
            peers.figures.push_back({row.at("lib"), row.at("tokens"), row.at("pair_us"), row.value("note", "")});
        }
    }
}

void read_own(const json &document, const PairOptions &options, Peers &peers) {
    if (!document.contains("settings")) {
        throw std::invalid_argument("it is of another moelink-perf command than pair");
    }
    const json &settings = document.at("settings");
    if (settings.value("slice_of", 0) > 0) {
        throw std::invalid_argument(fmt::format("it is of a slice of {} ranks, not of whole pairs", settings.at("slice_of").get<int>()));
    }
    const json shape = {{"hidden", settings.at("hidden")},
                        {"top_k", settings.at("topk")},
                        {"experts", settings.at("experts")},
                        {"ranks", settings.at("ranks")}};
    const std::string wrong = difference(shape, options);
    const std::string type = sent_type(settings.value("send", "rows"), settings.at("dtype"));
    if (!wrong.empty() || type != sent_type(options.send, options.dtype)) {
        throw std::invalid_argument(fmt::format("it is of another shape: {}", wrong.empty() ? type : wrong));
    }
    const json &devices = document.at("devices");
    peers.machine = fmt::format("{} x {}, {}", devices.size(), devices.at(0).get<std::string>(), document.value("date", "no date"));
    for (const json &row : document.at("rows")) {
        const auto budget = row.value("sm_budget", int64_t{0});
        std::string lib = fmt::format("MoELink {} {}, {}", document.value("version", ""),
                                      settings.at("manager").get<std::string>(), row.at("routing").get<std::string>());
        if (const std::string send = settings.value("send", "rows"); send != "rows") {
            lib += ", " + send;
        }
        if (budget > 0) {
            lib += fmt::format(", {} SMs", budget);
        }
        peers.figures.push_back({lib, row.at("tokens"), row.at("pair_us_p50"), ""});
    }
}

}  // namespace

Peers read_peers(const std::string &file, const PairOptions &options) {
    Peers peers;
    peers.file = file;
    try {
        std::ifstream stream(file);
        const json document = json::parse(stream);
        if (document.value("program", "") == "moelink-perf") {
            read_own(document, options, peers);
        } else {
            read_table(document, options, peers);
        }
        if (peers.figures.empty()) {
            throw std::invalid_argument(fmt::format("it has no pairs of {} rows", sent_type(options.send, options.dtype)));
        }
    } catch (const std::exception &error) {
        throw std::invalid_argument(fmt::format("--compare {}: {}", file, error.what()));
    }
    return peers;
}

void compare(const std::vector<Peers> &all, json &document, bool show) {
    constexpr int lib_width = 62;
    for (const Peers &peers : all) {
        std::vector<const json *> ours;  // one a column
        for (const json &row : document.at("rows")) {
            const auto is_there = [&](const Peers::Figure &figure) { return figure.tokens == row.at("tokens"); };
            const bool same_routing = peers.routing.empty() || peers.routing == row.at("routing");
            if (same_routing && std::any_of(peers.figures.begin(), peers.figures.end(), is_there)) {
                ours.push_back(&row);
            }
        }
        if (show) {
            fmt::print("\nOur pair's p50 over that of {}\nTHEIRS WERE MEASURED ELSEWHERE: {}\n"
                       "Ours: {} x {}, {}. Below 1: ours takes less time.\n",
                       peers.file, peers.machine, document.at("devices").size(), document.at("devices").at(0).get<std::string>(),
                       document.at("rows").at(0).at("graph").get<bool>() ? "graph replay" : "eager calls");
            std::string line = fmt::format("{:<{}}", "tokens", lib_width);
            for (const json *row : ours) {
                line += fmt::format("{:>7}", row->at("tokens").get<int64_t>());
            }
            fmt::print("{}{}\n", line, ours.empty() ? "   (none of these rows is in the file)" : "");
        }
        std::vector<std::string> libs;
        for (const Peers::Figure &figure : peers.figures) {
            if (std::find(libs.begin(), libs.end(), figure.lib) == libs.end()) {
                libs.push_back(figure.lib);
            }
        }
        for (const std::string &lib : libs) {
            std::string line = fmt::format("{:<{}}", lib, lib_width);
            bool some = false;
            std::string note;
            for (const json *row : ours) {
                const auto figure = std::find_if(peers.figures.begin(), peers.figures.end(), [&](const Peers::Figure &one) {
                    return one.lib == lib && one.tokens == row->at("tokens");
                });
                if (figure == peers.figures.end()) {
                    line += fmt::format("{:>7}", "-");
                    continue;
                }
                const double ratio = row->at("pair_us_p50").get<double>() / figure->pair_us;
                line += fmt::format("{:>7.2f}", ratio);
                some = true;
                note = figure->note;
                document["compare"].push_back({{"file", peers.file},
                                               {"measured_elsewhere", peers.machine},
                                               {"lib", lib},
                                               {"tokens", figure->tokens},
                                               {"routing", row->at("routing")},
                                               {"sm_budget", row->at("sm_budget")},
                                               {"their_pair_us", figure->pair_us},
                                               {"ratio", ratio}});
            }
            if (show && some) {
                fmt::print("{}{}\n", line, note.empty() ? "" : "  (" + note + ")");
            }
        }
    }
}

}  // namespace perf
