// The naive manager: every rank gathers everything over the control connections and picks what is meant for it. Shares no
// code with the other kinds on purpose, since tests compare them with it.
#include "group/agreement.hpp"
#include "moe/backend.hpp"
#include "moe/reference_quantize.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

namespace moelink {

namespace {

using Bytes = std::vector<unsigned char>;

float load_value(const unsigned char *at, int32_t dtype) {
    if (dtype == MOELINK_DTYPE_F32) {
        float value;
        std::memcpy(&value, at, 4);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, at, 2);
    if (dtype == MOELINK_DTYPE_BF16) return std::bit_cast<float>(uint32_t{half} << 16);
    return static_cast<float>(std::bit_cast<_Float16>(half));
}

void store_value(unsigned char *at, float value, int32_t dtype) {
    if (dtype == MOELINK_DTYPE_F32) {
        std::memcpy(at, &value, 4);
        return;
    }
    uint16_t half;
    if (dtype == MOELINK_DTYPE_BF16) {
        uint32_t bits = std::bit_cast<uint32_t>(value);
        uint32_t nan = (bits & 0x7fffffffu) > 0x7f800000u ? 1 : 0;
        half = static_cast<uint16_t>(nan ? (bits >> 16 | 0x40u) : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    } else {
        half = std::bit_cast<uint16_t>(static_cast<_Float16>(value));
    }
    std::memcpy(at, &half, 2);
}

// All ranks' ids and weights of one round, and who owns which expert.
struct Routing {
    int32_t ranks = 0, top_k = 0, experts = 0;
    std::vector<int32_t> tokens;                // [ranks]
    std::vector<std::vector<int64_t>> ids;      // [ranks][tokens * top_k]
    std::vector<std::vector<float>> weights;    // the same shape
    std::vector<int32_t> table;                 // [experts], or empty: in order
    bool everyone = false;                      // there are no ids: every token goes to every rank

    int32_t owner(int64_t id) const {
        if (id < 0 || id >= experts) return -1;
        if (!table.empty()) return table[static_cast<size_t>(id)];
        int64_t first = 0;
        for (int32_t rank = 0; rank < ranks; ++rank) {
            first += experts / ranks + (rank < experts % ranks ? 1 : 0);
            if (id < first) return rank;
        }
        return -1;
    }
    bool goes_to(int32_t source, int32_t token, int32_t rank) const {
        if (everyone) return true;
        for (int32_t k = 0; k < top_k; ++k) {
            if (owner(id(source, token, k)) == rank) return true;
        }
        return false;
    }
    int64_t id(int32_t source, int32_t token, int32_t k) const {
        return ids[static_cast<size_t>(source)][static_cast<size_t>(token) * static_cast<size_t>(top_k) + static_cast<size_t>(k)];
    }
    float weight(int32_t source, int32_t token, int32_t k) const {
        return weights[static_cast<size_t>(source)][static_cast<size_t>(token) * static_cast<size_t>(top_k) + static_cast<size_t>(k)];
    }
};

struct ReferenceSlot {
    Routing routing;
    std::vector<Buffer> planes;
    Buffer ids, weights, counts, tokens;
};

class Reference : public Backend {
public:
    explicit Reference(const BackendParams &params)
        : group_(params.group), device_(params.device), config_(params.config), slots_(static_cast<size_t>(config_.slots)) {
        step(*group_, group_->deadline(), [&] {
            reference_sizes(*group_, config_);  // throws what does not fit 64 bits
            for (ReferenceSlot &slot : slots_) allocate(slot);
        });
    }

    moelink_manager_sizes sizes() const override { return reference_sizes(*group_, config_); }

    static moelink_manager_sizes reference_sizes(const Group &group, const Config &config) {
        moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
        uint64_t row = 0;
        for (uint64_t bytes : config.payload_row_bytes) row += bytes;
        row += static_cast<uint64_t>(config.top_k) * 8 + 4;
        unsigned __int128 total = static_cast<unsigned __int128>(row) * static_cast<uint64_t>(group.size()) *
                                  static_cast<uint64_t>(config.max_tokens) * static_cast<uint64_t>(config.slots);
        if (total > UINT64_MAX / 2) fail(MOELINK_ERR_OUT_OF_MEMORY, "the workspace of this config does not fit 64-bit sizes");
        sizes.slots_per_rank = config.max_tokens;
        sizes.dispatch_bytes = static_cast<uint64_t>(total);
        sizes.control_bytes = static_cast<uint64_t>(config.slots) * static_cast<uint64_t>(group.size()) * 4;
        sizes.workspace_bytes = sizes.dispatch_bytes + sizes.control_bytes;
        return sizes;
    }

    Received dispatch(const DispatchCall &call, moelink_stream stream) override;
    void combine(const CombineCall &call, moelink_stream stream) override;
    void abandon(int32_t slot, const Deadline &) override { slots_[static_cast<size_t>(slot)].routing = Routing{}; }

private:
    size_t rows() const { return static_cast<size_t>(group_->size()) * static_cast<size_t>(config_.max_tokens); }
    size_t top_k() const { return static_cast<size_t>(config_.top_k); }

    void allocate(ReferenceSlot &slot) {
        for (uint64_t bytes : config_.payload_row_bytes) slot.planes.emplace_back(device_, rows() * bytes);
        slot.ids = Buffer(device_, rows() * top_k() * sizeof(int32_t));
        slot.weights = Buffer(device_, rows() * top_k() * sizeof(float));
        slot.tokens = Buffer(device_, rows() * sizeof(int32_t));
        slot.counts = Buffer(device_, static_cast<size_t>(group_->size()) * sizeof(int32_t));
    }

    void begin(const char *what, moelink_stream stream) const {
        if (device_.capturing(stream)) fail(MOELINK_ERR_INVALID_STATE, "{}: the reference manager works on the host and cannot be captured", what);
        device_.synchronize(stream);
    }

    // Gathers as many bytes of every rank as the longest has.
    std::vector<Bytes> gather(const Bytes &mine, const Deadline &deadline) const {
        std::vector<uint64_t> lengths = group_->allgather(static_cast<uint64_t>(mine.size()), deadline);
        const uint64_t longest = *std::max_element(lengths.begin(), lengths.end());
        Bytes padded = mine;
        padded.resize(longest);
        Bytes all(longest * lengths.size());
        if (longest > 0) group_->allgather(padded.data(), all.data(), longest, deadline);
        std::vector<Bytes> result;
        for (size_t rank = 0; rank < lengths.size(); ++rank) {
            auto from = all.begin() + static_cast<int64_t>(rank * longest);
            result.emplace_back(from, from + static_cast<int64_t>(lengths[rank]));
        }
        return result;
    }

    Bytes read_rows(const moelink_rows &rows, size_t count) const {
        Bytes result(count * rows.row_bytes);
        if (count == 0) return result;
        Bytes strided((count - 1) * rows.row_stride + rows.row_bytes);
        device_.read(strided.data(), rows.data, strided.size());
        for (size_t i = 0; i < count; ++i) std::memcpy(&result[i * rows.row_bytes], &strided[i * rows.row_stride], rows.row_bytes);
        return result;
    }

    // The rows of a payload as they travel.
    Bytes travelling_rows(const DispatchCall &call, size_t payload, size_t count) const {
        if (call.quantize == kernels::quantize_none || payload > 1) return read_rows(call.payloads[payload], count);
        moelink_rows values = call.payloads[0];
        values.row_bytes *= sizeof(uint16_t);
        const QuantizedRows rows = quantize_naively(read_rows(values, count), call.quantize == kernels::quantize_e8m0);
        return payload == 0 ? rows.values : rows.scales;
    }

    void write_row(const moelink_rows &rows, size_t row, const unsigned char *bytes, uint64_t count) const {
        device_.write(static_cast<unsigned char *>(rows.data) + row * rows.row_stride, bytes, count);
    }

    Ref<Group> group_;
    Device device_;
    Config config_;
    std::vector<ReferenceSlot> slots_;
};

Received Reference::dispatch(const DispatchCall &call, moelink_stream stream) {
    begin("dispatch", stream);
    const Deadline deadline = Deadline::after_ns(config_.timeout_ns);
    const moelink_dispatch_args &args = call.args;
    ReferenceSlot &slot = slots_[static_cast<size_t>(args.slot)];
    const auto ranks = static_cast<size_t>(group_->size());
    const auto capacity = static_cast<size_t>(config_.max_tokens);

    const Routing &last = slot.routing;
    const auto me = static_cast<size_t>(group_->rank());
    int32_t tokens = call.cached ? last.tokens[me] : args.num_tokens;
    if (args.num_tokens_device != nullptr) {
        device_.read(&tokens, args.num_tokens_device, sizeof tokens);
        tokens = std::clamp(tokens, 0, args.num_tokens);
    }
    const auto count = static_cast<size_t>(tokens);
    std::vector<int64_t> ids(count * top_k(), -1);
    if (call.cached) {
        ids = last.ids[me];
    } else if (call.routed && args.topk_ids_dtype == MOELINK_DTYPE_I64) {
        device_.read(ids.data(), args.topk_ids, ids.size() * 8);
    } else if (call.routed) {
        std::vector<int32_t> narrow(ids.size());
        device_.read(narrow.data(), args.topk_ids, narrow.size() * 4);
        std::copy(narrow.begin(), narrow.end(), ids.begin());
    }
    std::vector<float> weights(ids.size(), 0.0f);
    if (call.cached) weights = last.weights[me];
    if (args.topk_weights != nullptr) device_.read(weights.data(), args.topk_weights, weights.size() * 4);

    Bytes id_bytes(ids.size() * 8), weight_bytes(weights.size() * 4);
    if (!ids.empty()) {
        std::memcpy(id_bytes.data(), ids.data(), id_bytes.size());
        std::memcpy(weight_bytes.data(), weights.data(), weight_bytes.size());
    }
    std::vector<Bytes> all_ids = gather(id_bytes, deadline), all_weights = gather(weight_bytes, deadline);
    Routing routing{group_->size(), config_.top_k, config_.num_experts, {}, {}, {}, config_.expert_ranks, !call.routed};
    for (size_t rank = 0; rank < ranks; ++rank) {
        routing.ids.emplace_back(all_ids[rank].size() / 8);
        routing.weights.emplace_back(all_weights[rank].size() / 4);
        if (!routing.ids.back().empty()) {
            std::memcpy(routing.ids.back().data(), all_ids[rank].data(), all_ids[rank].size());
            std::memcpy(routing.weights.back().data(), all_weights[rank].data(), all_weights[rank].size());
        }
        routing.tokens.push_back(static_cast<int32_t>(routing.ids.back().size() / top_k()));
    }

    Received received;
    std::vector<int32_t> out_ids(rows() * top_k(), args.invalid_id), out_tokens(rows(), -1), counts(ranks, 0);
    std::vector<float> out_weights(rows() * top_k(), 0.0f);
    std::vector<std::vector<std::pair<size_t, size_t>>> picked(ranks);  // [source]: token -> row
    for (size_t source = 0; source < ranks; ++source) {
        for (int32_t token = 0; token < routing.tokens[source]; ++token) {
            if (!routing.goes_to(static_cast<int32_t>(source), token, group_->rank())) continue;
            size_t row = source * capacity + static_cast<size_t>(counts[source]++);
            picked[source].emplace_back(static_cast<size_t>(token), row);
            out_tokens[row] = token;
            for (int32_t k = 0; k < config_.top_k; ++k) {
                int64_t id = routing.id(static_cast<int32_t>(source), token, k);
                size_t at = row * top_k() + static_cast<size_t>(k);
                if (routing.owner(id) == group_->rank()) out_ids[at] = static_cast<int32_t>(id);
                out_weights[at] = routing.weight(static_cast<int32_t>(source), token, k);
            }
        }
    }
    for (size_t p = 0; p < static_cast<size_t>(call.payload_count); ++p) {
        const moelink_rows &payload = call.payloads[p];
        std::vector<Bytes> all = gather(travelling_rows(call, p, payload.row_bytes > 0 ? count : 0), deadline);
        if (payload.row_bytes == 0) continue;
        moelink_rows output = call.outputs[p].data != nullptr ? call.outputs[p] : dense_rows(slot.planes[p].as(), payload);
        output.row_bytes = payload.row_bytes;
        for (size_t source = 0; source < ranks; ++source) {
            if (all[source].size() != static_cast<size_t>(routing.tokens[source]) * payload.row_bytes) {
                fail(MOELINK_ERR_MISMATCH, "rank {}: dispatch: rank {} takes part with other row bytes, payloads or dtype", group_->rank(), source);
            }
            for (auto [token, row] : picked[source]) write_row(output, row, &all[source][token * payload.row_bytes], payload.row_bytes);
        }
        received.payloads[p] = output;
    }
    device_.write(slot.ids.as(), out_ids.data(), out_ids.size() * 4);
    device_.write(slot.weights.as(), out_weights.data(), out_weights.size() * 4);
    device_.write(slot.counts.as(), counts.data(), counts.size() * 4);
    device_.write(slot.tokens.as(), out_tokens.data(), out_tokens.size() * 4);
    slot.routing = std::move(routing);
    received.topk_ids = slot.ids.as<int32_t>();
    received.topk_weights = slot.weights.as<float>();
    received.recv_counts = slot.counts.as<int32_t>();
    received.tokens = slot.tokens.as<int32_t>();
    return received;
}

void Reference::combine(const CombineCall &call, moelink_stream stream) {
    begin("combine", stream);
    const Deadline deadline = Deadline::after_ns(config_.timeout_ns);
    const Routing &routing = slots_[static_cast<size_t>(call.slot)].routing;
    const auto ranks = static_cast<size_t>(group_->size());
    const auto capacity = static_cast<size_t>(config_.max_tokens);
    const uint64_t row_bytes = call.input.row_bytes;
    const uint64_t size = call.input.dtype == MOELINK_DTYPE_F32 ? 4 : 2;

    // Everybody's outputs, source by source, only the rows in use.
    std::vector<std::vector<size_t>> counts(ranks, std::vector<size_t>(ranks, 0));  // [expert side][source]
    for (size_t rank = 0; rank < ranks; ++rank) {
        for (size_t source = 0; source < ranks; ++source) {
            for (int32_t token = 0; token < routing.tokens[source]; ++token) {
                counts[rank][source] += routing.goes_to(static_cast<int32_t>(source), token, static_cast<int32_t>(rank)) ? 1 : 0;
            }
        }
    }
    Bytes mine;
    const auto me = static_cast<size_t>(group_->rank());
    for (size_t source = 0; source < ranks; ++source) {
        moelink_rows part = call.input;
        part.data = static_cast<unsigned char *>(part.data) + source * capacity * part.row_stride;
        Bytes rows = read_rows(part, counts[me][source]);
        mine.insert(mine.end(), rows.begin(), rows.end());
    }
    std::vector<Bytes> all = gather(mine, deadline);

    std::vector<size_t> next(ranks, 0);  // row of the next token of ours on each expert side
    for (size_t rank = 0; rank < ranks; ++rank) {
        for (size_t source = 0; source < me; ++source) next[rank] += counts[rank][source];
        size_t total = next[rank];
        for (size_t source = me; source < ranks; ++source) total += counts[rank][source];
        if (all[rank].size() != total * row_bytes) {
            fail(MOELINK_ERR_MISMATCH, "rank {}: combine: rank {} takes part with other row bytes, payloads or dtype", group_->rank(), rank);
        }
    }
    Bytes out(row_bytes);
    std::vector<float> sum(row_bytes / size);
    for (int32_t token = 0; token < routing.tokens[me]; ++token) {
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (size_t rank = 0; rank < ranks; ++rank) {
            if (!routing.goes_to(group_->rank(), token, static_cast<int32_t>(rank))) continue;
            float weight = 1.0f;
            if (call.weighted) {
                weight = 0.0f;
                for (int32_t k = 0; k < config_.top_k; ++k) {
                    if (routing.owner(routing.id(group_->rank(), token, k)) == static_cast<int32_t>(rank)) {
                        weight += routing.weight(group_->rank(), token, k);
                    }
                }
            }
            const unsigned char *row = &all[rank][next[rank]++ * row_bytes];
            for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * load_value(row + i * size, call.input.dtype);
        }
        for (size_t i = 0; i < sum.size(); ++i) store_value(&out[i * size], sum[i], call.output.dtype);
        write_row(call.output, static_cast<size_t>(token), out.data(), row_bytes);
    }
}

std::unique_ptr<Backend> reference_make(const BackendParams &params) { return std::make_unique<Reference>(params); }

}  // namespace

const ManagerKind reference_kind = {MOELINK_MANAGER_REFERENCE, "reference",
                                    "naive, through the group's control connections and host memory; for tests", &device_available,
                                    &Reference::reference_sizes, &reference_make};

}  // namespace moelink
