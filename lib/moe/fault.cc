#include "moe/fault.hpp"

namespace moelink {

namespace {

bool lost(void *user, kernels::Fault *fault) {
    fault->peer = -1;
    return static_cast<Group *>(user)->fault() != MOELINK_OK;
}

}  // namespace

kernels::host::Watch watch_of(Group &group) { return {&lost, &group}; }

Outcome describe_fault(const kernels::Fault &fault, const Group &group, uint64_t timeout_ns) {
    const std::string where = fmt::format("rank {}: {}", group.rank(), fault.phase == kernels::phase_combine ? "combine" : "dispatch");
    switch (fault.code) {
        case kernels::fault_mismatch:
            return {MOELINK_ERR_MISMATCH, fmt::format("{}: rank {} takes part with other row bytes, payloads or dtype", where, fault.peer)};
        case kernels::fault_pairing:
            return {MOELINK_ERR_INVALID_STATE, fmt::format("{}: replayed out of turn; dispatch and combine of a slot must alternate", where)};
        case kernels::fault_overflow:
            return {MOELINK_ERR_TOO_SMALL, fmt::format("{}: {} rows came{}, and config.layout_rows or output_rows has room for {}", where, fault.needed,
                                                       fault.peer < 0 ? "" : fmt::format(" for local expert {}", fault.peer), fault.room)};
        default: break;
    }
    std::string gone;
    if (moelink_status status = group.fault(&gone); status != MOELINK_OK) return {status, fmt::format("{}: {}", where, gone)};
    return {MOELINK_ERR_TIMEOUT, fmt::format("{}: no word from rank {} within {} ms", where, fault.peer, timeout_ns / 1000000)};
}

void check_fault(const kernels::Fault &fault, const Group &group, uint64_t timeout_ns) {
    if (fault.code == kernels::fault_none) return;
    const Outcome outcome = describe_fault(fault, group, timeout_ns);
    fail(outcome.status, "{}", outcome.text);
}

}  // namespace moelink
