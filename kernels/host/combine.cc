// Combine on the host: received rows go back to their tokens' owners, who add a token's rows in rank order. Rows that the owner
// can read where they are, its own and those that lie in the dispatched view, stay there.
#include "signal.hpp"
#include "sum.hpp"

#include <algorithm>
#include <cstring>

namespace moelink::kernels::host {

namespace {

// Where the input begins in our slot, when all of it lies in what dispatch delivered: then every peer can read it there. Else 0.
uint64_t place_in_slot(const CombineParams &params) {
    const Workspace &ws = params.workspace;
    const uint64_t rows = static_cast<uint64_t>(ws.ranks) * static_cast<uint64_t>(ws.capacity);
    const unsigned char *end = params.input + (rows - 1) * params.input_stride + params.row_bytes;
    const bool inside = params.input >= ws.mine + ws.layout.ids && end <= ws.mine + ws.layout.combine;
    return inside ? static_cast<uint64_t>(params.input - ws.mine) : 0;
}

void push(const CombineParams &params, int32_t source) {
    const Workspace &ws = params.workspace;
    const int32_t rows = part<int32_t>(ws.mine, ws.layout.recv_counts)[source];
    const RowOrigin *origins = part<RowOrigin>(ws.mine, ws.layout.origins) + int64_t{source} * ws.capacity;
    unsigned char *plane = ws.peers[source] + ws.layout.combine;
    for (int32_t row = 0; row < rows; ++row) {
        if (origins[row].distinct < 0) continue;
        uint64_t from = static_cast<uint64_t>(source) * static_cast<uint64_t>(ws.capacity) + static_cast<uint64_t>(row);
        uint64_t to = static_cast<uint64_t>(origins[row].token) * static_cast<uint64_t>(ws.max_distinct) +
                      static_cast<uint64_t>(origins[row].distinct);
        std::memcpy(plane + to * params.row_bytes, params.input + from * params.input_stride, params.row_bytes);
    }
}

int32_t rows_with_expert(const CombineParams &params, int32_t source) {
    const Workspace &ws = params.workspace;
    const int32_t rows = part<int32_t>(ws.mine, ws.layout.recv_counts)[source];
    const RowOrigin *origins = part<RowOrigin>(ws.mine, ws.layout.origins) + int64_t{source} * ws.capacity;
    return static_cast<int32_t>(std::count_if(origins, origins + rows, [](const RowOrigin &o) { return o.distinct >= 0; }));
}

void announce_rows(const CombineParams &params, uint64_t place, uint32_t epoch, int32_t source) {
    const Workspace &ws = params.workspace;
    SourceLine *line = part<SourceLine>(ws.peers[source], ws.layout.lines) + ws.rank;
    store_word(&line->combine_shape, epoch, params.shape, std::memory_order_relaxed);
    line->combine_input = place;
    line->combine_stride = params.input_stride;
    announce(&line->combine_count, epoch, static_cast<uint32_t>(rows_with_expert(params, source)));
}

// Where the row is that a rank has for one of our tokens; `pushed` is its row of the combine plane.
const unsigned char *row_at(const CombineParams &params, RowPlace place, uint64_t pushed) {
    const Workspace &ws = params.workspace;
    const SourceLine &line = part<SourceLine>(ws.mine, ws.layout.lines)[place.rank];
    const uint64_t row = static_cast<uint64_t>(ws.rank) * static_cast<uint64_t>(ws.capacity) + static_cast<uint64_t>(place.slot);
    if (place.rank == ws.rank) return params.input + row * params.input_stride;
    if (line.combine_input != 0) return ws.peers[place.rank] + line.combine_input + row * line.combine_stride;
    return ws.mine + ws.layout.combine + pushed * params.row_bytes;
}

void reduce(const CombineParams &params, int32_t tokens) {
    const Workspace &ws = params.workspace;
    const int32_t *distinct = part<int32_t>(ws.mine, ws.layout.distinct);
    const float *weight_sums = part<float>(ws.mine, ws.layout.weight_sums);
    const RowPlace *places = part<RowPlace>(ws.mine, ws.layout.places);
    const SumRows sum = best_sum_code().of(params.value_type);
    const size_t values = params.row_bytes / (params.value_type == value_f32 ? 4 : 2);
    const unsigned char *rows[max_host_ranks];  // a token without routing is on every rank
    unsigned char *out = params.output;
    for (int32_t token = 0; token < tokens; ++token) {
        const uint64_t first = static_cast<uint64_t>(token) * static_cast<uint64_t>(ws.max_distinct);
        const int32_t count = distinct[token];
        for (int32_t i = 0; i < count; ++i) {
            const uint64_t pushed = first + static_cast<uint64_t>(i);
            rows[i] = row_at(params, places[pushed], pushed);
        }
        sum(out, rows, params.weighted ? weight_sums + first : nullptr, count, values);
        out += params.output_stride;
    }
}

}  // namespace

Fault combine(const CombineParams &params, const Watch &watch) {
    const Workspace &ws = params.workspace;
    SlotState *state = part<SlotState>(ws.mine, ws.layout.state);
    const uint32_t epoch = next_epoch(state->combine_epoch);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(ws.timeout_ns);
    const uint64_t place = place_in_slot(params);

    for (int32_t i = 0; i < ws.ranks && (params.halves & half_send) != 0; ++i) {
        int32_t source = (ws.rank + i) % ws.ranks;
        if (place == 0 && source != ws.rank) push(params, source);
        announce_rows(params, place, epoch, source);
    }

    Fault fault{};
    if ((params.halves & half_receive) == 0) return fault;
    const int32_t *send_counts = part<int32_t>(ws.mine, ws.layout.send_counts);
    for (int32_t i = 0; i < ws.ranks; ++i) {
        int32_t expert_side = (ws.rank + i) % ws.ranks;
        SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + expert_side;
        uint32_t count = 0;
        if (!await_word(&line->combine_count, epoch, &count, expert_side, ws.ranks, phase_combine, deadline, watch, &fault)) return fault;
        uint64_t shape = std::atomic_ref<uint64_t>(line->combine_shape).load(std::memory_order_relaxed);
        if (static_cast<uint32_t>(shape) != params.shape || static_cast<int32_t>(count) != send_counts[expert_side]) {
            return Fault{fault_mismatch, expert_side, phase_combine, 0};
        }
    }
    reduce(params, state->tokens);
    state->combine_epoch = epoch;
    return fault;
}

}  // namespace moelink::kernels::host
