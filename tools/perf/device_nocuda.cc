// Stands in for the CUDA sources in a build without CUDA.
#include <stdexcept>

#include "device.hpp"
#include "link.hpp"
#include "litmus.hpp"
#include "stress_round.hpp"

namespace perf {

std::unique_ptr<Device> make_cuda_device(int, int) {
    throw std::runtime_error("this moelink-perf was built without CUDA; use --device host");
}

std::vector<LitmusFinding> run_cuda_litmus(const LitmusOptions &, std::vector<std::string> *) {
    throw std::runtime_error("this moelink-perf was built without CUDA");
}

StressSteps stress_steps_cuda() {
    throw std::runtime_error("this moelink-perf was built without CUDA; use --device host");
}

bool built_with_cuda() {
    return false;
}

LinkReport measure_cuda_link(const LinkOptions &) {
    LinkReport report;
    report.skipped.push_back("everything on GPUs: this moelink-perf was built without CUDA");
    return report;
}

double measure_push_gbps(std::string *why) {
    *why = "this moelink-perf was built without CUDA";
    return 0;
}

}  // namespace perf
