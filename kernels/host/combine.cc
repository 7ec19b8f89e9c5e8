// Push combine on the host: every received row back to its token's owner, who adds a token's rows in rank order.
#include "signal.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace moelink::kernels::host {

namespace {

struct F32 {
    float value;
    static float load(F32 from) { return from.value; }
    static F32 store(float value) { return {value}; }
};

struct F16 {
    _Float16 value;
    static float load(F16 from) { return static_cast<float>(from.value); }
    static F16 store(float value) { return {static_cast<_Float16>(value)}; }
};

struct BF16 {
    uint16_t bits;
    static float load(BF16 from) { return std::bit_cast<float>(uint32_t{from.bits} << 16); }
    static BF16 store(float value) {
        uint32_t bits = std::bit_cast<uint32_t>(value);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};  // keep NaN a NaN
        return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
    }
};

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

template <class T>
void reduce(const CombineParams &params, int32_t tokens) {
    constexpr size_t block = 1024;  // values that stay in the first-level cache
    const Workspace &ws = params.workspace;
    const int32_t *distinct = part<int32_t>(ws.mine, ws.layout.distinct);
    const float *weight_sums = part<float>(ws.mine, ws.layout.weight_sums);
    const unsigned char *plane = ws.mine + ws.layout.combine;
    const size_t values = params.row_bytes / sizeof(T);
    float sum[block];
    for (int32_t token = 0; token < tokens; ++token) {
        uint64_t first = static_cast<uint64_t>(token) * static_cast<uint64_t>(ws.max_distinct);
        unsigned char *out = params.output + static_cast<uint64_t>(token) * params.output_stride;
        for (size_t begin = 0; begin < values; begin += block) {
            const size_t count = std::min(block, values - begin);
            std::fill(sum, sum + count, 0.0f);
            for (int32_t rank = 0; rank < distinct[token]; ++rank) {
                const unsigned char *row = plane + (first + static_cast<uint64_t>(rank)) * params.row_bytes + begin * sizeof(T);
                const float weight = params.weighted ? weight_sums[first + static_cast<uint64_t>(rank)] : 1.0f;
                for (size_t i = 0; i < count; ++i) {
                    T value;
                    std::memcpy(&value, row + i * sizeof(T), sizeof(T));
                    sum[i] += weight * T::load(value);
                }
            }
            for (size_t i = 0; i < count; ++i) {
                T value = T::store(sum[i]);
                std::memcpy(out + (begin + i) * sizeof(T), &value, sizeof(T));
            }
        }
    }
}

}  // namespace

Fault combine(const CombineParams &params, const Watch &watch) {
    const Workspace &ws = params.workspace;
    SlotState *state = part<SlotState>(ws.mine, ws.layout.state);
    const uint32_t epoch = state->combine_epoch + 1;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(ws.timeout_ns);

    for (int32_t i = 0; i < ws.ranks; ++i) {
        int32_t source = (ws.rank + i) % ws.ranks;
        push(params, source);
        SourceLine *line = part<SourceLine>(ws.peers[source], ws.layout.lines) + ws.rank;
        store_word(&line->combine_shape, epoch, params.shape, std::memory_order_relaxed);
        announce(&line->combine_count, epoch, static_cast<uint32_t>(rows_with_expert(params, source)));
    }

    Fault fault{};
    const int32_t *send_counts = part<int32_t>(ws.mine, ws.layout.send_counts);
    for (int32_t i = 0; i < ws.ranks; ++i) {
        int32_t expert_side = (ws.rank + i) % ws.ranks;
        SourceLine *line = part<SourceLine>(ws.mine, ws.layout.lines) + expert_side;
        uint32_t count = 0;
        if (!await_word(&line->combine_count, epoch, &count, expert_side, phase_combine, deadline, watch, &fault)) return fault;
        uint64_t shape = std::atomic_ref<uint64_t>(line->combine_shape).load(std::memory_order_relaxed);
        if (static_cast<uint32_t>(shape) != params.shape || static_cast<int32_t>(count) != send_counts[expert_side]) {
            return Fault{fault_mismatch, expert_side, phase_combine, 0};
        }
    }
    switch (params.value_type) {
        case value_f32: reduce<F32>(params, state->tokens); break;
        case value_f16: reduce<F16>(params, state->tokens); break;
        default: reduce<BF16>(params, state->tokens); break;
    }
    state->combine_epoch = epoch;
    return fault;
}

}  // namespace moelink::kernels::host
