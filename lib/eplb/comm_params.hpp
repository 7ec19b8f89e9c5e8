// Parameters of a communicator, the choice of its kind, and what it would take.
#pragma once

#include "base/guard.hpp"
#include "eplb/comm_backend.hpp"

namespace moelink::eplb {

// Checked, with defaults filled in.
moelink_eplb_comm_params read_comm_params(const moelink_eplb_comm_params *given, const Group &group);

// What params.sm_budget means for a kind. Throws where it asks for what there is not.
SmBudget read_sm_budget(const moelink_eplb_comm_params &params, int32_t kind, const Device &device);

// Throws unless the kind exists and this machine can run it on the device; AUTO always exists.
void require_comm_kind(int32_t kind, int32_t device);

// What this rank alone would choose and take.
moelink_eplb_comm_info query_comm(const Group &group, int32_t kind, const moelink_eplb_comm_params &params, uint64_t expert_bytes,
                                  std::string *why);

// What all ranks can use, found out together.
struct CommChoice {
    const CommKind *row;
    std::vector<ProcessPlace> places;
    std::string why;
    uint64_t generation;  // the largest of all ranks
};
// Collective over the communicator's own group; throws alike on all ranks. A rank whose params are bad gives the outcome.
CommChoice agree_on_comm(Group &group, int32_t kind, const moelink_eplb_comm_params &params, uint64_t generation,
                         const Outcome &outcome, const Deadline &deadline);

}  // namespace moelink::eplb
