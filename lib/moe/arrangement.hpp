// Layouts of received rows, the same for every kind of manager: what a back end received rank by rank is put in order here, and brought
// back before its combine. Also the counts that the host may ask for.
#pragma once

#include "kernels/arrange.hpp"
#include "moe/backend.hpp"
#include "moe/owners.hpp"

#include <vector>

namespace moelink {

// What a dispatch says about its rows, beyond what a back end does.
struct Arranged {
    std::array<moelink_rows, MOELINK_MAX_PAYLOADS> payloads{};
    int64_t rows = 0;  // of each output
    int32_t *topk_ids = nullptr;
    float *topk_weights = nullptr;
    const int32_t *rank_offsets = nullptr;
    const int32_t *expert_counts = nullptr;
    const int32_t *expert_offsets = nullptr;
    const int32_t *row_sources = nullptr;
    const float *row_weights = nullptr;
};

// Of one slot.
class Arrangement {
public:
    struct Sizes {
        int64_t rows = 0;  // the most of its layouts' views
        uint64_t bytes = 0;
    };

    // Throws OUT_OF_MEMORY.
    Arrangement(const Device &device, const Config &config, const kernels::ExpertRanks &owners, int rank, int ranks, Faults &faults, uint64_t generation);
    Arrangement(const Arrangement &) = delete;
    Arrangement &operator=(const Arrangement &) = delete;

    // Of one slot. Throws OUT_OF_MEMORY for what does not fit 64 bits, INVALID_ARGUMENT for rows that 32-bit offsets cannot number.
    static Sizes sizes(const Config &config, int rank, int ranks);

    // Whether there is anything to do for a dispatch.
    bool works_on(const DispatchCall &call) const;
    // Where everything of a dispatch will be. Its payloads are what the back end was told to receive as views.
    Arranged prepare(const DispatchCall &call, const Received &received);
    // The rows of a dispatch were lost before prepare was told of it: its counts never come.
    void miss() { ++params_.number; }
    // Puts in order what prepare was told of. More rows than room: a fault, on the host at once, on CUDA reported as kernels do.
    kernels::Fault arrange(moelink_stream stream) const;
    // Brings the input of a combine back into the order in which its rows came.
    void restore(CombineCall &call, moelink_stream stream) const;

    // Whether the counts of the last dispatch are there, and what they are then. Throws INVALID_STATE when none will come.
    bool told() const;
    void counts(int64_t *rank_rows, int64_t *expert_rows, int64_t *rows) const;

    const kernels::Entry &entry() const { return params_.entry; }
    int32_t local_experts() const { return local_experts_; }

private:
    int64_t rows_of(int32_t layout, int64_t output_rows) const;

    Device device_;
    int ranks_ = 0;
    int32_t capacity_ = 0, local_experts_ = 0;
    int64_t layout_rows_ = 0;  // of a view
    bool tells_counts_ = false;
    kernels::ArrangeParams params_{};
    Buffer rank_offsets_, expert_counts_, expert_offsets_, row_sources_, row_weights_, ids_, weights_;
    Buffer row_from_, places_, segment_counts_, finished_;
    Buffer scratch_;             // rank-major rows of a combine
    std::vector<Buffer> views_;  // of each payload
    std::vector<uint64_t> strides_;
    PinnedBuffer host_counts_;
};

// Adds the experts that a dispatch's tokens name to its load_counts.
void count_loads(const Device &device, const kernels::ExpertRanks &owners, const kernels::Entry &entry, int32_t top_k,
                 const moelink_dispatch_args &args, moelink_stream stream);

}  // namespace moelink
