// The live weights of a rank's slots: made-up bytes by which every expert of every layer can be told.
#pragma once

#include <memory>
#include <vector>

#include <moelink/moelink.h>

#include "check.hpp"
#include "device.hpp"
#include "eplb_traffic.hpp"
#include "options.hpp"
#include "session.hpp"

namespace perf {

// In symmetric memory, so that peers can read them. An expert is as many tensors as the options say: three are two matrices, the second
// half as large as the first, and their scales; any other number is equal parts.
class Weights {
public:
    // Collective.
    Weights(const Session &session, const EplbOptions &options);

    int local_slots() const { return local_slots_; }
    uint64_t expert_bytes() const { return expert_bytes_; }
    // One layer's tensors, for moelink_eplb_comm_register.
    std::vector<moelink_eplb_tensor> tensors(int layer) const;
    Device &device() const { return *device_; }

    // Every slot of this rank as the map wants it; empty slots get a poison of their own.
    void write(const Map &map);
    // Compares every byte of every slot that holds an expert.
    CheckResult check(const Map &map) const;
    // Damages one byte of the first expert that this rank holds.
    void corrupt(const Map &map);
    // Copies the experts that the new map brings from other ranks to this one, from their slots there (sources [layers, slots], as
    // moelink_eplb_plan gives them) to a place beside the live rows, and nothing else. In stream order; by so many multiprocessors, or
    // with 0 by what the device copies with.
    void pull(const std::vector<int32_t> &sources, int32_t sms);
    // [bytes] that pull() copies.
    uint64_t pulled_bytes(const std::vector<int32_t> &sources) const;

private:
    int tensor_count() const { return static_cast<int>(tensor_bytes_.size()); }
    uint64_t bytes_of(int tensor) const { return tensor_bytes_[static_cast<size_t>(tensor)]; }
    uint64_t offset(int layer, int slot, int tensor) const;
    int32_t expert_in(const Map &map, int layer, int slot) const;
    bool comes_from_elsewhere(int32_t source) const { return source >= 0 && source / local_slots_ != rank_; }

    const EplbOptions &options_;
    int rank_;
    int local_slots_;
    std::vector<uint64_t> tensor_bytes_;
    uint64_t expert_bytes_;
    uint64_t slot_bytes_ = 0;  // with what lies between tensors
    uint64_t layer_bytes_ = 0;
    std::unique_ptr<Device> device_;
    std::unique_ptr<moelink_memory, MemoryCloser> memory_;
    std::vector<char *> ranks_;  // everyone's copy
    char *landing_ = nullptr;    // of pull(): a layer's slots
};

}  // namespace perf
