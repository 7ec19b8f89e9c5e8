#include "work.hpp"

#include <algorithm>
#include <fstream>
#include <stdexcept>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace perf {

const char *name_of(Operation operation) {
    switch (operation) {
        case Operation::dispatch: return "dispatch";
        case Operation::combine: return "combine";
        default: return "pair";
    }
}

Sync::Sync(const std::string &link_file) {
    try {
        std::ifstream stream(link_file);
        const nlohmann::json document = nlohmann::json::parse(stream);
        if (!document.contains("cuda")) {
            throw std::invalid_argument("it has nothing that moelink-perf link --device cuda measures");
        }
        for (const auto &figure : document.at("cuda").at("figures")) {
            if (figure.contains("flags")) {
                figures_.emplace_back(figure.at("flags").get<int>(), figure.at("value").get<double>());
            }
        }
        if (figures_.size() < 2) {
            throw std::invalid_argument("it has no times of several flags at once; moelink-perf link measures them between two GPUs");
        }
    } catch (const std::exception &error) {
        throw std::invalid_argument(fmt::format("--link {}: {}", link_file, error.what()));
    }
    std::sort(figures_.begin(), figures_.end());
}

double Sync::us(int ranks) const {
    if (!known()) {
        return 0;
    }
    const int flags = ranks - 1;
    size_t above = 1;
    while (above + 1 < figures_.size() && figures_[above].first < flags) {
        ++above;
    }
    const auto &[low, low_us] = figures_[above - 1];
    const auto &[high, high_us] = figures_[above];
    return std::max(low_us + (high_us - low_us) * (flags - low) / (high - low), 0.0);
}

Work work_of(Operation operation, const Traffic &traffic, int64_t tokens, const RowBytes &row, double sync_us) {
    const auto all = static_cast<double>(tokens);
    const Work dispatch{tokens, traffic.crossed * row.dispatch, (all + traffic.own) * row.dispatch, sync_us};
    const Work combine{tokens, traffic.crossed * row.combine, (all + traffic.sent) * row.combine, sync_us};
    switch (operation) {
        case Operation::dispatch: return dispatch;
        case Operation::combine: return combine;
        default:
            return {tokens, dispatch.crossed + combine.crossed, dispatch.local + combine.local, dispatch.sync_us + combine.sync_us};
    }
}

}  // namespace perf
