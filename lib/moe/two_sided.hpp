#pragma once

#include "moe/fifo_layout.hpp"
#include "moe/peer_slots.hpp"

#include <vector>

namespace moelink {

class TwoSided : public Backend {
public:
    explicit TwoSided(const BackendParams &params);

    moelink_manager_sizes sizes() const override;
    bool has_fifos() const override { return true; }
    Received dispatch(const DispatchCall &call, moelink_stream stream) override;
    moelink_prepared prepare(const PrepareCall &call, moelink_stream stream) override;
    void alltoallv(const AlltoallvCall &call, moelink_stream stream) override;
    void combine(const CombineCall &call, moelink_stream stream) override;
    void abandon(int32_t slot, const Deadline &deadline) override;
    void reset_all(const Deadline &deadline) override;

private:
    struct Slot {
        Buffer tables, views;
        kernels::FifoWorkspace fifos{};
    };

    void allocate(const BackendParams &params);
    void reset(Slot &slot);
    // The routing's part of a call, with a new layout for the slot.
    kernels::FifoCall routing(const PrepareCall &call);
    // Adds what is sent of the tensors. quantize: of the first two.
    void add_tensors(kernels::FifoCall &call, const moelink_rows *tensors, const moelink_rows *outputs, int32_t count,
                     kernels::QuantizeForm quantize) const;
    void run(const kernels::FifoCall &call, int32_t tokens, int32_t sm_budget, moelink_stream stream);

    Ref<Group> group_;
    Device device_;
    Config config_;
    FifoPlan plan_;
    Ref<Memory> memory_;
    PeerSlots peers_;
    std::vector<Slot> slots_;
    GpuShare share_;
};

}  // namespace moelink
