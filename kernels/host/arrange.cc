// Layouts on the host: received rows by source without gaps, or by expert; and the way back.
#include "../arrange.hpp"
#include "sum.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <vector>

namespace moelink::kernels::host {

namespace {

int64_t row_of(const ArrangeParams &params, int32_t source, int32_t row) { return int64_t{source} * params.capacity + row; }

// Calls body(source, row of the source, its rank-major row) for what came, in order.
template <class Body>
void each_row(const ArrangeParams &params, Body &&body) {
    for (int32_t source = 0; source < params.ranks; ++source) {
        for (int32_t row = 0; row < params.recv_counts[source]; ++row) body(source, row, row_of(params, source, row));
    }
}

int32_t token_of(const ArrangeParams &params, int32_t row, int64_t at) {
    return params.tokens != nullptr ? params.tokens[at * params.tokens_stride] : row;
}

void tell_source(const ArrangeParams &params, int64_t row, int32_t rank, int32_t token, int32_t k) {
    int32_t *source = params.row_sources + row * 3;
    source[0] = rank;
    source[1] = token;
    source[2] = k;
}

// -1: not an expert of this rank.
int32_t place_of_id(const ArrangeParams &params, int32_t id) {
    return params.owners.rank_of(id) == params.rank ? params.owners.place_of(id, params.rank) : -1;
}

int64_t aligned(int64_t row, int32_t alignment) { return (row + alignment - 1) / alignment * alignment; }

// Counts of the local experts, and their first rows; last the end of the last one. More than 32 bits number are more than there is room for.
std::vector<int64_t> find_offsets(const ArrangeParams &params) {
    std::fill(params.expert_counts, params.expert_counts + params.local_experts, 0);
    each_row(params, [&](int32_t, int32_t, int64_t at) {
        for (int k = 0; k < params.top_k; ++k) {
            const int32_t expert = place_of_id(params, params.ids[at * params.top_k + k]);
            if (expert >= 0) ++params.expert_counts[expert];
        }
    });
    std::vector<int64_t> offsets{0};
    for (int32_t expert = 0; expert < params.local_experts; ++expert) {
        int64_t next = offsets.back();
        if (params.arrangement == arrange_expert_padded) {
            next += params.expert_rows;
        } else {
            next += aligned(params.expert_counts[expert], params.alignment);
        }
        offsets.push_back(next);
    }
    std::transform(offsets.begin(), offsets.end(), params.expert_offsets,
                   [](int64_t offset) { return static_cast<int32_t>(std::min<int64_t>(offset, INT32_MAX)); });
    return offsets;
}

void tell_host(const ArrangeParams &params, int64_t rows) {
    if (params.host_counts == nullptr) return;
    int64_t *counts = params.host_counts;
    counts[1] = rows;
    std::copy(params.recv_counts, params.recv_counts + params.ranks, counts + host_counts_head);
    if (params.arrangement >= arrange_expert_major) {
        std::copy(params.expert_counts, params.expert_counts + params.local_experts, counts + host_counts_head + params.ranks);
    }
    std::atomic_ref<int64_t>(counts[0]).store(params.number, std::memory_order_release);
}

void copy_rows(const ArrangeParams &params, int64_t to, int64_t from) {
    for (int p = 0; p < params.payload_count; ++p) {
        const ArrangePayload &payload = params.payloads[p];
        if (payload.row_bytes == 0) continue;
        unsigned char *target = payload.target + static_cast<uint64_t>(to) * payload.target_stride;
        if (from < 0) {
            std::memset(target, 0, payload.row_bytes);
        } else {
            std::memcpy(target, payload.source + static_cast<uint64_t>(from) * payload.source_stride, payload.row_bytes);
        }
    }
}

Fault overflow(int32_t expert, int64_t needed, int64_t room) { return {fault_overflow, expert, phase_dispatch, 0, needed, room}; }

Fault pack(const ArrangeParams &params) {
    int64_t next = 0;
    for (int32_t source = 0; source < params.ranks; ++source) {
        params.rank_offsets[source] = static_cast<int32_t>(next);
        next += params.recv_counts[source];
    }
    params.rank_offsets[params.ranks] = static_cast<int32_t>(next);
    tell_host(params, next);
    const int64_t room = std::min(next, params.rows);
    each_row(params, [&](int32_t source, int32_t row, int64_t at) {
        const int64_t to = params.rank_offsets[source] + row;
        if (to >= room) return;
        std::copy_n(params.ids + at * params.top_k, params.top_k, params.out_ids + to * params.top_k);
        if (params.weights != nullptr) std::copy_n(params.weights + at * params.top_k, params.top_k, params.out_weights + to * params.top_k);
        tell_source(params, to, source, token_of(params, row, at), -1);
        copy_rows(params, to, at);
    });
    std::fill(params.out_ids + room * params.top_k, params.out_ids + params.rows * params.top_k, params.invalid_id);
    std::fill(params.row_sources + room * 3, params.row_sources + params.rows * 3, -1);
    return next > params.rows ? overflow(-1, next, params.rows) : Fault{};
}

Fault by_expert(const ArrangeParams &params) {
    std::vector<int64_t> next = find_offsets(params);
    const int64_t end = next.back();
    const int64_t came = std::accumulate(params.expert_counts, params.expert_counts + params.local_experts, int64_t{0});
    tell_host(params, params.arrangement == arrange_expert_padded ? came : end);
    std::fill(params.row_from, params.row_from + params.rows, int64_t{-1});
    std::fill(params.row_sources, params.row_sources + params.rows * 3, -1);
    if (params.row_weights != nullptr) std::fill(params.row_weights, params.row_weights + params.rows, 0.0f);
    Fault fault{};
    if (params.arrangement == arrange_expert_major && end > params.rows) fault = overflow(-1, end, params.rows);
    each_row(params, [&](int32_t source, int32_t row, int64_t at) {
        for (int k = 0; k < params.top_k; ++k) {
            int64_t &place = params.places[at * params.top_k + k];
            place = -1;
            const int32_t expert = place_of_id(params, params.ids[at * params.top_k + k]);
            if (expert < 0) continue;
            const int64_t to = next[static_cast<size_t>(expert)]++;
            if (params.arrangement == arrange_expert_padded && to >= params.expert_offsets[expert + 1]) {
                fault = overflow(expert, params.expert_counts[expert], params.expert_rows);
                continue;
            }
            if (to >= params.rows) continue;
            place = to;
            params.row_from[to] = at;
            tell_source(params, to, source, token_of(params, row, at), k);
            if (params.row_weights != nullptr) params.row_weights[to] = params.weights[at * params.top_k + k];
        }
    });
    for (int64_t row = 0; row < std::min(end, params.rows); ++row) {
        if (params.row_from[row] >= 0 || params.zero_padding != 0) copy_rows(params, row, params.row_from[row]);
    }
    return fault;
}

}  // namespace

Fault arrange(const ArrangeParams &params) {
    if (params.arrangement == arrange_packed) return pack(params);
    if (params.arrangement != arrange_counts) return by_expert(params);
    int64_t rows = 0;
    for (int32_t source = 0; source < params.ranks; ++source) rows += params.recv_counts[source];
    tell_host(params, rows);
    return {};
}

void gather_experts(const GatherExperts &params) {
    const SumRows sum = best_sum_code().of(params.value_type);
    const size_t values = params.row_bytes / (params.value_type == value_f32 ? 4 : 2);
    const unsigned char *rows[max_top_k];
    float weights[max_top_k];
    for (int32_t source = 0; source < params.ranks; ++source) {
        for (int32_t row = 0; row < params.recv_counts[source]; ++row) {
            const int64_t at = int64_t{source} * params.capacity + row;
            int count = 0;
            for (int k = 0; k < params.top_k; ++k) {
                const int64_t place = params.places[at * params.top_k + k];
                if (place < 0) continue;
                if (params.weighted != 0) weights[count] = params.weights[at * params.top_k + k];
                rows[count++] = params.input + static_cast<uint64_t>(place) * params.input_stride;
            }
            if (count == 0) continue;
            sum(params.output + static_cast<uint64_t>(at) * params.row_bytes, rows, params.weighted != 0 ? weights : nullptr, count, values);
        }
    }
}

void unpack(const Unpack &params) {
    const unsigned char *from = params.input;
    for (int32_t source = 0; source < params.ranks; ++source) {
        unsigned char *to = params.output + static_cast<uint64_t>(source) * static_cast<uint64_t>(params.capacity) * params.row_bytes;
        for (int32_t row = 0; row < params.recv_counts[source]; ++row, from += params.input_stride, to += params.row_bytes) {
            std::memcpy(to, from, params.row_bytes);
        }
    }
}

void count_loads(const CountLoads &params) {
    int32_t tokens = params.tokens;
    if (params.tokens_device != nullptr) tokens = std::clamp(*params.tokens_device, 0, params.tokens);
    for (int64_t i = 0; i < int64_t{tokens} * params.top_k; ++i) {
        const int64_t id = params.ids_bytes == 8 ? static_cast<const int64_t *>(params.ids)[i] : static_cast<const int32_t *>(params.ids)[i];
        if (params.owners.rank_of(id) >= 0) ++params.counts[id];
    }
}

}  // namespace moelink::kernels::host
