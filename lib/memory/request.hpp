// What all ranks asked for, checked and found equal.
#pragma once

#include "group/agreement.hpp"
#include "memory/memory.hpp"

#include <moelink/memory.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace moelink {

struct Request {
    int32_t provider = MOELINK_MEMORY_AUTO;
    uint64_t bytes = 0;
    uint64_t page_bytes = 0;
    std::vector<void *> external;
    Memory::Name name{};  // rank 0's

    // Rounds up to the granularity and to page_bytes; OUT_OF_MEMORY when a rank's size or all copies pass what addresses hold.
    uint64_t rounded(uint64_t granularity, int ranks) const;
};

enum class Purpose : uint32_t { create = 1, query = 2 };

// Collective. Throws alike on all ranks: INVALID_ARGUMENT naming the rank, MISMATCH naming both values and ranks.
Request agree_on_request(Group &group, const moelink_memory_params &params, Purpose purpose, const Deadline &deadline);

// Collective counterpart of agree_on_request for a rank whose arguments cannot even be read; always throws.
[[noreturn]] void refuse_request(Group &group, const Error &error, const Deadline &deadline);

}  // namespace moelink
