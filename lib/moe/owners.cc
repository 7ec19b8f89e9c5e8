#include "moe/owners.hpp"

#include <vector>

namespace moelink {

Owners::Owners(const Device &device, const Config &config, int ranks) : ranks_(config.num_experts, ranks) {
    if (config.expert_ranks.empty()) return;
    std::vector<int32_t> tables = config.expert_ranks, next(static_cast<size_t>(ranks), 0);
    for (int32_t rank : config.expert_ranks) tables.push_back(rank < 0 ? -1 : next[static_cast<size_t>(rank)]++);
    tables_ = Buffer(device, tables.size() * sizeof(tables[0]));
    device.write(tables_.as(), tables.data(), tables.size() * sizeof(tables[0]));
    ranks_.table = tables_.as<int32_t>();
    ranks_.places = ranks_.table + config.num_experts;
}

}  // namespace moelink
