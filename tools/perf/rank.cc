#include "rank.hpp"

#include <algorithm>
#include <stdexcept>

#include <fmt/format.h>

#include "device.hpp"
#include "eplb_rank.hpp"
#include "pair_rank.hpp"
#include "stress_rank.hpp"

namespace perf {

void resolve(RunOptions &options) {
    int32_t gpus = 0;
    const bool known = moelink_device_count(&gpus) == MOELINK_OK;
    if (options.device == "auto") {
        options.device = known && gpus > 0 && built_with_cuda() ? "cuda" : "host";
    }
    if (options.device == "cuda" && !built_with_cuda()) {
        throw std::invalid_argument("--device cuda: this moelink-perf was built without CUDA; use --device host");
    }
    if (options.device == "cuda" && gpus == 0) {
        const std::string why = moelink_last_error();
        throw std::invalid_argument(fmt::format("--device cuda: no GPU is found{}{}", why.empty() ? "" : ": ", why));
    }
    if (options.ranks == 0) {
        options.ranks = options.device == "cuda" ? std::max(2, gpus) : 2;
    }
}

int ordinal_of(const RunOptions &options, int rank) {
    int32_t count = 0;
    if (options.device != "cuda" || moelink_device_count(&count) != MOELINK_OK || count < 1) {
        return -1;
    }
    return rank % count;
}

bool run_rank(const Task &task, const Join &join, Channel &channel) {
    try {
        if (task.command == "eplb") {
            run_eplb_rank(task.options.get<EplbOptions>(), join, channel);
        } else if (task.command == "stress") {
            run_stress_rank(task.options.get<StressOptions>(), join, channel);
        } else {
            run_pair_rank(task.options.get<PairOptions>(), join, channel);
        }
        return true;
    } catch (const std::exception &error) {
        channel.send({{"error", error.what()}});
        return false;
    }
}

}  // namespace perf
