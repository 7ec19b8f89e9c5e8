#include "pair_rank.hpp"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "measure.hpp"
#include "routing.hpp"
#include "session.hpp"
#include "traffic.hpp"

namespace perf {

namespace {

// What a rank knows of one case's correctness, summed over the ranks.
struct Verdict {
    uint64_t compared = 0;
    uint64_t wrong = 0;
};

class Case {
public:
    Case(const Session &session, const Routing &routing, int tokens, int sm_budget, std::string name, Channel &channel)
        : session_(session),
          routing_(routing),
          sm_budget_(sm_budget),
          name_(std::move(name)),
          channel_(channel),
          world_((announce("drawing tokens and routes"), World(session.options(), routing, tokens))) {}

    // Runs it; the row goes out from rank 0. Returns the number of wrong values on all ranks.
    uint64_t run() {
        nlohmann::json row = run_manager();
        if (session_.options().baseline) {
            run_baseline(row);
        }
        Verdict all;
        for (const Verdict &one : session_.gather(verdict_)) {
            all.compared += one.compared;
            all.wrong += one.wrong;
        }
        row["checked"] = all.wrong > 0 ? "WRONG" : !session_.options().check                  ? "no"
                         : world_.layout == MOELINK_LAYOUT_RANK_MAJOR ? "yes"
                                                                      : "outputs";
        row["values_compared"] = all.compared;
        row["values_wrong"] = all.wrong;
        if (session_.rank() == 0) {
            channel_.send({{"row", row}});
        }
        return all.wrong;
    }

private:
    nlohmann::json run_manager() {
        announce("allocating the workspace");
        Job job(session_, world_, manager_of(session_.options().manager), sm_budget_);
        job.decoy();
        const bool check = session_.options().check && world_.layout == MOELINK_LAYOUT_RANK_MAJOR;
        if (check) {
            announce("checking");
            checked_round(job, false, "before timing");
        }
        Measured measured = measure(job, channel_, name_);
        judge(measured.chain, "in the outputs of the timing run");
        if (check) {
            announce("checking again");
            job.decoy();
            checked_round(job, measured.graph, "after timing");
        }
        return row_of(job, measured);
    }

    // The same tokens through all-gather and reduce-scatter.
    void run_baseline(nlohmann::json &row) {
        announce("the baseline");
        World world = world_;
        world.layout = MOELINK_LAYOUT_RANK_MAJOR;
        if (world.send.inside) {
            world.send = send_of("fp8");  // NCCL quantizes nothing
        }
        Job job(session_, world, gathering_baseline(session_.on_cuda()), 0);
        job.decoy();
        const Measured measured = measure_baseline(job);
        judge(measured.chain, "in the outputs of the baseline's timing run");
        row["baseline_pair_us_p50"] = measured.pair.p50;
        row["baseline_pair_us_p99"] = measured.pair.p99;
    }

    void announce(const char *step) const { channel_.send({{"at", fmt::format("{}: {}", name_, step)}}); }

    void judge(const CheckResult &result, const std::string &where) {
        verdict_.compared += result.compared;
        verdict_.wrong += result.wrong;
        if (result.wrong > 0) {
            channel_.send({{"wrong", fmt::format("{}: {} wrong values of {} {}; the first: {}", name_, result.wrong,
                                                 result.compared, where, result.first)}});
        }
    }

    // Runs work eagerly, or captures it and replays the graph once every rank has one.
    template <class Work>
    void issue(bool as_graph, Work work) const {
        if (!as_graph) {
            work();
            return;
        }
        session_.device().begin_capture();
        work();
        const int graph = session_.device().end_capture();
        session_.barrier();
        session_.device().launch(graph);
    }

    // Dispatch, expert work and combine on poisoned memory, everything compared.
    void checked_round(Job &job, bool as_graph, const std::string &when) {
        const bool corrupts = session_.rank() == session_.ranks() - 1;
        const std::string &corrupt = session_.options().corrupt;
        const std::string where = when + (as_graph ? " (graph)" : "");
        job.poison();
        issue(as_graph, [&] { job.dispatch(job.tokens()); });
        if (corrupts && corrupt == "dispatch") {
            job.corrupt_received();
        }
        judge(check_dispatch(world_, session_.rank(), job.gathers_all(), {}, job.received()), "in a dispatch " + where);
        issue(as_graph, [&] {
            job.run_experts();
            job.combine_experts(job.output(0));
        });
        if (corrupts && corrupt == "combine") {
            job.corrupt_output(0);
        }
        const int extra_roundings = job.own_rounding() ? session_.ranks() : 0;
        judge(check_combine(world_, session_.rank(), extra_roundings, job.output_on_host(0)), "in a combine " + where);
        session_.barrier();
    }

