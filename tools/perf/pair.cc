#include "pair.hpp"

#include <algorithm>
#include <stdexcept>

#include <fmt/format.h>

#include <moelink/moelink.h>

#include "device.hpp"
#include "launcher.hpp"
#include "link.hpp"
#include "rank.hpp"
#include "report.hpp"
#include "routing.hpp"
#include "send.hpp"
#include "values.hpp"

namespace perf {

namespace {

// What can be said before any rank is started.
void check_options(const PairOptions &options) {
    manager_kind(options.manager);
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
    if (send.inside && options.device == "cuda" && manager_kind(options.manager) == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER) {
        throw std::invalid_argument(fmt::format("--send {}: dispatch over NCCL quantizes nothing; send fp8", send.name));
    }
    if (options.uneven && options.ranks < 2) {
        throw std::invalid_argument("--uneven needs at least two ranks");
    }
}

}  // namespace

int run_pair(PairOptions options, const std::string &command) {
    resolve_device(options.device, options.ranks);
    options.graph = options.graph || (options.sweep && options.device == "cuda");
    options.check = options.check || !options.corrupt.empty();
    check_options(options);
    const auto routings = make_routings(options);
    check_options(options);
    Report report(options, command);
    if (options.graph && (options.device == "host" || manager_kind(options.manager) == MOELINK_MANAGER_REFERENCE)) {
        report.note(options.device == "host" ? "the host device has no graphs: --graph was ignored, calls were eager"
                                             : "the reference manager blocks the host: --graph was ignored, calls were eager");
        options.graph = false;
    }
    if (options.call_time && options.device == "host") {
        report.note("a call on the host is the work itself: --call-time was ignored");
        options.call_time = false;
    }
    if (options.device == "host" && options.sm_budgets != std::vector<int>{0}) {
        report.note("the host device has no multiprocessors: --sm-budget changes nothing");
    }
    if (const Send send = send_of(options.send); send.fp8) {
        report.note(send.inside ? "what the timed combines add was made before the timing, since experts would have had to turn FP8 into bf16"
                                : "what is timed reads rows made before it: dispatch FP8 rows of three inputs in turn, combine bf16 rows");
        if (options.baseline) {
            report.note("the baseline sends fp8 made before the timing");
        }
    }
    std::vector<Peers> peers;
    for (const std::string &file : options.compare) {
        peers.push_back(read_peers(file, options));
    }
    report.set_peers(std::move(peers));
    if (options.device == "cuda") {
        std::string why;
        const double gbps = measure_push_gbps(&why);
        if (gbps > 0) {
            report.set_push_gbps(gbps);
        } else {
            report.note("the push rate was not measured: " + why);
        }
    }
    for (const auto &routing : routings) {
        if (!routing.note.empty()) {
            report.note(routing.note);
        }
    }
    const auto listener = [&](int rank, const nlohmann::json &message) { report.take(rank, message); };
    const Task task = {"pair", options.device, options.ranks, options.timeout, options};
    const bool ended = options.threads ? run_threads(task, listener) : run_processes(task, listener);
    return report.finish(ended);
}

}  // namespace perf
