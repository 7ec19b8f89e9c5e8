#include "eplb/comm_params.hpp"

#include "base/guard.hpp"
#include "base/params.hpp"
#include "group/agreement.hpp"

#include <algorithm>

namespace moelink::eplb {

namespace {

constexpr uint64_t default_chunk = 1 << 20;
// Where the library chooses: what keeps the link busy with small tensors, and what fills slots in the time that the link takes to bring
// as many experts, without the copy engines, which would bring less meanwhile (docs/measurements.md).
constexpr int32_t default_from_peers = 16, default_inside = 32, default_alone = 128;
constexpr uint32_t known_flags =
    MOELINK_EPLB_COMM_F_DIRECT | MOELINK_EPLB_COMM_F_CHECKSUM | MOELINK_EPLB_COMM_F_ASYNC | MOELINK_EPLB_COMM_F_NO_MAP;

// What a rank tells the others.
struct Card {
    ProcessPlace place;
    int32_t kind;
    uint32_t flags;
    int32_t staging_experts;
    uint32_t usable;  // bit 1 << kind
    uint64_t chunk_bytes;
    uint64_t generation;
    int32_t has_nccl;
    int32_t reserved;
};

uint32_t usable_here(int32_t device, const moelink_eplb_comm_params &params, std::string *why) {
    uint32_t usable = 0;
    for (int32_t kind = 1; kind < MOELINK_EPLB_COMM_KINDS; ++kind) {
        const CommKind *row = find_comm_kind(kind);
        if (row == nullptr) continue;
        std::string reason;
        moelink_status status = row->available(device, &reason);
        if (kind == MOELINK_EPLB_COMM_NCCL && status == MOELINK_OK && params.nccl_comm == nullptr) {
            status = MOELINK_ERR_INVALID_ARGUMENT;
            reason = "params.nccl_comm is NULL";
        }
        if (status == MOELINK_OK) {
            usable |= 1u << kind;
        } else {
            *why += fmt::format("{}: {}\n", row->name, reason);
        }
    }
    return usable;
}

template <class T>
void require_equal(const std::vector<Card> &cards, const char *name, T Card::*member) {
    for (size_t rank = 1; rank < cards.size(); ++rank) {
        if (cards[rank].*member == cards[0].*member) continue;
        throw Refusal(MOELINK_ERR_MISMATCH,
                      fmt::format("{} is {} on rank 0 and {} on rank {}", name, cards[0].*member, cards[rank].*member, rank));
    }
}

bool on_one_host(const std::vector<ProcessPlace> &places) {
    return std::all_of(places.begin(), places.end(), [&](const ProcessPlace &place) { return may_share_host(place, places[0]); });
}

}  // namespace

moelink_eplb_comm_params read_comm_params(const moelink_eplb_comm_params *given, const Group &group) {
    const moelink_eplb_comm_params defaults = MOELINK_EPLB_COMM_PARAMS_INIT;
    moelink_eplb_comm_params params = read_params(given, defaults, "params");
    if ((params.flags & ~known_flags) != 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "params.flags is {:#x}; this library knows {:#x}", params.flags, known_flags);
    }
    if (params.staging_experts < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "params.staging_experts is {}", params.staging_experts);
    if (params.staging_experts == 0) params.staging_experts = 4;
    if ((params.flags & MOELINK_EPLB_COMM_F_DIRECT) != 0) params.staging_experts = 0;
    if (params.sm_budget < -1) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.sm_budget is {}, neither -1, 0 nor a number of multiprocessors", params.sm_budget);
    }
    if (params.chunk_bytes == 0) params.chunk_bytes = default_chunk;
    if (params.chunk_bytes < 4096 || params.chunk_bytes > uint64_t{1} << 30) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.chunk_bytes is {}, not in 4096 .. 2^30", params.chunk_bytes);
    }
    if (params.timeout_ns == 0) params.timeout_ns = group.timeout_ns();
    return params;
}