    nlohmann::json row_of(const Job &job, const Measured &measured) const {
        const Traffic traffic = count_traffic(world_);
        double gathered = 0;  // what an all-gather moves to or from the busiest rank
        int64_t most_received = 0;
        int64_t all_received = 0;
        const int ranks = session_.ranks();
        const int64_t all_tokens = std::accumulate(world_.tokens.begin(), world_.tokens.end(), int64_t{0});
        for (int rank = 0; rank < ranks; ++rank) {
            int64_t received = 0;
            for (int source = 0; source < ranks; ++source) {
                received += world_.rows_between(source, rank);
            }
            most_received = std::max(most_received, received);
            all_received += received;
            const int64_t here = world_.tokens[static_cast<size_t>(rank)];
            gathered = std::max(gathered, static_cast<double>(std::max(all_tokens - here, here * (ranks - 1))));
        }
        const double dispatch_rows = job.gathers_all() ? gathered : traffic.crossed;
        const double combine_rows = job.own_rounding() ? gathered : traffic.crossed;
        const auto sent = static_cast<double>(sent_bytes(world_.send, world_.dtype, world_.hidden));
        const double combined = static_cast<double>(world_.hidden) * world_.dtype.bytes;
        const double bytes = dispatch_rows * sent + combine_rows * combined;
        nlohmann::json row = {
            {"tokens", world_.most_tokens()},
            {"routing", routing_.name},
            {"sm_budget", sm_budget_},
            {"rows_crossed", static_cast<int64_t>(dispatch_rows)},
            {"rows_own", static_cast<int64_t>(traffic.own)},
            {"rows_sent", static_cast<int64_t>(traffic.sent)},
            {"dispatch_row_bytes", sent},
            {"combine_row_bytes", combined},
            {"bytes_crossed", bytes},
            {"dispatch_us_p50", measured.dispatch.p50},
            {"dispatch_us_p99", measured.dispatch.p99},
            {"combine_us_p50", measured.combine.p50},
            {"combine_us_p99", measured.combine.p99},
            {"pair_us_p50", measured.pair.p50},
            {"pair_us_p99", measured.pair.p99},
            {"pair_us_max", measured.pair.most},
            {"wire_gbps", measured.pair.p50 > 0 ? bytes / measured.pair.p50 * 1e-3 : 0.0},
            {"workspace_mib", static_cast<double>(job.workspace_bytes()) / (1 << 20)},
            {"skew", all_received > 0 ? static_cast<double>(most_received) * ranks / static_cast<double>(all_received) : 1.0},
            {"graph", measured.graph},
            {"pairs", measured.pairs},
            {"pair_samples", measured.pair.samples},
            {"operation_samples", measured.dispatch.samples},
        };
        if (measured.memcpy_us > 0) {
            row["memcpy_us"] = measured.memcpy_us;
            row["pair_over_memcpy"] = measured.over_memcpy;
        }
        if (measured.stamped.samples > 0) {
            row["stamped_us_p50"] = measured.stamped.p50;
            row["stamped_us_p99"] = measured.stamped.p99;
            row["stamped_us_max"] = measured.stamped.most;
            row["stamped_samples"] = measured.stamped.samples;
        }
        if (measured.launches) {
            add_call(row, "dispatch", measured.dispatch_call);
            add_call(row, "combine", measured.combine_call);
        }
        return row;
    }

    static void add_call(nlohmann::json &row, const std::string &name, const CallTime &call) {
        row[name + "_blocks"] = call.blocks;
        row[name + "_kernels"] = call.kernels;
        row[name + "_parameter_bytes"] = call.parameter_bytes;
        if (call.bare_us > 0) {
            row[name + "_call_us"] = call.call_us;
            row[name + "_bare_us"] = call.bare_us;
        }
    }

    const Session &session_;
    const Routing &routing_;
    int sm_budget_;
    std::string name_;
    Channel &channel_;
    World world_;
    Verdict verdict_;
};

}  // namespace

void run_pair_rank(const PairOptions &given, const Join &join, Channel &channel) {
    PairOptions options = given;
    const auto routings = make_routings(options);
    channel.send({{"at", "joining the group"}});
    Session session(options, join());
    session.introduce(channel);
    uint64_t wrong = 0;
    const size_t cases = options.tokens.size() * routings.size() * options.sm_budgets.size();
    size_t number = 0;
    for (const auto &routing : routings) {
        for (const int tokens : options.tokens) {
            for (const int budget : options.sm_budgets) {
                std::string name = fmt::format("[{}/{}] {}, {} tokens", ++number, cases, routing.name, tokens);
                if (budget > 0) {
                    name += fmt::format(", {} multiprocessors", budget);
                }
                wrong += Case(session, routing, tokens, budget, name, channel).run();
            }
        }
    }
    session.finish(channel, wrong);
}

}  // namespace perf
