#include "moe/config.hpp"

#include "base/params.hpp"
#include "kernels/launch.hpp"

#include <algorithm>

namespace moelink {

namespace {

void check_range(const char *name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) fail(MOELINK_ERR_INVALID_ARGUMENT, "config.{} is {}, must be {} to {}", name, value, low, high);
}

// What ranks compare: fixed size, so that it travels in one allgather.
struct Wire {
    int32_t status;
    int32_t max_tokens;
    int32_t top_k;
    int32_t num_experts;
    int32_t payload_count;
    int32_t slots;
    int32_t provider;
    int32_t has_expert_ranks;
    uint32_t flags;
    uint32_t layouts;
    uint64_t expert_ranks;  // code of the table
    uint64_t combine_row_bytes;
    uint64_t fifo_bytes;
    uint64_t payload_row_bytes[MOELINK_MAX_PAYLOADS];
    char text[512];
};

constexpr uint32_t known_flags = MOELINK_MANAGER_F_NO_GROW | MOELINK_MANAGER_F_DETERMINISTIC | MOELINK_MANAGER_F_NCCL |
                                 MOELINK_MANAGER_F_NO_VIEWS | MOELINK_MANAGER_F_COUNTS;
constexpr uint32_t agreed_flags = known_flags & ~uint32_t{MOELINK_MANAGER_F_NO_GROW};

// FNV-1a.
uint64_t code_of(const std::vector<int32_t> &values) {
    uint64_t code = 14695981039346656037u;
    for (int32_t value : values) code = (code ^ static_cast<uint32_t>(value)) * 1099511628211u;
    return code;
}

std::vector<int32_t> read_expert_ranks(const moelink_manager_config &config, int ranks) {
    if (config.expert_ranks == nullptr) return {};
    std::vector<int32_t> result(config.expert_ranks, config.expert_ranks + config.num_experts);
    for (size_t expert = 0; expert < result.size(); ++expert) {
        if (result[expert] < -1 || result[expert] >= ranks) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "config.expert_ranks[{}] is {}; the group has ranks 0 to {}, and -1 is none", expert, result[expert],
                 ranks - 1);
        }
    }
    return result;
}

Wire to_wire(const Config &config, const Outcome &outcome) {
    Wire wire{};
    wire.status = outcome.status;
    wire.max_tokens = config.max_tokens;
    wire.top_k = config.top_k;
    wire.num_experts = config.num_experts;
    wire.payload_count = static_cast<int32_t>(config.payload_row_bytes.size());
    wire.slots = config.slots;
    wire.provider = config.provider;
    wire.has_expert_ranks = config.expert_ranks.empty() ? 0 : 1;
    wire.flags = config.flags & agreed_flags;
    wire.layouts = config.layouts;
    wire.expert_ranks = code_of(config.expert_ranks);
    wire.combine_row_bytes = config.combine_row_bytes;
    wire.fifo_bytes = config.fifo_bytes;
    std::copy(config.payload_row_bytes.begin(), config.payload_row_bytes.end(), wire.payload_row_bytes);
    write_text(outcome.text, wire.text, sizeof wire.text);
    return wire;
}

void check_same(const char *name, uint64_t first, uint64_t other, size_t rank) {
    if (first == other) return;
    fail(MOELINK_ERR_MISMATCH, "config.{} is {} on rank 0 and {} on rank {}; it must be the same on every rank", name, first, other, rank);
}

}  // namespace

Config read_config(const moelink_manager_config *given, const Group &group) {
    moelink_manager_config defaults = MOELINK_MANAGER_CONFIG_INIT;
    moelink_manager_config config = read_params(given, defaults, "config");
    if ((config.flags & ~known_flags) != 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "config.flags has bits that this library does not know: {:#x}", config.flags);
    }
    check_range("max_tokens", config.max_tokens, 1, 1 << 24);
    check_range("top_k", config.top_k, 1, MOELINK_MAX_TOP_K);
    check_range("num_experts", config.num_experts, 1, 1 << 24);
    check_range("payload_count", config.payload_count, 1, MOELINK_MAX_PAYLOADS);
    check_range("slots", config.slots, 0, MOELINK_MAX_SLOTS);
    check_range("sm_budget", config.sm_budget, 0, 1 << 16);
    check_range("provider", config.provider, MOELINK_MEMORY_AUTO, MOELINK_MEMORY_HOST_SHM);
    check_range("layout_rows", config.layout_rows, 0, int64_t{1} << 40);
    check_range("alignment", config.alignment, 0, 1 << 20);
    constexpr uint32_t known_layouts = (2u << MOELINK_LAYOUT_EXPERT_PADDED) - 1;
    if ((config.layouts & ~known_layouts) != 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "config.layouts has bits that are no layout of this library: {:#x}", config.layouts);
    }
    if (config.payload_row_bytes == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "config.payload_row_bytes is NULL");
    if (config.reserved != 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "config.reserved is {}, must be 0", config.reserved);
    constexpr uint64_t most_row_bytes = uint64_t{1} << 30;
    Config result;
    for (int32_t i = 0; i < config.payload_count; ++i) {
        uint64_t bytes = config.payload_row_bytes[i];
        if (bytes == 0 || bytes > most_row_bytes) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "config.payload_row_bytes[{}] is {}, must be 1 to {}", i, bytes, most_row_bytes);
        }
        result.payload_row_bytes.push_back(bytes);
    }
    if (config.combine_row_bytes > most_row_bytes) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "config.combine_row_bytes is {}, must be at most {}", config.combine_row_bytes, most_row_bytes);
    }
    result.flags = config.flags;
    result.max_tokens = config.max_tokens;
    result.top_k = config.top_k;
    result.num_experts = config.num_experts;
    result.combine_row_bytes = config.combine_row_bytes;
    result.slots = std::max(config.slots, 1);
    result.sm_budget = config.sm_budget;
    constexpr uint64_t longest = uint64_t{1} << 61;  // what clocks can be added to
    result.timeout_ns = std::min(config.timeout_ns != 0 ? config.timeout_ns : group.timeout_ns(), longest);
    result.provider = config.provider;
    result.layouts = config.layouts | 1u << MOELINK_LAYOUT_RANK_MAJOR;
    result.expert_ranks = read_expert_ranks(config, group.size());
    result.layout_rows = config.layout_rows;
    result.alignment = std::max(config.alignment, 1);
    result.fifo_bytes = config.fifo_bytes;
    return result;
}

