#include "pair.hpp"

#include <stdexcept>

#include <fmt/format.h>

#include <moelink/moelink.h>

#include "compare.hpp"
#include "launcher.hpp"
#include "link.hpp"
#include "pair_table.hpp"
#include "rank.hpp"
#include "report.hpp"
#include "routing.hpp"
#include "send.hpp"
#include "session.hpp"
#include "values.hpp"

namespace perf {

namespace {

// What can be said before any rank is started.
void check_options(const PairOptions &options) {
    manager_of(options.manager);
    provider_of(options.provider);
    check_writable(options.json);
    dtype_of(options.dtype);
    if (options.topk > MOELINK_MAX_TOP_K) {
        throw std::invalid_argument(fmt::format("--topk is {}; at most {} works", options.topk, int{MOELINK_MAX_TOP_K}));
    }
    const Send send = send_of(options.send);
    if (send.fp8 && (options.dtype != "bf16" || options.hidden % scale_block != 0)) {
        throw std::invalid_argument(fmt::format("--send {} needs bf16 tokens and --hidden a multiple of {}; here they are {} and {}",
                                                send.name, scale_block, options.dtype, options.hidden));
    }
    if (send.fp8 && options.weighted) {
        throw std::invalid_argument(fmt::format("--send {} goes without --weighted", send.name));
    }
    if (send.inside && manager_of(options.manager).over_nccl()) {
        throw std::invalid_argument(fmt::format("--send {}: dispatch over NCCL quantizes nothing; send fp8", send.name));
    }
    if (options.layout != "rank-major" && (send.fp8 || options.weighted || options.copy_out || !options.corrupt.empty())) {
        throw std::invalid_argument(fmt::format("--layout {} goes without --send, --weighted and --copy-out", options.layout));
    }
    if (options.uneven && options.ranks < 2) {
        throw std::invalid_argument("--uneven needs at least two ranks");
    }
    if (options.slice_of > 0 && options.ranks != 2) {
        throw std::invalid_argument(
            fmt::format("--slice-of runs two ranks' share of a larger group, and there are {} ranks", options.ranks));
    }
    if (options.experts > 0 && options.slice_of > options.experts) {
        throw std::invalid_argument(
            fmt::format("--slice-of is {} but there are only {} experts: not one a rank", options.slice_of, options.experts));
    }
}

}  // namespace

int run_pair(PairOptions options, const std::string &command) {
    resolve(options);
    options.graph = options.graph || (options.sweep && options.device == "cuda");
    options.check = options.check || !options.corrupt.empty();
    check_options(options);
    const auto routings = make_routings(options);
    check_options(options);
    std::vector<std::string> notes;
    if (options.graph && (options.device == "host" || manager_of(options.manager).kind == MOELINK_MANAGER_REFERENCE)) {
        notes.push_back(options.device == "host" ? "the host device has no graphs: --graph was ignored, calls were eager"
                                                 : "the reference manager blocks the host: --graph was ignored, calls were eager");
        options.graph = false;
    }
    if (options.call_time && options.device == "host") {
        notes.push_back("a call on the host is the work itself: --call-time was ignored");
        options.call_time = false;
    }
    if (options.device == "host" && options.sm_budgets != std::vector<int>{0}) {
        notes.push_back("the host device has no multiprocessors: --sm-budget changes nothing");
    }
    if (const Send send = send_of(options.send); send.fp8) {
        notes.push_back(send.inside ? "what the timed combines add was made before the timing, since experts would have had to turn FP8 into bf16"
                                : "what is timed reads rows made before it: dispatch FP8 rows of three inputs in turn, combine bf16 rows");
        if (options.baseline) {
            notes.push_back("the baseline sends fp8 made before the timing");
        }
    }
    std::vector<Peers> peers;
    for (const std::string &file : options.compare) {
        peers.push_back(read_peers(file, options));
    }
    double push_gbps = 0;
    if (options.device == "cuda") {
        std::string why;
        push_gbps = measure_push_gbps(&why);
        if (push_gbps <= 0) {
            notes.push_back("the push rate was not measured: " + why);
        }
    }
    Table table = pair_table(options, push_gbps);
    table.finish = [&](nlohmann::json &document, bool show) { compare(peers, document, show); };
    Report report(options, std::move(table), command);
    report.say("settings", options);
    if (push_gbps > 0) {
        report.say("push_gbps", push_gbps);
    }
    for (const std::string &note : notes) {
        report.note(note);
    }
    for (const auto &routing : routings) {
        if (!routing.note.empty()) {
            report.note(routing.note);
        }
    }
    const auto listener = [&](int rank, const nlohmann::json &message) { report.take(rank, message); };
    return report.finish(run_ranks({"pair", options, options}, listener));
}

}  // namespace perf
