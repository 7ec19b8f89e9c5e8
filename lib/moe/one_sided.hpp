#pragma once

#include "moe/layout.hpp"
#include "moe/peer_slots.hpp"

#include <vector>

namespace moelink {

class OneSided : public Backend {
public:
    // to_all: every rank receives every token.
    OneSided(const BackendParams &params, bool to_all);

    moelink_manager_sizes sizes() const override;
    bool halves() const override { return true; }
    Received dispatch(const DispatchCall &call, moelink_stream stream) override;
    void combine(const CombineCall &call, moelink_stream stream) override;
    void abandon(int32_t slot, const Deadline &deadline) override;

private:
    void prepare(const BackendParams &params);
    kernels::cuda::Result load_kernels() const;
    void reset(size_t slot);
    void check_input(const kernels::Workspace &ws, const moelink_rows &input) const;

    Ref<Group> group_;
    Device device_;
    Config config_;
    bool to_all_;
    WorkspaceLayout layout_;
    Ref<Memory> memory_;
    PeerSlots peers_;
    std::vector<kernels::Workspace> workspaces_;
    GpuShare share_;
};

}  // namespace moelink
