// What host and CUDA compute alike when they choose copies of experts.
#pragma once

#include "launch.hpp"

namespace moelink::kernels {

// Times that the experts with copies are filled, each seeing what the others did. With three the balance of ranks comes to within
// about a percent of what many more reach (lognormal loads, 8 to 64 ranks).
inline constexpr int split_sweeps = 3;

inline constexpr int64_t most_room = int64_t{1} << 40;

// The copy that a token takes where nothing is counted. Source of the mixing: splitmix64's finalizer.
MOELINK_BOTH inline int32_t choose_copy(const RouteParams &params, uint32_t token, int32_t expert) {
    const auto copies = static_cast<uint32_t>(params.table.copies(expert));
    if (copies == 1) return 0;
    if (params.policy == route_round_robin) return static_cast<int32_t>((static_cast<uint32_t>(params.seed) + token) % copies);
    uint64_t x = params.seed + 0x9E3779B97F4A7C15u * ((static_cast<uint64_t>(expert) << 32 | token) + 1);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
    return static_cast<int32_t>((x >> 32) * copies >> 32);
}

MOELINK_BOTH inline int64_t read_id(const RouteParams &params, int64_t index) {
    return params.ids_bytes == 8 ? static_cast<const int64_t *>(params.ids)[index] : static_cast<const int32_t *>(params.ids)[index];
}

MOELINK_BOTH inline void write_id(const RouteParams &params, int64_t index, int32_t id) {
    if (params.ids_bytes == 8) {
        static_cast<int64_t *>(params.out_ids)[index] = id;
    } else {
        static_cast<int32_t *>(params.out_ids)[index] = id;
    }
}

// The logical expert at an index, or -1 where there is none or it has no copy.
MOELINK_BOTH inline int32_t expert_at(const RouteParams &params, int64_t index) {
    const int64_t id = read_id(params, index);
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(params.table.logical)) return -1;
    return params.table.copies(static_cast<int32_t>(id)) > 0 ? static_cast<int32_t>(id) : -1;
}

// The slot of an expert's n-th token of the batch, by the shares of its copies.
MOELINK_BOTH inline int32_t slot_by_share(const RouteParams &params, int32_t expert, int32_t n) {
    int32_t copy = params.table.offsets[expert];
    while (n >= params.shares[copy]) n -= params.shares[copy++];
    return params.table.slots[copy];
}

// Load that a rank begins a batch with: the less, the more room it has.
MOELINK_BOTH inline int64_t first_level(const int64_t *room, int32_t rank) {
    if (room == nullptr) return 0;
    return room[rank] > most_room ? -most_room : room[rank] < -most_room ? most_room : -room[rank];
}

// Two copies of an expert on one rank are one place to send tokens to: the first of them stands for both.
MOELINK_BOTH inline bool first_on_rank(const CopyTable &table, const ExpertRanks &owners, int32_t first_copy, int32_t copy) {
    return copy == first_copy || owners.rank_of(table.slots[copy]) != owners.rank_of(table.slots[copy - 1]);
}

// Water-filling: `amount` tokens raise the lowest levels to one level. The `filled` copies below it hold `sum` already; copy
// number `place` of them, at `level`, gets this. What does not divide goes to copies in turn, from one that the seed names.
MOELINK_BOTH inline int32_t fill_share(int64_t amount, int64_t sum, int32_t filled, int32_t place, int64_t level, uint64_t turn) {
    const int64_t all = amount + sum;
    int64_t each = all / filled;
    int64_t rest = all % filled;
    if (rest < 0) {
        rest += filled;
        each -= 1;
    }
    const int64_t after = (place + filled - static_cast<int64_t>(turn % static_cast<uint64_t>(filled))) % filled;
    return static_cast<int32_t>(each - level + (after < rest ? 1 : 0));
}

}  // namespace moelink::kernels
