#pragma once

#include "memory/memory.hpp"
#include "moe/backend.hpp"
#include "moe/layout.hpp"

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
    void choose_launch(const Deadline &deadline);
    kernels::cuda::Launch launch(int32_t tokens, int32_t sm_budget, moelink_stream stream) const;
    void check_input(const kernels::Workspace &ws, const moelink_rows &input) const;
    void check_fault(const kernels::Fault &fault) const;

    Ref<Group> group_;
    Device device_;
    Config config_;
    Faults &faults_;
    bool to_all_;
    WorkspaceLayout layout_;
    Ref<Memory> memory_;
    Buffer peers_;
    std::vector<kernels::Workspace> workspaces_;
    int blocks_ = 1;
    bool alone_ = false;  // shares its GPU with no other rank and no other slot
};

// Throws UNSUPPORTED for more ranks than a kernel addresses, and for memory of the other device.
void check_workspace(const Group &group, const Config &config);

}  // namespace moelink
