#include "memory/request.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include <sodium.h>

namespace moelink {

namespace {

// What travels; every rank sends one, whatever became of its arguments.
struct Wire {
    int32_t status;
    int32_t provider;
    uint64_t bytes;
    uint64_t page_bytes;
    uint32_t purpose;
    uint32_t reserved;
    Memory::Name name;
};

Request read_request(const Group &group, const moelink_memory_params &params) {
    if (params.provider < 0 || params.provider >= MOELINK_MEMORY_PROVIDERS) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "provider is {}, not one of 0 to {}", params.provider, MOELINK_MEMORY_PROVIDERS - 1);
    }
    if (params.bytes == 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "bytes is 0");
    if (params.page_bytes != 0 && !std::has_single_bit(params.page_bytes)) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "page_bytes is {}, neither 0 nor a power of two", params.page_bytes);
    }
    Request request{params.provider, params.bytes, params.page_bytes, {}, {}};
    if (params.provider != MOELINK_MEMORY_EXTERNAL) {
        if (params.external != nullptr) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "external addresses are given, but the provider is {}",
                 moelink_provider_name(params.provider));
        }
        return request;
    }
    if (params.external == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "the provider is external, but external is NULL");
    request.external.assign(params.external, params.external + group.size());
    for (int rank = 0; rank < group.size(); ++rank) {
        auto address = reinterpret_cast<uintptr_t>(request.external[static_cast<size_t>(rank)]);
        if (address == 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "external[{}] is NULL", rank);
        if (params.bytes > std::numeric_limits<uintptr_t>::max() - address) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "external[{}] and {} bytes pass the end of the address space", rank, params.bytes);
        }
    }
    return request;
}

std::vector<Wire> exchange(Group &group, const Wire &mine, const std::string &text, const Deadline &deadline) {
    std::vector<Wire> all = group.allgather(mine, deadline);
    bool failed = std::any_of(all.begin(), all.end(), [](const Wire &wire) { return wire.status != MOELINK_OK; });
    if (failed) settle(group, {mine.status, text}, deadline);
    return all;
}

// Where a rank differs from rank 0.
template <class T>
void require_equal(const std::vector<Wire> &all, const char *name, T Wire::*member) {
    for (size_t rank = 1; rank < all.size(); ++rank) {
        if (all[rank].*member == all[0].*member) continue;
        throw Refusal(MOELINK_ERR_MISMATCH,
                      fmt::format("{} is {} on rank 0 and {} on rank {}", name, all[0].*member, all[rank].*member, rank));
    }
}

}  // namespace

uint64_t Request::rounded(uint64_t granularity, int ranks) const {
    uint64_t unit = std::max(granularity, page_bytes);
    constexpr uint64_t most = std::numeric_limits<uint64_t>::max();
    if (bytes > most - (unit - 1)) {
        fail(MOELINK_ERR_OUT_OF_MEMORY, "{} bytes, rounded up to {}, do not fit in 64 bits", bytes, unit);
    }
    uint64_t result = (bytes + unit - 1) / unit * unit;
    if (result > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / static_cast<uint64_t>(ranks)) {
        fail(MOELINK_ERR_OUT_OF_MEMORY, "{} ranks of {} bytes do not fit in the address space", ranks, result);
    }
    return result;
}

Request agree_on_request(Group &group, const moelink_memory_params &params, Purpose purpose, const Deadline &deadline) {
    Request request;
    Wire mine{MOELINK_OK, params.provider, params.bytes, params.page_bytes, static_cast<uint32_t>(purpose), 0, {}};
    std::string text;
    try {
        request = read_request(group, params);
        if (sodium_init() < 0) fail(MOELINK_ERR_INTERNAL, "libsodium cannot be initialised");
        randombytes_buf(mine.name.data(), mine.name.size());
    } catch (const Error &error) {
        mine.status = error.status();
        text = error.text();
    }
    std::vector<Wire> all = exchange(group, mine, text, deadline);
    require_equal(all, "the call (1: create, 2: query)", &Wire::purpose);
    require_equal(all, "provider", &Wire::provider);
    require_equal(all, "bytes", &Wire::bytes);
    require_equal(all, "page_bytes", &Wire::page_bytes);
    request.name = all[0].name;
    return request;
}

void refuse_request(Group &group, const Error &error, const Deadline &deadline) {
    exchange(group, Wire{error.status(), 0, 0, 0, 0, 0, {}}, error.text(), deadline);
    throw error;
}

}  // namespace moelink
