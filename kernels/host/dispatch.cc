// Push dispatch on the host: every row once into every distinct rank's plane, then one word a rank that announces them.
#include "signal.hpp"
#include "token_rows.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace moelink::kernels::host {

namespace {

struct Destination {
    int32_t rank;
    int32_t distinct;  // -1: the rank only gathers
};

// One token at a time: who owns its experts, and so where it goes.
class Router {
public:
    explicit Router(const DispatchParams &params)
        : params_(params), owners_(params.workspace.owners), is_owner_(static_cast<size_t>(params.workspace.ranks)) {
        to_.reserve(static_cast<size_t>(params.workspace.ranks));
    }

    // Returns the number of distinct ranks that own an expert of the token.
    int32_t route(int64_t token) {
        const int top_k = params_.workspace.top_k;
        to_.clear();
        if (params_.spread == spread_no_routing) {
            for (int32_t rank = 0; rank < params_.workspace.ranks; ++rank) to_.push_back({rank, rank});
            std::fill_n(ranks_, top_k, -1);
            return params_.workspace.ranks;
        }
        for (int k = 0; k < top_k; ++k) {
            const int64_t id = id_of(token, k);
            ids_[k] = static_cast<int32_t>(id);
            ranks_[k] = owners_.rank_of(id);
            if (ranks_[k] < 0 || is_owner_[static_cast<size_t>(ranks_[k])]) continue;
            is_owner_[static_cast<size_t>(ranks_[k])] = 1;
            to_.push_back({ranks_[k], 0});
        }
        std::sort(to_.begin(), to_.end(), [](const Destination &a, const Destination &b) { return a.rank < b.rank; });
        const auto distinct = static_cast<int32_t>(to_.size());
        for (int32_t i = 0; i < distinct; ++i) to_[static_cast<size_t>(i)].distinct = i;
        if (params_.spread == spread_all) add_the_rest();
        for (int k = 0; k < top_k; ++k) {
            if (ranks_[k] >= 0) is_owner_[static_cast<size_t>(ranks_[k])] = 0;
        }
        return distinct;
    }

    // The routed token's destinations; those that own one of its experts come in rank order and are numbered from 0.
    const std::vector<Destination> &to() const { return to_; }
    // -1: no rank.
    int32_t rank(int k) const { return ranks_[k]; }
    // Of an expert that a rank owns.
    int32_t id(int k) const { return ids_[k]; }

private:
    int64_t id_of(int64_t token, int k) const {
        const int64_t index = token * params_.workspace.top_k + k;
        return params_.ids_bytes == 8 ? static_cast<const int64_t *>(params_.ids)[index] : static_cast<const int32_t *>(params_.ids)[index];
    }

    void add_the_rest() {
        for (int32_t rank = 0; rank < params_.workspace.ranks; ++rank) {
            if (!is_owner_[static_cast<size_t>(rank)]) to_.push_back({rank, -1});
        }
    }

