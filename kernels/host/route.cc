// The choice of copies on the host: the reference of eplb/route.cu, value for value.
#include "eplb/copies.hpp"

#include <algorithm>
#include <vector>

namespace moelink::kernels::host {

namespace {

// Shares an expert's tokens out over its copies, level by level.
void fill(const RouteParams &params, const ExpertRanks &owners, int32_t expert, bool again, std::vector<int64_t> *levels) {
    const CopyTable &table = params.table;
    const int32_t begin = table.offsets[expert];
    const int32_t end = table.offsets[expert + 1];
    const int64_t amount = params.totals[expert];
    auto level = [&](int32_t copy) -> int64_t & { return (*levels)[static_cast<size_t>(owners.rank_of(table.slots[copy]))]; };
    for (int32_t copy = begin; again && copy < end; ++copy) level(copy) -= params.shares[copy];

    // A copy is below the final level when raising all lower ones to it takes less than there is.
    std::vector<bool> below(static_cast<size_t>(end - begin));
    int32_t filled = 0;
    int64_t sum = 0;
    for (int32_t copy = begin; copy < end; ++copy) {
        if (!first_on_rank(table, owners, begin, copy)) continue;
        int64_t needed = 0;
        for (int32_t other = begin; other < end; ++other) {
            if (first_on_rank(table, owners, begin, other)) needed += std::max<int64_t>(0, level(copy) - level(other));
        }
        if (needed >= amount) continue;
        below[static_cast<size_t>(copy - begin)] = true;
        filled += 1;
        sum += level(copy);
    }
    int32_t place = 0;
    for (int32_t copy = begin; copy < end; ++copy) {
        const bool takes = below[static_cast<size_t>(copy - begin)];
        params.shares[copy] = takes ? fill_share(amount, sum, filled, place++, level(copy), params.seed + static_cast<uint64_t>(expert)) : 0;
    }
    for (int32_t copy = begin; copy < end; ++copy) level(copy) += params.shares[copy];
}

void split(const RouteParams &params) {
    const CopyTable &table = params.table;
    const ExpertRanks owners(table.physical, table.ranks);
    std::vector<int64_t> levels(static_cast<size_t>(table.ranks));
    for (int32_t rank = 0; rank < table.ranks; ++rank) levels[static_cast<size_t>(rank)] = first_level(params.room, rank);
    for (int32_t expert = 0; expert < table.logical; ++expert) {
        const int32_t begin = table.offsets[expert];
        const int32_t copies = table.offsets[expert + 1] - begin;
        std::fill_n(params.shares + begin, copies, 0);
        if (copies != 1) continue;
        params.shares[begin] = params.totals[expert];
        levels[static_cast<size_t>(owners.rank_of(table.slots[begin]))] += params.totals[expert];
    }
    for (int sweep = 0; sweep < split_sweeps; ++sweep) {
        for (int32_t expert = 0; expert < table.logical; ++expert) {
            const int32_t copies = table.offsets[expert + 1] - table.offsets[expert];
            if (copies > 1 && params.totals[expert] > 0) fill(params, owners, expert, sweep > 0, &levels);
        }
    }
}

}  // namespace

void route(const RouteParams &params) {
    const CopyTable &table = params.table;
    int32_t tokens = params.tokens;
    if (params.tokens_device != nullptr) tokens = std::clamp(*params.tokens_device, 0, tokens);
    const int64_t count = int64_t{tokens} * params.top_k;
    int32_t *seen = params.segment_counts;
    if (params.policy == route_capacity) {
        std::fill_n(params.totals, table.logical, 0);
        std::fill_n(seen, table.logical, 0);
        for (int64_t i = 0; i < count; ++i) {
            if (const int32_t expert = expert_at(params, i); expert >= 0) params.totals[expert] += 1;
        }
        split(params);
    }
    for (int64_t i = 0; i < count; ++i) {
        const int32_t expert = expert_at(params, i);
        int32_t slot = -1;
        if (expert >= 0 && params.policy == route_capacity) {
            slot = slot_by_share(params, expert, seen[expert]++);
        } else if (expert >= 0) {
            const int32_t begin = table.offsets[expert];
            slot = table.slots[begin + choose_copy(params, static_cast<uint32_t>(i / params.top_k), static_cast<uint32_t>(expert),
                                                   static_cast<uint32_t>(table.offsets[expert + 1] - begin))];
        }
        write_id(params, i, slot);
        if (slot >= 0 && params.slot_counts != nullptr) params.slot_counts[slot] += 1;
    }
}

}  // namespace moelink::kernels::host
