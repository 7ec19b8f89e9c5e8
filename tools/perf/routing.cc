#include "routing.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include <fmt/format.h>
#include <sys/stat.h>

#include "loads.hpp"
#include "values.hpp"

namespace perf {

namespace {

constexpr double hot_share = 0.8;

bool is_file(const std::string &path) {
    struct stat info;
    return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

void agree_experts(PairOptions &options, size_t columns, const std::string &path) {
    if (options.experts == 0) {
        options.experts = static_cast<int>(columns);
    }
    if (static_cast<size_t>(options.experts) != columns) {
        throw std::invalid_argument(
            fmt::format("--experts is {} but {} has loads of {} experts", options.experts, path, columns));
    }
}

std::vector<Routing> load_routings(PairOptions &options, const std::string &spec) {
    std::string path = spec;
    std::string topic;
    if (!is_file(path) && path.rfind(':') != std::string::npos) {
        topic = path.substr(path.rfind(':') + 1);
        path.resize(path.rfind(':'));
    }
    const LoadTrace trace = read_loads(path);
    if (trace.layers != 1) {
        throw std::invalid_argument(fmt::format("{} has loads of {} layers; a routing is of one", path, trace.layers));
    }
    const auto &topics = trace.steps;
    agree_experts(options, static_cast<size_t>(trace.experts), path);
    std::vector<Routing> routings;
    std::string names;
    for (const auto &[name, counts] : topics) {
        if (topic == "*" || topic == name) {
            routings.push_back({"load:" + name, counts, nullptr, ""});
        }
        names += (names.empty() ? "" : ", ") + name;
    }
    if (topic.empty()) {
        Routing sum{"load:(sum)", std::vector<double>(static_cast<size_t>(trace.experts)), nullptr,
                    fmt::format("load:(sum) adds the loads of all {} topics of {} ({})", topics.size(), path, names)};
        for (const auto &[name, counts] : topics) {
            for (size_t e = 0; e < counts.size(); ++e) {
                sum.loads[e] += counts[e];
            }
        }
        routings.push_back(std::move(sum));
    }
    if (routings.empty()) {
        throw std::invalid_argument(
            fmt::format("{} has no topic \"{}\"; it has {} (and * for each of them)", path, topic, names));
    }
    return routings;
}

Routing ids_routing(PairOptions &options, const std::string &path) {
    auto table = std::make_shared<const NpyTable>(read_npy(path));
    const int32_t most = *std::max_element(table->values.begin(), table->values.end());
    if (options.topk == 0) {
        options.topk = static_cast<int>(table->columns);
    }
    if (table->columns != options.topk) {
        throw std::invalid_argument(fmt::format("--topk is {} but {} has {} ids a token", options.topk, path, table->columns));
    }
    if (options.experts == 0) {
        throw std::invalid_argument(
            fmt::format("{} holds ids up to {}; say how many experts there are with --experts", path, most));
    }
    if (most >= options.experts) {
        throw std::invalid_argument(fmt::format("{} holds the id {} but --experts is {}", path, most, options.experts));
    }
    const auto name = path.substr(path.rfind('/') == std::string::npos ? 0 : path.rfind('/') + 1);
    return {"ids:" + name,
            {},
            table,
            fmt::format("ids:{} has {} tokens; rank r takes its rows from row r x tokens on, starting over at the end", name,
                        table->rows)};
}

Routing drawn_routing(const PairOptions &options, const std::string &spec, int ranks) {
    const auto experts = static_cast<size_t>(options.experts);
    Routing routing{spec, std::vector<double>(experts, 1.0), nullptr, ""};
    if (spec == "uniform") {
        return routing;
    }
    if (spec == "hot") {
        const int hot = first_expert(1, options.experts, ranks);
        for (int e = 0; ranks > 1 && e < options.experts; ++e) {
            routing.loads[static_cast<size_t>(e)] = e < hot ? hot_share / hot : (1 - hot_share) / (options.experts - hot);
        }
        routing.note = fmt::format("hot: the experts of rank 0 have {:.0f} % of the load", hot_share * 100);
        return routing;
    }
    size_t used = 0;
    double exponent = -1;
    if (spec.rfind("zipf:", 0) == 0) {
        try {
            exponent = std::stod(spec.substr(5), &used);
        } catch (const std::exception &) {
            used = 0;
        }
    }
    if (used == 0 || used != spec.size() - 5 || !(exponent >= 0) || exponent > 20) {
        throw std::invalid_argument(fmt::format(
            "unknown routing \"{}\"; choose uniform, zipf:S (0 <= S <= 20), hot, load:FILE[:TOPIC] or ids:FILE.npy", spec));
    }
    // Which expert is popular has nothing to do with its number: a random order, the same on every rank.
    std::vector<std::pair<uint64_t, size_t>> order;
    for (size_t e = 0; e < experts; ++e) {
        order.emplace_back(mix(mix(options.seed, 0x7a697066u), e), e);
    }
    std::sort(order.begin(), order.end());
    for (size_t place = 0; place < experts; ++place) {
        routing.loads[order[place].second] = std::pow(static_cast<double>(place + 1), -exponent);
    }
    return routing;
}

// Of a token's experts in a group of `slice_of` ranks, those of the one peer, as that peer's experts here; the others masked.
void keep_slice(const PairOptions &options, int rank, std::vector<int32_t> &ids) {
    const int peer = 1 - rank;
    const int first = first_expert(peer, options.experts, options.slice_of);
    const int last = first_expert(peer + 1, options.experts, options.slice_of);
    const int first_here = first_expert(peer, options.experts, options.ranks);
    for (int32_t &id : ids) {
        id = id >= first && id < last ? id - first + first_here : -1;
    }
}

}  // namespace

void lift_zeros(Routing &routing, int topk) {
    double sum = 0;
    size_t loaded = 0;
    for (const double load : routing.loads) {
        sum += load;
        loaded += load > 0;
    }
    if (routing.loads.empty() || loaded >= static_cast<size_t>(topk)) {
        return;
    }
    const double little = (sum > 0 ? sum : 1) * 1e-6 / static_cast<double>(routing.loads.size());
    for (double &load : routing.loads) {
        load += little;
    }
    routing.note +=
        fmt::format("{}{}: only {} experts have any load, top-k is {}; every expert got a millionth of the sum in addition",
                    routing.note.empty() ? "" : "; ", routing.name, loaded, topk);
}

std::vector<Routing> make_routings(PairOptions &options) {
    // Files first: they say how many experts and ids a token there are.
    std::vector<std::vector<Routing>> found(options.routing.size());
    for (size_t i = 0; i < found.size(); ++i) {
        const auto &spec = options.routing[i];
        if (spec.rfind("load:", 0) == 0) {
            found[i] = load_routings(options, spec.substr(5));
        } else if (spec.rfind("ids:", 0) == 0) {
            found[i].push_back(ids_routing(options, spec.substr(4)));
        }
    }
    options.experts = options.experts == 0 ? 256 : options.experts;
    options.topk = options.topk == 0 ? 8 : options.topk;
    if (options.topk > options.experts) {
        throw std::invalid_argument(fmt::format("--topk is {} but there are only {} experts", options.topk, options.experts));
    }
    std::vector<Routing> routings;
    for (size_t i = 0; i < found.size(); ++i) {
        if (found[i].empty()) {
            found[i].push_back(drawn_routing(options, options.routing[i], options.slice_of > 0 ? options.slice_of : options.ranks));
        }
        for (auto &routing : found[i]) {
            lift_zeros(routing, options.topk);
            routings.push_back(std::move(routing));
        }
    }
    return routings;
}

std::vector<int32_t> route(const Routing &routing, const PairOptions &options, int rank, int64_t tokens) {
    const auto topk = static_cast<size_t>(options.topk);
    std::vector<int32_t> ids(static_cast<size_t>(tokens) * topk);
    Random random(mix(mix(options.seed, 0x726f757465u), static_cast<uint64_t>(rank)));
    // A race: the k smallest of exponential times with rates equal to the loads are a draw without replacement (Efraimidis and
    // Spirakis, "Weighted random sampling with a reservoir", 2006).
    std::vector<std::pair<double, int32_t>> best(topk);
    for (int64_t t = 0; t < tokens; ++t) {
        int32_t *row = ids.data() + static_cast<size_t>(t) * topk;
        if (routing.ids) {
            const int64_t from = (rank * tokens + t) % routing.ids->rows;
            std::copy_n(routing.ids->values.data() + from * routing.ids->columns, topk, row);
        } else {
            size_t have = 0;
            for (size_t e = 0; e < routing.loads.size(); ++e) {
                if (routing.loads[e] <= 0) {
                    continue;
                }
                const double time = -std::log(random.next()) / routing.loads[e];
                if (have == topk && time >= best[topk - 1].first) {
                    continue;
                }
                size_t place = have < topk ? have++ : topk - 1;
                for (; place > 0 && best[place - 1].first > time; --place) {
                    best[place] = best[place - 1];
                }
                best[place] = {time, static_cast<int32_t>(e)};
            }
            for (size_t k = 0; k < topk; ++k) {
                row[k] = best[k].second;
            }
        }
        for (size_t k = 0; options.mask > 0 && k < topk; ++k) {
            row[k] = random.next() < options.mask ? -1 : row[k];
        }
    }
    if (options.slice_of > 0) {
        keep_slice(options, rank, ids);
    }
    return ids;
}

std::vector<float> draw_weights(const PairOptions &options, int rank, int64_t tokens) {
    const auto topk = static_cast<size_t>(options.topk);
    std::vector<float> weights(static_cast<size_t>(tokens) * topk);
    Random random(mix(mix(options.seed, 0x77656967687473u), static_cast<uint64_t>(rank)));
    std::vector<double> raw(topk);
    for (int64_t t = 0; t < tokens; ++t) {
        double sum = 0;
        for (auto &weight : raw) {
            weight = 0.5 + random.next();
            sum += weight;
        }
        for (size_t k = 0; k < topk; ++k) {
            weights[static_cast<size_t>(t) * topk + k] = static_cast<float>(raw[k] / sum);
        }
    }
    return weights;
}

}  // namespace perf
