// What the kinds whose kernels work over a symmetric workspace have in common: its slots as kernels address them, and how many blocks may
// wait at once.
#pragma once

#include "memory/memory.hpp"
#include "moe/backend.hpp"

namespace moelink {

// Throws UNSUPPORTED for more ranks than a kernel addresses, and for memory of the other device.
void check_workspace(const Group &group, const Config &config);

// `slot_bytes` of every slot lie one behind the other in each rank's memory.
class PeerSlots {
public:
    PeerSlots() = default;
    // Throws OUT_OF_MEMORY.
    PeerSlots(const BackendParams &params, const Memory &memory, uint64_t slot_bytes);

    // Ranks, owners, sizes of the config, faults and addresses of one slot; max_distinct, packets and layout are the kind's.
    kernels::Workspace workspace(const BackendParams &params, size_t slot) const;

private:
    std::vector<unsigned char *> peers_;  // [slots, ranks]
    Buffer device_peers_;                 // the same
};

// Ranks that share a GPU, and rounds in flight in several slots, share its multiprocessors, so that the waiting blocks of all of
// them fit at once. A block that takes its place early would keep others from theirs, so that is for those who share with nobody.
class GpuShare {
public:
    GpuShare() = default;
    // Collective.
    GpuShare(Group &group, const Device &device, const Config &config, const Deadline &deadline);

    // `sm_budget`: of the call; 0: the config's.
    kernels::cuda::Launch launch(int32_t tokens, int32_t sm_budget, moelink_stream stream) const;

private:
    int32_t sm_budget_ = 0;
    int blocks_ = 1;
    bool alone_ = false;  // shares its GPU with no other rank and no other slot
};

}  // namespace moelink
