// Where everything lies in a two-sided workspace: what peers see, and what is this rank's own.
#pragma once

#include "kernels/two_sided.hpp"
#include "moe/config.hpp"

#include <vector>

namespace moelink {

struct FifoPlan {
    kernels::FifoLayout fifo{};  // of one slot
    int32_t max_distinct = 0;
    uint64_t table_bytes = 0;    // of one slot
    uint64_t ids_bytes = 0;      // of one slot: received ids and weights, part of table_bytes
    std::vector<uint64_t> view_offsets, view_strides;  // by payload; empty with NO_VIEWS
    uint64_t view_bytes = 0;     // of one slot

    // The tables in table_bytes of memory that begin here.
    kernels::FifoTables tables(unsigned char *memory) const;

private:
    friend FifoPlan plan_fifos(const Config &config, int ranks, bool on_cuda);
    std::vector<uint64_t> table_offsets_;
};

// Throws OUT_OF_MEMORY when the sizes do not fit 64 bits.
FifoPlan plan_fifos(const Config &config, int ranks, bool on_cuda);

moelink_manager_sizes sizes_from(const FifoPlan &plan, const Config &config);

}  // namespace moelink
