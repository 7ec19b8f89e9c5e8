// NCCL's communicators and groups of calls, for what uses NCCL.
#pragma once

#include "driver/nccl.hpp"
#include "group/group.hpp"
#include "moe/device_memory.hpp"

namespace moelink {

// Several NCCL calls as one; closed also when one of them fails, or later calls of this thread would only be queued. Between
// construction and end() only NCCL's calls may fail: NCCL then drops the whole group, but would start what a group holds that
// is closed for another reason.
class NcclCalls {
public:
    explicit NcclCalls(NcclComm comm) : comm_(comm) { check_nccl(nccl().group_start(), "ncclGroupStart", comm_); }
    NcclCalls(const NcclCalls &) = delete;
    NcclCalls &operator=(const NcclCalls &) = delete;
    ~NcclCalls() {
        if (!ended_) nccl().group_end();
    }
    void end() {
        ended_ = true;
        check_nccl(nccl().group_end(), "ncclGroupEnd", comm_);
    }

private:
    NcclComm comm_;
    bool ended_ = false;
};

// Whether NCCL can be loaded; else why not.
moelink_status nccl_available(std::string *why);

// What NCCL is at: true when it is done, false while a call of a communicator that does not block is under way. Throws what went
// wrong, also later and elsewhere.
bool nccl_settled(NcclComm comm);

// A communicator over the ranks of the group, one rank a GPU; the caller destroys or aborts it. Without `blocking` it keeps to
// the group's deadline, and every later call may return nccl_in_progress. Collective; throws alike on all ranks.
NcclComm make_nccl_comm(Group &group, const Device &device, bool blocking);

}  // namespace moelink
