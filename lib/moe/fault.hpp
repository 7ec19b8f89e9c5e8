// What a fault that a kernel found means for the caller.
#pragma once

#include "base/guard.hpp"
#include "group/group.hpp"
#include "kernels/launch.hpp"

namespace moelink {

// Status and text of a lost round; a peer that is known to be gone explains a wait that was in vain.
Outcome describe_fault(const kernels::Fault &fault, const Group &group, uint64_t timeout_ns);

// Throws what the fault means, if it is one.
void check_fault(const kernels::Fault &fault, const Group &group, uint64_t timeout_ns);

// For host kernels: a wait is in vain once the group has a fault.
kernels::host::Watch watch_of(Group &group);

}  // namespace moelink
