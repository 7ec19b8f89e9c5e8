// Who owns which expert, as kernels read it.
#pragma once

#include "moe/config.hpp"
#include "moe/device_memory.hpp"

namespace moelink {

class Owners {
public:
    Owners() = default;
    // Throws OUT_OF_MEMORY.
    Owners(const Device &device, const Config &config, int ranks);

    const kernels::ExpertRanks &ranks() const { return ranks_; }

private:
    Buffer tables_;  // each expert's rank, then each one's place among its rank's experts; empty where they are in order
    kernels::ExpertRanks ranks_{};
};

}  // namespace moelink
