#include "link.hpp"

#include <moelink/moelink.h>

#include <fmt/format.h>

#include <stdexcept>

#include "device.hpp"
#include "report.hpp"

namespace perf {

namespace {

void print(const char *title, const LinkReport &report) {
    fmt::print("{}\n", title);
    for (const auto &name : report.devices) {
        fmt::print("  {}\n", name);
    }
    for (const auto &figure : report.figures) {
        fmt::print("  {:<66} {:>10.2f} {}\n", figure.what, figure.value, figure.unit);
    }
    for (const auto &text : report.skipped) {
        fmt::print("  not measured: {}\n", text);
    }
    fmt::print("\n");
    std::fflush(stdout);
}

void add(nlohmann::json &document, const char *device, const LinkReport &report) {
    auto &part = document[device];
    part = {{"devices", report.devices}, {"figures", nlohmann::json::array()}, {"skipped", report.skipped}};
    for (const auto &figure : report.figures) {
        part["figures"].push_back({{"what", figure.what}, {"value", figure.value}, {"unit", figure.unit}});
        if (figure.flags > 0) {
            part["figures"].back()["flags"] = figure.flags;
        }
    }
}

}  // namespace

int run_link(const LinkOptions &options, const std::string &command) {
    if (options.device == "cuda" && !built_with_cuda()) {
        throw std::invalid_argument("--device cuda: this moelink-perf was built without CUDA; use --device host");
    }
    int32_t gpus = 0;
    if (options.device == "cuda" && (moelink_device_count(&gpus) != MOELINK_OK || gpus == 0)) {
        throw std::invalid_argument(fmt::format("--device cuda: no GPU is found: {}", moelink_last_error()));
    }
    if (options.gpus.size() != 2) {
        throw std::invalid_argument(fmt::format("--gpus names {} GPUs; it takes two, such as 0,1", options.gpus.size()));
    }
    check_writable(options.json);
    nlohmann::json document = document_head(command);
    const bool show = options.json != "-";
    if (options.device != "cuda") {
        const LinkReport host = measure_host_link(options);
        add(document, "host", host);
        if (show) {
            print("Host", host);
        }
    }
    if (options.device != "host") {
        const LinkReport cuda = measure_cuda_link(options);
        add(document, "cuda", cuda);
        if (show) {
            print("GPUs (GB/s are per direction; 1 GB is 10^9 bytes)", cuda);
        }
        if (options.device == "cuda" && cuda.figures.empty()) {
            throw std::runtime_error("not measured: " + (cuda.skipped.empty() ? std::string("anything") : cuda.skipped.front()));
        }
    }
    if (!options.json.empty()) {
        write_json(options.json, document);
    }
    return 0;
}

}  // namespace perf
