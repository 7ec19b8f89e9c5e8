#include "eplb_rank.hpp"

#include <algorithm>
#include <chrono>
#include <memory>

#include <fmt/format.h>

#include "eplb_mover.hpp"
#include "eplb_traffic.hpp"
#include "eplb_weights.hpp"
#include "measure.hpp"
#include "session.hpp"
#include "values.hpp"

namespace perf {

namespace {

struct Plan {
    Map map;
    std::vector<int32_t> sources;  // [layers, slots], as moelink_eplb_plan gives them
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    double ms = 0;
};

double ms_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// Every rank plans for itself and comes to the same map.
Plan plan(const EplbOptions &options, const Topic &topic, const Map &previous) {
    const moelink_eplb_shape shape = shape_of(options);
    Plan planned;
    planned.map.resize(static_cast<size_t>(options.layers) * static_cast<size_t>(options.slots));
    planned.sources.resize(planned.map.size());
    planned.result.sources = planned.sources.data();
    moelink_eplb_plan_params params = MOELINK_EPLB_PLAN_PARAMS_INIT;
    params.load = topic.loads.data();
    params.previous = previous.empty() ? nullptr : previous.data();
    params.expert_bytes = options.expert_bytes;
    params.flags = options.from_scratch ? uint32_t{MOELINK_EPLB_PLAN_F_FROM_SCRATCH} : 0u;
    const auto start = std::chrono::steady_clock::now();
    must(moelink_eplb_plan(&shape, &params, planned.map.data(), &planned.result), "moelink_eplb_plan");
    planned.ms = ms_since(start);
    return planned;
}

class Changes {
public:
    Changes(const Session &session, const EplbOptions &options, const std::vector<Topic> &topics, Channel &channel)
        : session_(session),
          options_(options),
          topics_(topics),
          channel_(channel),
          weights_(session, options),
          mover_(session, options, weights_),
          map_(plan(options, topics.front(), {}).map) {
        if (session.rank() == 0) {
            channel.send({{"note", mover_.describe()}});
        }
        weights_.write(map_);
        session.barrier();
    }

    // Returns the number of wrong values on all ranks.
    uint64_t run() {
        uint64_t wrong = 0;
        for (int change = 1; change <= options_.changes; ++change) {
            wrong += run(topics_[static_cast<size_t>(change - 1)], topics_[static_cast<size_t>(change)],
                         fmt::format("[{}/{}] {}", change, options_.changes, topics_[static_cast<size_t>(change)].name));
        }
        return wrong;
    }

private:
    // Dispatch and combine of one kind of traffic with one map.
    struct Pair {
        double us = 0;
        double skew = 0;  // tokens that a rank's experts get, most over mean
    };

    void announce(const std::string &name, const char *step) const { channel_.send({{"at", name + ": " + step}}); }

    void judge(const CheckResult &result, const std::string &where) {
        compared_ += result.compared;
        wrong_ += result.wrong;
        if (result.wrong > 0) {
            channel_.send(
                {{"wrong", fmt::format("{}: {} wrong values of {}; the first: {}", where, result.wrong, result.compared, result.first)}});
        }
    }

