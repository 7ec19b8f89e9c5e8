#include "eplb/comm_layer.hpp"

#include "group/agreement.hpp"

#include <cstring>

#include <sodium.h>

namespace moelink::eplb {

namespace {

// No tensor is larger: strides and offsets then never overflow.
constexpr uint64_t most_bytes = uint64_t{1} << 60;

struct Shape {
    int32_t layer;
    int32_t count;
    int32_t local_slots;
    int32_t reserved;
};

struct TensorShape {
    uint64_t rows;
    uint64_t row_bytes;
};

uint64_t times(uint64_t a, uint64_t b) {
    if (b != 0 && a > most_bytes / b) fail(MOELINK_ERR_INVALID_ARGUMENT, "{} times {} bytes are more than there can be", a, b);
    return a * b;
}

moelink_eplb_tensor read_tensor(const moelink_eplb_tensor &given, int32_t local_slots) {
    moelink_eplb_tensor tensor = given;
    if (tensor.rows == 0 || tensor.row_bytes == 0) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "it has {} rows of {} bytes", tensor.rows, tensor.row_bytes);
    }
    if (tensor.row_stride == 0) tensor.row_stride = tensor.row_bytes;
    if (tensor.row_stride < tensor.row_bytes) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "its row_stride {} is below its row_bytes {}", tensor.row_stride, tensor.row_bytes);
    }
    const uint64_t slot_bytes = times(tensor.rows, tensor.row_stride);
    if (tensor.slot_stride == 0) tensor.slot_stride = slot_bytes;
    times(tensor.slot_stride, static_cast<uint64_t>(local_slots));
    if (tensor.base == nullptr && local_slots > 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "its base is NULL");
    return tensor;
}

}  // namespace

Strips Layer::live(int32_t slot) const {
    Strips strips;
    for (const moelink_eplb_tensor &tensor : tensors) {
        auto *at = static_cast<unsigned char *>(tensor.base) + static_cast<uint64_t>(slot) * tensor.slot_stride;
        strips.push_back(Strip{at, tensor.rows, tensor.row_bytes, tensor.row_stride});
    }
    return strips;
}

int32_t Layer::slot_of(const Strips &strips) const {
    const auto base = reinterpret_cast<uintptr_t>(tensors[0].base);
    const auto at = reinterpret_cast<uintptr_t>(strips[0].data);
    if (at < base || (at - base) % tensors[0].slot_stride != 0) return -1;
    const uint64_t slot = (at - base) / tensors[0].slot_stride;
    if (slot >= static_cast<uint64_t>(local_slots)) return -1;
    const Strips mine = live(static_cast<int32_t>(slot));
    for (size_t i = 0; i < strips.size(); ++i) {
        if (strips[i].data != mine[i].data || strips[i].row_stride != mine[i].row_stride) return -1;
    }
    return static_cast<int32_t>(slot);
}

Layer read_layer(int32_t number, const moelink_eplb_tensor *tensors, int32_t count, int32_t local_slots) {
    if (number < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "layer is {}", number);
    if (tensors == nullptr) fail(MOELINK_ERR_INVALID_ARGUMENT, "tensors is NULL");
    if (count < 1 || count > MOELINK_EPLB_MAX_TENSORS) {
        fail(MOELINK_ERR_INVALID_ARGUMENT, "count is {}, not in 1 .. {}", count, static_cast<int>(MOELINK_EPLB_MAX_TENSORS));
    }
    if (local_slots < 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "local_slots is {}", local_slots);
    Layer layer;
    layer.number = number;
    layer.local_slots = local_slots;
    for (int32_t i = 0; i < count; ++i) {
        try {
            layer.tensors.push_back(read_tensor(tensors[i], local_slots));
        } catch (const Error &error) {
            throw Error(error.status(), fmt::format("tensor {} of layer {}: {}", i, number, error.text()));
        }
        layer.expert_bytes += tensors[i].rows * tensors[i].row_bytes;
    }
    return layer;
}

void agree_on_layer(Group &group, Layer &layer, const Deadline &deadline) {
    const Shape mine{layer.number, static_cast<int32_t>(layer.tensors.size()), layer.local_slots, 0};
    const std::vector<Shape> shapes = group.allgather(mine, deadline);
    layer.rank_slots.clear();
    layer.slots = 0;
    for (size_t rank = 0; rank < shapes.size(); ++rank) {
        if (shapes[rank].layer != shapes[0].layer) {
            throw Refusal(MOELINK_ERR_MISMATCH,
                          fmt::format("rank 0 registers layer {} and rank {} layer {}", shapes[0].layer, rank, shapes[rank].layer));
        }
        if (shapes[rank].count != shapes[0].count) {
            throw Refusal(MOELINK_ERR_MISMATCH, fmt::format("layer {} has {} tensors on rank 0 and {} on rank {}", shapes[0].layer,
                                                            shapes[0].count, shapes[rank].count, rank));
        }
        layer.rank_slots.push_back(shapes[rank].local_slots);
        layer.slots += shapes[rank].local_slots;
    }
    std::vector<TensorShape> tensors;
    for (const moelink_eplb_tensor &tensor : layer.tensors) tensors.push_back({tensor.rows, tensor.row_bytes});
    std::vector<TensorShape> all(tensors.size() * shapes.size());
    group.allgather(tensors.data(), all.data(), tensors.size() * sizeof(TensorShape), deadline);
    for (size_t i = 0; i < all.size(); ++i) {
        const TensorShape &first = all[i % tensors.size()];
        if (all[i].rows == first.rows && all[i].row_bytes == first.row_bytes) continue;
        throw Refusal(MOELINK_ERR_MISMATCH,
                      fmt::format("tensor {} of layer {} has {} rows of {} bytes an expert on rank 0 and {} of {} on rank {}",
                                  i % tensors.size(), layer.number, first.rows, first.row_bytes, all[i].rows, all[i].row_bytes, i / tensors.size()));
    }
}

uint64_t context_code(const Layer &layer, const std::vector<int32_t> &old_indices) {
    crypto_generichash_state state;
    crypto_generichash_init(&state, nullptr, 0, crypto_generichash_BYTES_MIN);
    auto add = [&](const auto &value) {
        crypto_generichash_update(&state, reinterpret_cast<const unsigned char *>(&value), sizeof value);
    };
    add(layer.number);
    for (const int32_t slots : layer.rank_slots) add(slots);
    for (const moelink_eplb_tensor &tensor : layer.tensors) {
        add(tensor.rows);
        add(tensor.row_bytes);
    }
    for (const int32_t expert : old_indices) add(expert);
    unsigned char hash[crypto_generichash_BYTES_MIN];
    crypto_generichash_final(&state, hash, sizeof hash);
    uint64_t code = 0;
    std::memcpy(&code, hash, sizeof code);
    return code != 0 ? code : 1;
}

}  // namespace moelink::eplb
