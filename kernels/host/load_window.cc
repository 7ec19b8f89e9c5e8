// The load window on the host: the reference of eplb/load_window.cu.
#include "launch.hpp"

#include <algorithm>

namespace moelink::kernels::host {

void record_load(const RecordParams &params) {
    const LoadRing &ring = params.ring;
    const ExpertRanks owners(ring.table.physical, ring.table.ranks);
    const int64_t row = static_cast<int64_t>(*ring.passes % static_cast<uint64_t>(ring.window)) * ring.layers;
    for (int32_t layer = 0; layer < ring.layers; ++layer) {
        int64_t *counts = params.counts + int64_t{layer} * ring.table.physical;
        const CopyTable table = ring.table.layer(layer);
        int64_t *logical = ring.logical + (row + layer) * table.logical;
        int64_t *ranks = ring.ranks + (row + layer) * table.ranks;
        std::fill_n(logical, table.logical, 0);
        std::fill_n(ranks, table.ranks, 0);
        for (int32_t slot = 0; slot < table.physical; ++slot) {
            if (const int32_t expert = table.phy2log[slot]; expert >= 0) {
                logical[expert] = add_counts(logical[expert], counts[slot]);
                int64_t &rank = ranks[owners.rank_of(slot)];
                rank = add_counts(rank, counts[slot]);
            }
            if (params.clear != 0) counts[slot] = 0;
        }
    }
    *ring.passes += 1;
}

void sum_load(const SumParams &params) {
    const LoadRing &ring = params.ring;
    const int64_t experts = int64_t{ring.layers} * ring.table.logical;
    const int64_t ranks = int64_t{ring.layers} * ring.table.ranks;
    const uint64_t held = std::min(*ring.passes, static_cast<uint64_t>(ring.window));
    const uint64_t oldest = *ring.passes - held;
    std::fill_n(params.out_logical, params.steps * experts, 0);
    std::fill_n(params.out_ranks, ranks, 0);
    for (int32_t step = 0; step < params.steps; ++step) {
        const uint64_t begin = held * static_cast<uint64_t>(step) / static_cast<uint64_t>(params.steps);
        const uint64_t end = held * (static_cast<uint64_t>(step) + 1) / static_cast<uint64_t>(params.steps);
        for (uint64_t pass = oldest + begin; pass < oldest + end; ++pass) {
            const auto row = static_cast<int64_t>(pass % static_cast<uint64_t>(ring.window));
            int64_t *sums = params.out_logical + step * experts;
            for (int64_t i = 0; i < experts; ++i) sums[i] = add_counts(sums[i], ring.logical[row * experts + i]);
            for (int64_t i = 0; i < ranks; ++i) params.out_ranks[i] = add_counts(params.out_ranks[i], ring.ranks[row * ranks + i]);
        }
    }
    *params.out_passes = *ring.passes;
}

}  // namespace moelink::kernels::host