int32_t Config::experts_of(int32_t rank, int32_t ranks) const {
    if (!expert_ranks.empty()) return static_cast<int32_t>(std::count(expert_ranks.begin(), expert_ranks.end(), rank));
    const kernels::ExpertRanks owners(num_experts, ranks);
    return owners.first_of(rank + 1) - owners.first_of(rank);
}

bool covers(const Config &have, const Config &want) {
    if (want.max_tokens > have.max_tokens || want.slots > have.slots || want.combine_row_bytes > have.combine_row_bytes) return false;
    if ((want.layouts & ~have.layouts) != 0 || want.alignment > have.alignment) return false;
    // 0 rows: as many as can come.
    if (have.layout_rows != 0 && (want.layout_rows == 0 || want.layout_rows > have.layout_rows)) return false;
    if ((want.flags ^ have.flags) & agreed_flags) return false;
    if (want.payload_row_bytes.size() > have.payload_row_bytes.size()) return false;
    for (size_t i = 0; i < want.payload_row_bytes.size(); ++i) {
        if (want.payload_row_bytes[i] > have.payload_row_bytes[i]) return false;
    }
    return true;
}

Config unite(const Config &have, const Config &want) {
    if (have.top_k != want.top_k) {
        fail(MOELINK_ERR_MISMATCH, "config.top_k is {} and the workspace was made for {}; reinit, or use another manager", want.top_k, have.top_k);
    }
    if (have.num_experts != want.num_experts) {
        fail(MOELINK_ERR_MISMATCH, "config.num_experts is {} and the workspace was made for {}; reinit, or use another manager",
             want.num_experts, have.num_experts);
    }
    if (have.expert_ranks != want.expert_ranks) {
        fail(MOELINK_ERR_MISMATCH, "config.expert_ranks is not what the workspace was made for; reinit, or use another manager");
    }
    Config result = want;
    if (result.fifo_bytes == 0) result.fifo_bytes = have.fifo_bytes;
    result.layouts |= have.layouts;
    result.alignment = std::max(have.alignment, want.alignment);
    result.layout_rows = have.layout_rows == 0 || want.layout_rows == 0 ? 0 : std::max(have.layout_rows, want.layout_rows);
    result.max_tokens = std::max(have.max_tokens, want.max_tokens);
    result.slots = std::max(have.slots, want.slots);
    result.combine_row_bytes = std::max(have.combine_row_bytes, want.combine_row_bytes);
    result.payload_row_bytes.resize(std::max(have.payload_row_bytes.size(), want.payload_row_bytes.size()), 0);
    for (size_t i = 0; i < have.payload_row_bytes.size(); ++i) {
        result.payload_row_bytes[i] = std::max(result.payload_row_bytes[i], have.payload_row_bytes[i]);
    }
    return result;
}

Config agree_on(Group &group, const Config &mine, const Outcome &outcome, const Deadline &deadline) {
    std::vector<Wire> all = group.allgather(to_wire(mine, outcome), deadline);
    for (size_t rank = 0; rank < all.size(); ++rank) {
        if (all[rank].status == MOELINK_OK) continue;
        if (static_cast<int>(rank) == group.rank()) fail(all[rank].status, "{}", all[rank].text);
        fail(all[rank].status, "rank {}: {}", rank, all[rank].text);
    }
    Config result = mine;
    const Wire &first = all.front();
    for (size_t rank = 1; rank < all.size(); ++rank) {
        const Wire &other = all[rank];
        auto same = [&](const char *name, auto a, auto b) { check_same(name, static_cast<uint64_t>(a), static_cast<uint64_t>(b), rank); };
        same("top_k", first.top_k, other.top_k);
        same("num_experts", first.num_experts, other.num_experts);
        same("payload_count", first.payload_count, other.payload_count);
        for (int32_t i = 0; i < first.payload_count; ++i) {
            same("payload_row_bytes", first.payload_row_bytes[i], other.payload_row_bytes[i]);
        }
        same("combine_row_bytes", first.combine_row_bytes, other.combine_row_bytes);
        same("fifo_bytes", first.fifo_bytes, other.fifo_bytes);
        same("slots", first.slots, other.slots);
        same("provider", first.provider, other.provider);
        same("flags", first.flags, other.flags);
        same("layouts", first.layouts, other.layouts);
        if (first.has_expert_ranks != other.has_expert_ranks || first.expert_ranks != other.expert_ranks) {
            fail(MOELINK_ERR_MISMATCH, "config.expert_ranks of rank 0 and of rank {} differ; it must be the same on every rank", rank);
        }
    }
    for (const Wire &wire : all) result.max_tokens = std::max(result.max_tokens, wire.max_tokens);
    return result;
}

}  // namespace moelink
