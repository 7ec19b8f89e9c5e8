#include "eplb/loads.hpp"

#include "base/error.hpp"

#include <cmath>
#include <limits>
#include <vector>

namespace moelink::eplb {

void check_loads(const double *load, int steps, int layers, int experts) {
    if (load == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "load is NULL");
    std::vector<double> sums(size_t(layers), 0.0);
    for (int step = 0; step < steps; ++step) {
        for (int layer = 0; layer < layers; ++layer) {
            for (int expert = 0; expert < experts; ++expert) {
                double value = *load++;
                if (!std::isfinite(value) || value < 0) {
                    fail(MOELINK_ERR_INVALID_ARGUMENT, "load is {} in step {}, layer {}, expert {}; it must be finite and 0 or more",
                         value, step, layer, expert);
                }
                sums[size_t(layer)] += value;
            }
        }
    }
    for (int layer = 0; layer < layers; ++layer) {
        if (sums[size_t(layer)] > double(std::numeric_limits<float>::max())) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "the loads of layer {} add up to {}; fp32, in which plans are computed, ends at {}", layer,
                 sums[size_t(layer)], std::numeric_limits<float>::max());
        }
    }
}

void round_loads(std::span<const double> load, std::span<float> out) {
    for (size_t i = 0; i < load.size(); ++i) out[i] = float(load[i]);
}

}  // namespace moelink::eplb
