// Loads as the caller gives them.
#pragma once

#include <span>

namespace moelink::eplb {

// Throws unless all loads [steps, layers, experts] are finite and 0 or more, and no layer's sum over steps and experts is above what fp32 holds.
void check_loads(const double *load, int steps, int layers, int experts);

// One layer's loads in fp32, as the published algorithm computes.
void round_loads(std::span<const double> load, std::span<float> out);

}  // namespace moelink::eplb
