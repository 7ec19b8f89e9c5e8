// A manager's configuration after its checks, and how ranks agree on one.
#pragma once

#include "base/guard.hpp"
#include "group/group.hpp"

#include <moelink/memory.h>
#include <moelink/moe.h>

#include <vector>

namespace moelink {

struct Config {
    uint32_t flags = 0;
    int32_t max_tokens = 0;
    int32_t top_k = 0;
    int32_t num_experts = 0;
    std::vector<uint64_t> payload_row_bytes;
    uint64_t combine_row_bytes = 0;
    int32_t slots = 1;
    int32_t sm_budget = 0;
    uint64_t timeout_ns = 0;
    int32_t provider = MOELINK_MEMORY_AUTO;
    uint32_t layouts = 1u << MOELINK_LAYOUT_RANK_MAJOR;
    std::vector<int32_t> expert_ranks;  // [num_experts], or empty: in order
    int64_t layout_rows = 0;
    int32_t alignment = 1;
    uint64_t fifo_bytes = 0;

    // Experts that a rank of so many owns.
    int32_t experts_of(int32_t rank, int32_t ranks) const;
};

// Checks a caller's config. Throws INVALID_ARGUMENT naming the field and its value.
Config read_config(const moelink_manager_config *given, const Group &group);

// True when a workspace for `have` serves `want`.
bool covers(const Config &have, const Config &want);

// The smallest config that covers both. Throws MISMATCH when top_k or num_experts contradict.
Config unite(const Config &have, const Config &want);

// Collective: the largest max_tokens of all ranks, everything else equal, or MISMATCH on all ranks naming both values.
// A rank that has already failed passes that outcome and all ranks throw it.
Config agree_on(Group &group, const Config &mine, const Outcome &outcome, const Deadline &deadline);

}  // namespace moelink