    uint64_t run(const Topic &from, const Topic &to, const std::string &name) {
        compared_ = wrong_ = 0;
        announce(name, "planning");
        const Plan planned = plan(options_, to, map_);
        announce(name, "dispatch and combine with the old map");
        const Pair before = time_pair(to, map_, name + ", old map");
        announce(name, "moving");
        std::vector<double> move_ms;
        for (int i = 0; i < options_.repeat; ++i) {
            if (i > 0) {
                mover_.move(planned.map, map_);
            }
            move_ms.push_back(mover_.move(map_, planned.map));
        }
        const double ms = median(session_.slowest(move_ms));
        const std::vector<int32_t> movers = session_.gather(mover_.sms());
        const int32_t sms = *std::max_element(movers.begin(), movers.end());
        if (options_.corrupt == "move" && session_.rank() == session_.ranks() - 1) {
            weights_.corrupt(planned.map);
        }
        if (options_.check) {
            announce(name, "checking");
            judge(weights_.check(planned.map), name + ", after the move");
        }
        announce(name, "copying as much");
        const double copy_ms = time_pull(planned.sources, sms);
        announce(name, "dispatch and combine with the new map");
        const Pair after = time_pair(to, planned.map, name + ", new map");
        map_ = planned.map;

        uint64_t compared = 0;
        uint64_t wrong = 0;
        for (const auto &[some, bad] : session_.gather(std::pair{compared_, wrong_})) {
            compared += some;
            wrong += bad;
        }
        if (session_.rank() == 0) {
            const auto &result = planned.result;
            const auto bytes = static_cast<double>(result.bytes);
            nlohmann::json row = {{"from", from.name},
                                  {"to", to.name},
                                  {"balance_before", result.balance_before},
                                  {"balance_after", result.balance_after},
                                  {"balance_bound", result.balance_bound},
                                  {"copies", result.copies},
                                  {"local_copies", result.local},
                                  {"bytes", bytes},
                                  {"plan_ms", planned.ms},
                                  {"move_ms", ms},
                                  {"move_samples", options_.repeat},
                                  {"batches", mover_.batches()},
                                  {"overlapped", mover_.overlapped()},
                                  {"sms", sms},
                                  {"copied_by", copied_by(sms)},
                                  {"staged_experts", mover_.staged()},
                                  {"staging_bytes", mover_.staging_bytes()},
                                  {"host_bytes", mover_.host_bytes()},
                                  {"pair_us_before", before.us},
                                  {"pair_us_after", after.us},
                                  {"skew_before", before.skew},
                                  {"skew_after", after.skew},
                                  {"checked", wrong > 0 ? "WRONG" : options_.check ? "yes" : "no"},
                                  {"values_compared", compared},
                                  {"values_wrong", wrong}};
            if (result.copies > 0) {
                row["move_gbps"] = bytes / ms * 1e-6;
                row["copy_gbps"] = bytes / copy_ms * 1e-6;
            }
            channel_.send({{"row", row}});
        }
        return wrong;
    }

    std::string copied_by(int32_t sms) const {
        if (!session_.on_cuda()) {
            return "CPU";
        }
        return sms > 0 ? fmt::format("{} SMs", sms) : "engines";
    }

    // [ms] of the slowest rank. The first of the copies warms up.
    double time_pull(const std::vector<int32_t> &sources, int32_t sms) {
        constexpr int rounds = 4;
        std::vector<double> times;
        for (int round = 0; round < rounds; ++round) {
            session_.barrier();
            const auto start = std::chrono::steady_clock::now();
            weights_.pull(sources, sms);
            weights_.device().sync();
            if (round > 0) {
                times.push_back(ms_since(start));
            }
        }
        const double ms = median(session_.slowest(times));
        session_.barrier();
        return ms;
    }

    Pair time_pair(const Topic &topic, const Map &map, const std::string &where) {
        const World world = traffic(session_, options_, topic, map);
        Job job(session_, world, manager_of(options_.manager), 0);
        job.decoy();
        const Measured measured = measure_baseline(job);
        judge(measured.chain, where);
        std::vector<double> loads(static_cast<size_t>(session_.ranks()));
        for (const auto &ids : world.ids) {
            for (const int32_t id : ids) {
                loads[static_cast<size_t>(owner_of(id, world.experts, world.ranks))] += 1;
            }
        }
        const double mean = static_cast<double>(options_.tokens) * options_.topk;
        return {measured.pair.p50, *std::max_element(loads.begin(), loads.end()) / mean};
    }

    const Session &session_;
    const EplbOptions &options_;
    const std::vector<Topic> &topics_;
    Channel &channel_;
    Weights weights_;
    Mover mover_;
    Map map_;  // in use
    uint64_t compared_ = 0;
    uint64_t wrong_ = 0;
};

}  // namespace

void run_eplb_rank(const EplbOptions &given, const Join &join, Channel &channel) {
    EplbOptions options = given;
    const std::vector<Topic> topics = read_topics(options);
    channel.send({{"at", "joining the group"}});
    Session session(pair_of(options), join());
    session.introduce(channel);
    uint64_t wrong = 0;
    {
        Changes changes(session, options, topics, channel);
        wrong = changes.run();
        session.barrier();
    }
    session.finish(channel, wrong);
}

}  // namespace perf
