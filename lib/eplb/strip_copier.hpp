// Copies of experts' rows on CUDA: by the copy engines, one call a strip, or by multiprocessors, many strips a launch.
#pragma once

#include "eplb/strips.hpp"

#include <moelink/eplb_comm.h>

#include <algorithm>
#include <span>
#include <string>

namespace moelink::eplb {

// Who copies rows.
struct SmBudget {
    int32_t sm_budget = -1;  // as in moelink_eplb_comm_params, where that is used; else -1
    int32_t from_peers = 0;  // multiprocessors that read peers' rows when any do; 0 with -1
    int32_t inside = 0;      // that copy rows from one place of the device to another; 0 with -1
    int32_t alone = 0;       // the same while nothing comes from peers; 0 with -1
    // At once.
    int32_t most() const { return std::max({from_peers, inside, alone}); }
    void describe(moelink_eplb_comm_info &info) const;
};

struct ExpertCopy {
    Strips to;
    Strips from;             // equal rows and row_bytes
    bool inside = true;      // from and to are on this device
    bool by_kernels = true;  // its kernels reach the rows
};

// Whether copies that are all made at once are of more than one strip, and of small ones: rows at a stride are each one.
bool many_small_strips(std::span<const ExpertCopy> copies);

class StripCopier {
public:
    // Throws when the kernel cannot be loaded.
    StripCopier(const Device &device, SmBudget budget);

    // Of the copies none writes what another reads or writes, and all are inside or none. Stream-ordered; on the host device
    // done on return. alone: nothing comes from peers meanwhile.
    void copy(std::span<const ExpertCopy> copies, moelink_stream stream, bool alone);

    const SmBudget &budget() const { return budget_; }
    std::string describe() const;

    uint64_t copies_by_sms = 0;  // of experts
    uint64_t reads_by_sms = 0;   // those of them from peers

private:
    // Multiprocessors for these; 0: the copy engines.
    int32_t sms_for(std::span<const ExpertCopy> copies, bool alone) const;

    const Device &device_;
    const SmBudget budget_;
};

}  // namespace moelink::eplb
