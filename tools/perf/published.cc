#include "published.hpp"

#include <algorithm>
#include <fstream>
#include <stdexcept>

#include <fmt/format.h>

#include "table.hpp"

namespace perf {

namespace {

using nlohmann::json;

Traffic traffic_of(const json &group, int ranks, int64_t tokens) {
    const std::string routing = group.at("routing");
    if (routing == "spread") {
        return spread_traffic(group.at("topk"), ranks, tokens);
    }
    if (routing != "uniform") {
        throw std::invalid_argument(fmt::format("unknown routing \"{}\"; it is uniform or spread", routing));
    }
    return uniform_traffic(group.at("experts"), group.at("topk"), ranks, tokens);
}

PublishedGroup read_group(const json &group, const Sync &sync) {
    PublishedGroup result;
    result.ranks = group.at("ranks");
    result.source = group.at("source");
    result.boundary = group.at("boundary");
    if (result.ranks < 2) {
        throw std::invalid_argument(fmt::format("a group of {} ranks", result.ranks));
    }
    const RowBytes row{group.at("dispatch_row_bytes"), group.at("combine_row_bytes")};
    for (const json &point : group.at("points")) {
        const int64_t tokens = point.at("tokens");
        const Traffic traffic = traffic_of(group, result.ranks, tokens);
        for (const Operation operation : operations) {
            const std::string key = std::string(name_of(operation)) + "_us";
            if (point.contains(key)) {
                result.points[static_cast<size_t>(operation)].push_back(
                    {work_of(operation, traffic, tokens, row, sync.us(result.ranks)), point.at(key), 0});
            }
        }
    }
    return result;
}

// Our modelled times over theirs.
json ratios(const std::vector<Point> &points, const Fit &ours) {
    std::vector<double> found;
    for (const Point &point : points) {
        found.push_back(ours.us(point.work) / point.us);
    }
    std::sort(found.begin(), found.end());
    return {{"least", found.front()}, {"median", found[(found.size() - 1) / 2]}, {"most", found.back()}};
}

json check_group(const PublishedGroup &group, Operation operation, const std::vector<Point> &base, bool is_base, const Fit &ours) {
    const auto &points = group.points[static_cast<size_t>(operation)];
    json row = {{"ranks", group.ranks}, {"operation", name_of(operation)}, {"points", points.size()},
                {"source", group.source}, {"boundary", group.boundary}};
    row["modelled_ours_over_theirs"] = ratios(points, ours);
    try {
        const Fit fit = fit_points(base, "published points");
        row["used_in_fit"] = is_base;
        row["error"] = errors_of(fit, points);
        const Point &most = largest_batch(points);
        row["error"]["most_tokens"] = most.work.tokens;
        row["error"]["at_most_tokens"] = fit.us(most.work) / most.us - 1;
    } catch (const std::invalid_argument &) {
        // Too few points of the first group: there is no fit to have an error.
    }
    return row;
}

}  // namespace

std::vector<PublishedSeries> read_published(const std::string &file, const Sync &sync) {
    std::vector<PublishedSeries> all;
    try {
        std::ifstream stream(file);
        const json document = json::parse(stream);
        if (document.value("what", "") != "published-ep") {
            throw std::invalid_argument("it is no file of published times: its \"what\" is not \"published-ep\"");
        }
        for (const json &series : document.at("series")) {
            PublishedSeries one{series.at("name"), series.at("machine"), {}};
            for (const json &group : series.at("groups")) {
                one.groups.push_back(read_group(group, sync));
            }
            all.push_back(std::move(one));
        }
    } catch (const std::exception &error) {
        throw std::invalid_argument(fmt::format("--published {}: {}", file, error.what()));
    }
    return all;
}

json check_published(const std::vector<PublishedSeries> &all, const std::array<Fit, operations.size()> &ours) {
    json checked = json::array();
    for (const PublishedSeries &series : all) {
        json one = {{"name", series.name}, {"machine", series.machine}, {"groups", json::array()}};
        for (const PublishedGroup &group : series.groups) {
            for (const Operation operation : operations) {
                const auto at = static_cast<size_t>(operation);
                if (!group.points[at].empty()) {
                    const auto base = std::find_if(series.groups.begin(), series.groups.end(),
                                                   [&](const PublishedGroup &one) { return !one.points[at].empty(); });
                    one["groups"].push_back(check_group(group, operation, base->points[at], &group == &*base, ours[at]));
                }
            }
        }
        checked.push_back(std::move(one));
    }
    return checked;
}

void print_published(const json &checked, const std::string &file) {
    constexpr const char *format = "  {:<4} {:<8} {:>6}  {:<9} {:>7} {:>8} {:<15} {:>8} {:<15} {:>16}";
    const auto line = [&](const auto &...cells) { print_line(fmt::format(fmt::runtime(format), cells...)); };
    fmt::print("\nThe formula on published points ({}): fitted on the smallest group of a library alone, its larger groups predicted.\n"
               "Last column: our times, MODELLED, over theirs, measured elsewhere and on other machines: least, median, most.\n",
               file);
    line("", "", "points", "in fit", "error", "", "", "largest", "", "modelled ours /");
    line("", "", "", "", "median", "worst", "", "batch", "", "theirs");
    for (const json &series : checked) {
        fmt::print("{}, {}\n", series.at("name").get<std::string>(), series.at("machine").get<std::string>());
        for (const json &row : series.at("groups")) {
            const json &ratio = row.at("modelled_ours_over_theirs");
            const bool fitted = row.contains("error");
            const auto error = [&](const char *key, bool with_sign) { return fitted ? percent(row.at("error").at(key), with_sign) : "-"; };
            const auto tokens = [&](const char *key) {
                return fitted ? fmt::format("({} tokens)", row.at("error").at(key).get<int64_t>()) : "";
            };
            line(fmt::format("EP{}", row.at("ranks").get<int>()), row.at("operation").get<std::string>(), row.at("points").get<int>(),
                 !fitted ? "no fit" : row.at("used_in_fit").get<bool>() ? "yes" : "predicted", error("median", false), error("worst", true),
                 tokens("worst_tokens"), error("at_most_tokens", true), tokens("most_tokens"),
                 fmt::format("{:.2f} {:.2f} {:.2f}", ratio.at("least").get<double>(), ratio.at("median").get<double>(),
                             ratio.at("most").get<double>()));
        }
    }
}

}  // namespace perf
