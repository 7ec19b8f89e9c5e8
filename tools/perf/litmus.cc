#include "litmus.hpp"

#include <cstdio>
#include <stdexcept>

#include <fmt/format.h>

#include "device.hpp"
#include "report.hpp"

namespace perf {

int run_litmus(const LitmusOptions &options, const std::string &command) {
    if (!built_with_cuda()) {
        throw std::invalid_argument("this moelink-perf was built without CUDA; litmus programs run on GPUs");
    }
    if (options.gpus.size() != 2) {
        throw std::invalid_argument(fmt::format("--gpus names {} GPUs; it takes two, such as 0,1, or one twice", options.gpus.size()));
    }
    check_writable(options.json);
    std::vector<std::string> devices;
    const std::vector<LitmusFinding> findings = run_cuda_litmus(options, &devices);
    nlohmann::json document = document_head(command);
    document["devices"] = devices;
    document["findings"] = nlohmann::json::array();
    int wrong = 0;
    const bool show = options.json != "-";
    if (show) {
        fmt::print("{} to {}\n{:<34} {:<52} {:>14} {:>12}\n", devices.front(), devices.back(), "test", "variant", "trials", "weak");
    }
    for (const LitmusFinding &finding : findings) {
        const bool bad = finding.forbidden && finding.seen > 0;
        // A test without trials shows nothing.
        const bool idle = finding.trials == 0;
        wrong += bad || idle ? 1 : 0;
        document["findings"].push_back({{"test", finding.test}, {"variant", finding.variant}, {"forbidden", finding.forbidden}, {"trials", finding.trials}, {"seen", finding.seen}});
        if (show) {
            fmt::print("{:<34} {:<52} {:>14} {:>12} {}\n", finding.test, finding.variant, finding.trials, finding.seen,
                       bad ? "FORBIDDEN" : idle ? "NO TRIALS" : finding.forbidden ? "must be 0" : "allowed");
        }
    }
    document["ok"] = wrong == 0;
    if (!options.json.empty()) {
        write_json(options.json, document);
    }
    if (wrong > 0) {
        fmt::print(stderr, "moelink-perf: {} of the litmus programs saw what must not be, or nothing at all\n", wrong);
    }
    return wrong > 0 ? 1 : 0;
}

}  // namespace perf
