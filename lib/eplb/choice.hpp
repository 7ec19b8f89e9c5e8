// Which of a trail's states to take: gain against cost.
#pragma once

#include "eplb/improve.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moelink::eplb {

// The state at the end of the best bargains: from the first on, as long as some other state lowers the time by at least `worth` for each
// unit of cost.
size_t choose(const std::vector<Option> &options, double worth);

// One state of each layer, so that all copies together stay within a budget: the best bargains of all layers first. Every layer's
// first state is taken in any case.
std::vector<size_t> choose_within(const std::vector<const std::vector<Option> *> &layers, int64_t budget);

}  // namespace moelink::eplb
