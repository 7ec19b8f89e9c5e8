#include "memory/choice.hpp"

#include "base/log.hpp"

#include <algorithm>

namespace moelink {

namespace {

moelink_memory_info fresh_info(const Group &group) {
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    info.ranks = group.size();
    std::fill(std::begin(info.status), std::end(info.status), MOELINK_NOT_READY);
    return info;
}

uint64_t agree_on_granularity(Group &group, const Provider &provider, const Deadline &deadline) {
    uint64_t mine = 0;
    step(group, deadline, [&] { mine = provider.granularity(group); });
    std::vector<uint64_t> all = group.allgather(mine, deadline);  // GPUs may differ
    return *std::max_element(all.begin(), all.end());
}

constexpr uint8_t mark(int rank) { return static_cast<uint8_t>(0x5a ^ (rank * 37)); }

// Every rank writes its own copy and finds all marks through its own mapping.
void prove(Group &group, Copies &copies, const Deadline &deadline) {
    step(group, deadline, [&] { copies.fill(mark(group.rank())); });
    step(group, deadline, [&] {
        for (int rank = 0; rank < group.size(); ++rank) {
            uint8_t seen = 0;
            copies.read(rank, &seen, 1);
            if (seen != mark(rank)) {
                fail(MOELINK_ERR_UNSUPPORTED, "the mapped copy of rank {} reads {:#x} where that rank wrote {:#x}", rank, seen,
                     mark(rank));
            }
        }
    });
}

void try_granule(Group &group, const Provider &provider, uint64_t granularity, const Deadline &deadline) {
    std::unique_ptr<Copies> copies = provider.map(group, granularity, deadline);
    try {
        prove(group, *copies, deadline);
    } catch (const Refusal &) {
        retire(group, std::move(copies), deadline);
        throw;
    }
    retire(group, std::move(copies), deadline);
}

}  // namespace

void retire(Group &group, std::unique_ptr<Copies> copies, const Deadline &deadline) {
    copies->detach();
    group.barrier(deadline);
}

moelink_memory_info external_info(const Group &group, const Request &request) {
    moelink_memory_info info = fresh_info(group);
    info.provider = MOELINK_MEMORY_EXTERNAL;
    info.bytes = request.bytes;
    info.granularity = 1;
    info.tried = 1 << MOELINK_MEMORY_EXTERNAL;
    info.status[MOELINK_MEMORY_EXTERNAL] = MOELINK_OK;
    return info;
}

Choice::Choice(Group &group, const Request &request, bool all, const Deadline &deadline) : info_(fresh_info(group)) {
    for (const Provider &provider : providers()) {
        bool automatic = request.provider == MOELINK_MEMORY_AUTO && provider.device == group.device();
        bool wanted = automatic || request.provider == provider.id;
        if (wanted && (all || taken_ == nullptr)) try_one(group, provider, deadline);
    }
    if (taken_ != nullptr) info_.bytes = request.rounded(info_.granularity, group.size());
}

void Choice::try_one(Group &group, const Provider &provider, const Deadline &deadline) {
    info_.tried |= 1 << provider.id;
    if (provider.device != group.device()) {
        bool host = group.device() == MOELINK_DEVICE_HOST;
        return refuse(provider, MOELINK_ERR_UNSUPPORTED, host ? "it serves CUDA groups, and this group is on the host device"
                                                              : "it serves host groups, and this group is on CUDA");
    }
    if (provider.map == nullptr) return refuse(provider, MOELINK_ERR_UNSUPPORTED, "this library was built without CUDA");
    uint64_t granularity = 0;
    try {
        granularity = agree_on_granularity(group, provider, deadline);
        try_granule(group, provider, granularity, deadline);
    } catch (const Refusal &refusal) {
        if (refusal.status() == MOELINK_ERR_DEVICE) throw;  // nothing else will work in this context
        return refuse(provider, refusal.status(), refusal.text());
    }
    info_.status[provider.id] = MOELINK_OK;
    reasons_ += fmt::format("{}: works on every rank{}\n", provider.name, taken_ == nullptr ? "; taken" : "");
    if (taken_ != nullptr) return;
    taken_ = &provider;
    info_.provider = provider.id;
    info_.granularity = granularity;
}

void Choice::refuse(const Provider &provider, moelink_status status, const std::string &why) {
    info_.status[provider.id] = status;
    out_of_memory_ = out_of_memory_ || status == MOELINK_ERR_OUT_OF_MEMORY;
    reasons_ += fmt::format("{}: {}\n", provider.name, why);
    log(MOELINK_LOG_INFO, "memory provider {} is refused: {}", provider.name, why);
}

void Choice::fail_alike() const {
    throw Refusal(out_of_memory_ ? MOELINK_ERR_OUT_OF_MEMORY : MOELINK_ERR_UNSUPPORTED,
                  "no provider of symmetric memory works: " + one_line(reasons_));
}

std::string one_line(const std::string &lines) {
    std::string text = lines.substr(0, lines.find_last_not_of('\n') + 1);
    for (size_t at = 0; (at = text.find('\n', at)) != std::string::npos;) text.replace(at, 1, "; ");
    return text;
}

}  // namespace moelink