    const DispatchParams &params_;
    ExpertRanks owners_;
    std::vector<Destination> to_;
    std::vector<char> is_owner_;
    int32_t ids_[max_top_k];
    int32_t ranks_[max_top_k];
};

// Writes one token's row, ids, weights and origin into row `slot` of our part of a destination's workspace.
void write_row(const DispatchParams &params, const Router &router, const TokenRows<Payload> &rows, int64_t token, const Destination &to, int64_t slot) {
    const Workspace &ws = params.workspace;
    unsigned char *peer = ws.peers[to.rank];
    int64_t row = int64_t{ws.rank} * ws.capacity + slot;
    for (int p = 0; p < params.payload_count; ++p) {
        const Payload &payload = params.payloads[p];
        if (payload.row_bytes == 0) continue;
        std::memcpy(peer + payload.plane + static_cast<uint64_t>(row) * payload.plane_stride, rows.of(p), payload.row_bytes);
    }
    int32_t *ids = part<int32_t>(peer, ws.layout.ids) + row * ws.top_k;
    for (int k = 0; k < ws.top_k; ++k) ids[k] = router.rank(k) == to.rank ? router.id(k) : params.invalid_id;
    if (params.weights != nullptr) {
        std::memcpy(part<float>(peer, ws.layout.weights) + row * ws.top_k, params.weights + token * ws.top_k,
                    sizeof(float) * static_cast<size_t>(ws.top_k));
    }
    part<RowOrigin>(peer, ws.layout.origins)[row] = {static_cast<int32_t>(token), to.distinct};
    if (to.distinct >= 0) {
        part<RowPlace>(ws.mine, ws.layout.places)[token * ws.max_distinct + to.distinct] = {to.rank, static_cast<int32_t>(slot)};
    }
}

// Ids and weights of a token, for a dispatch that repeats the routing, which then reads them here.
void keep_routing(const DispatchParams &params, const Router &router, int64_t token) {
    const Workspace &ws = params.workspace;
    int32_t *ids = part<int32_t>(ws.mine, ws.layout.own_ids) + token * ws.top_k;
    for (int k = 0; k < ws.top_k; ++k) ids[k] = router.rank(k) >= 0 ? router.id(k) : -1;
    float *weights = part<float>(ws.mine, ws.layout.own_weights) + token * ws.top_k;
    if (params.weights != nullptr) std::memmove(weights, params.weights + token * ws.top_k, sizeof(float) * static_cast<size_t>(ws.top_k));
}

// The sum of a token's weights for the experts of each of its distinct ranks, for a weighted combine.
void sum_weights(const DispatchParams &params, const Router &router, int64_t token) {
    const Workspace &ws = params.workspace;
    float *sums = part<float>(ws.mine, ws.layout.weight_sums) + token * ws.max_distinct;
    for (const Destination &destination : router.to()) {
        if (destination.distinct < 0) continue;
        float sum = 0;
        for (int k = 0; k < ws.top_k; ++k) {
            if (router.rank(k) == destination.rank) sum += params.weights[token * ws.top_k + k];
        }
        sums[destination.distinct] = sum;
    }
}

// Marks the rows of topk_ids beyond those that came, once: rows already marked with the same id stay.
void fill_ids(const DispatchParams &params, int32_t source, int32_t rows) {
    const Workspace &ws = params.workspace;
    Filled *filled = part<Filled>(ws.mine, ws.layout.filled) + source;
    int32_t end = filled->id == params.invalid_id ? filled->rows : ws.capacity;
    int32_t *ids = part<int32_t>(ws.mine, ws.layout.ids) + int64_t{source} * ws.capacity * ws.top_k;
    if (rows < end) std::fill(ids + int64_t{rows} * ws.top_k, ids + int64_t{end} * ws.top_k, params.invalid_id);
    *filled = {rows, params.invalid_id};
}

void copy_out(const DispatchParams &params, int32_t source, int32_t rows) {
    const Workspace &ws = params.workspace;
    for (int p = 0; p < params.payload_count; ++p) {
        const Payload &payload = params.payloads[p];
        if (payload.row_bytes == 0 || payload.output == nullptr) continue;
        for (int32_t row = 0; row < rows; ++row) {
            uint64_t index = static_cast<uint64_t>(source) * static_cast<uint64_t>(ws.capacity) + static_cast<uint64_t>(row);
            std::memcpy(payload.output + index * payload.output_stride, ws.mine + payload.plane + index * payload.plane_stride,
                        payload.row_bytes);
        }
    }
}

void send(const DispatchParams &params, uint32_t epoch) {
    const Workspace &ws = params.workspace;
    SlotState *state = part<SlotState>(ws.mine, ws.layout.state);
    int32_t tokens = params.tokens;
    if (params.tokens_device != nullptr) tokens = std::clamp(*params.tokens_device, 0, params.tokens);

    Router router(params);
    TokenRows token_rows(params.quantize, params.payloads);
    std::vector<int32_t> rows(static_cast<size_t>(ws.ranks), 0);
    int32_t *send_counts = part<int32_t>(ws.mine, ws.layout.send_counts);
    int32_t *distinct = part<int32_t>(ws.mine, ws.layout.distinct);
    std::fill(send_counts, send_counts + ws.ranks, 0);
    for (int64_t token = 0; token < tokens; ++token) {
        distinct[token] = router.route(token);
        keep_routing(params, router, token);
        if (params.weights != nullptr) sum_weights(params, router, token);
        if (!router.to().empty()) token_rows.read(token);
        for (const Destination &destination : router.to()) {
            write_row(params, router, token_rows, token, destination, rows[static_cast<size_t>(destination.rank)]++);
            if (destination.distinct >= 0) ++send_counts[destination.rank];
        }
    }
    state->tokens = tokens;

    for (int32_t i = 0; i < ws.ranks; ++i) {
        int32_t rank = (ws.rank + i) % ws.ranks;
        SourceLine *line = part<SourceLine>(ws.peers[rank], ws.layout.lines) + ws.rank;
        store_word(&line->dispatch_shape, epoch, params.shape, std::memory_order_relaxed);
        announce(&line->dispatch_count, epoch, static_cast<uint32_t>(rows[static_cast<size_t>(rank)]));
    }
}

Fault receive(const DispatchParams &params, uint32_t epoch, const Watch &watch) {
    const Workspace &ws = params.workspace;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(ws.timeout_ns);
    Fault fault{};
    int32_t *recv_counts = part<int32_t>(ws.mine, ws.layout.recv_counts);
    for (int32_t i = 0; i < ws.ranks; ++i) {
        int32_t source = (ws.rank + i) % ws.ranks;
        SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + source;
        uint32_t count = 0;
        if (!await_word(&line->dispatch_count, epoch, &count, source, ws.ranks, phase_dispatch, deadline, watch, &fault)) return fault;
        uint64_t shape = std::atomic_ref<uint64_t>(line->dispatch_shape).load(std::memory_order_relaxed);
        if (static_cast<uint32_t>(shape) != params.shape) return Fault{fault_mismatch, source, phase_dispatch, 0};
        recv_counts[source] = static_cast<int32_t>(count);
        fill_ids(params, source, recv_counts[source]);
        copy_out(params, source, recv_counts[source]);
    }
    part<SlotState>(ws.mine, ws.layout.state)->dispatch_epoch = epoch;
    return fault;
}

}  // namespace

Fault dispatch(const DispatchParams &params, const Watch &watch) {
    const Workspace &ws = params.workspace;
    const uint32_t epoch = next_epoch(part<SlotState>(ws.mine, ws.layout.state)->dispatch_epoch);
    if ((params.halves & half_send) != 0) send(params, epoch);
    return (params.halves & half_receive) != 0 ? receive(params, epoch, watch) : Fault{};
}

}  // namespace moelink::kernels::host