SmBudget read_sm_budget(const moelink_eplb_comm_params &params, int32_t kind, const Device &device) {
    const int32_t budget = params.sm_budget;
    if (budget > 0 && !device.on_cuda()) fail(MOELINK_ERR_INVALID_ARGUMENT, "params.sm_budget is {}, and the group is on the host", budget);
    if (budget > 0 && kind != MOELINK_EPLB_COMM_READ) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "params.sm_budget is {}, and {} copies no rows by multiprocessors; read does", budget,
             find_comm_kind(kind)->name);
    }
    // A model that runs meanwhile has kernels that hold their multiprocessors while they wait for peers.
    const bool beside_model = (params.flags & MOELINK_EPLB_COMM_F_ASYNC) != 0;
    if (!device.on_cuda() || kind != MOELINK_EPLB_COMM_READ || budget == -1 || (budget == 0 && beside_model)) return {};
    const int32_t most = device.multiprocessors();
    if (budget > most) fail(MOELINK_ERR_INVALID_ARGUMENT, "params.sm_budget is {}, and the device has {} multiprocessors", budget, most);
    if (budget > 0) return {budget, budget, budget, budget};
    return {budget, std::min(default_from_peers, most), std::min(default_inside, most), std::min(default_alone, most)};
}

void require_comm_kind(int32_t kind, int32_t device) {
    if (kind == MOELINK_EPLB_COMM_AUTO) return;
    const CommKind *row = find_comm_kind(kind);
    if (row == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "there is no communicator kind {}", kind);
    std::string why;
    const moelink_status status = row->available(device, &why);
    if (status != MOELINK_OK) fail(status, "{}: {}", row->name, why);
}

moelink_eplb_comm_info query_comm(const Group &group, int32_t kind, const moelink_eplb_comm_params &params, uint64_t expert_bytes,
                                  std::string *why) {
    require_comm_kind(kind, group.device());
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    info.kind = kind;
    *why = "asked for by name\n";
    if (kind == MOELINK_EPLB_COMM_AUTO) {
        std::string refused;
        std::string reason;
        // Whether all ranks share a host shows only when they meet; the common case is taken.
        info.kind = choose_comm_kind(usable_here(group.device(), params, &refused), group.device(), true, params, &reason);
        *why = fmt::format("{}: {}\n{}", find_comm_kind(info.kind)->name, reason, refused);
    }
    const CommKind *row = find_comm_kind(info.kind);
    info.ranks = group.size();
    info.staging_experts = params.staging_experts;
    if (params.staging_experts > 0 && expert_bytes > UINT64_MAX / static_cast<uint64_t>(params.staging_experts)) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "{} experts of {} bytes do not fit in 64 bits", params.staging_experts, expert_bytes);
    }
    info.staging_bytes = static_cast<uint64_t>(params.staging_experts) * expert_bytes;
    info.host_bytes = row->host_bytes(group.device(), params);
    read_sm_budget(params, info.kind, Device(group)).describe(info);
    return info;
}

CommChoice agree_on_comm(Group &group, int32_t kind, const moelink_eplb_comm_params &params, uint64_t generation,
                         const Outcome &outcome, const Deadline &deadline) {
    settle(group, outcome, deadline);
    std::string refused;
    Card card{};
    step(group, deadline, [&] {
        card.place = process_place();
        card.kind = kind;
        card.flags = params.flags;
        card.staging_experts = params.staging_experts;
        card.usable = usable_here(group.device(), params, &refused);
        card.chunk_bytes = params.chunk_bytes;
        card.generation = generation;
        card.has_nccl = params.nccl_comm != nullptr ? 1 : 0;
    });
    const std::vector<Card> cards = group.allgather(card, deadline);
    require_equal(cards, "kind", &Card::kind);
    require_equal(cards, "params.flags", &Card::flags);
    require_equal(cards, "params.staging_experts", &Card::staging_experts);
    require_equal(cards, "params.chunk_bytes", &Card::chunk_bytes);
    if (kind == MOELINK_EPLB_COMM_NCCL) require_equal(cards, "params.nccl_comm (0: NULL)", &Card::has_nccl);
    CommChoice choice{};
    uint32_t usable = ~0u;
    for (const Card &one : cards) {
        usable &= one.usable;
        choice.generation = std::max(choice.generation, one.generation);
        choice.places.push_back(one.place);
    }
    int32_t chosen = kind;
    if (kind == MOELINK_EPLB_COMM_AUTO) {
        chosen = choose_comm_kind(usable, group.device(), on_one_host(choice.places), params, &choice.why);
        choice.why = fmt::format("{}: {}\n{}", find_comm_kind(chosen)->name, choice.why, refused);
    } else {
        step(group, deadline, [&] {
            if ((card.usable >> kind & 1) == 0) fail(MOELINK_ERR_UNSUPPORTED, "{}", refused);
        });
        choice.why = "asked for by name\n";
    }
    choice.row = find_comm_kind(chosen);
    return choice;
}

}  // namespace moelink::eplb
