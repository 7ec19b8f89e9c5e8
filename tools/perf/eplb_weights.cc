#include "eplb_weights.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "values.hpp"

namespace perf {

namespace {

constexpr uint64_t tensor_alignment = 256;
constexpr int poison = 0xee;

uint64_t aligned(uint64_t bytes) {
    return (bytes + tensor_alignment - 1) / tensor_alignment * tensor_alignment;
}

std::vector<uint64_t> split(uint64_t bytes, int tensors) {
    constexpr int matrices_and_scales = 3;
    constexpr uint64_t values_a_scale = 4096;
    std::vector<uint64_t> parts;
    if (tensors == matrices_and_scales) {
        const uint64_t scales = std::max<uint64_t>(bytes / values_a_scale, 1);
        const uint64_t second = std::max<uint64_t>((bytes - scales) / 3, 1);
        return {bytes - second - scales, second, scales};
    }
    const auto count = static_cast<uint64_t>(tensors);
    for (uint64_t part = 0; part < count; ++part) {
        parts.push_back(bytes * (part + 1) / count - bytes * part / count);
    }
    return parts;
}

// No two experts, layers, tensors or places have the same bytes.
void fill(std::vector<char> &bytes, uint64_t seed, int layer, int expert, int tensor) {
    const uint64_t key = mix(mix(mix(seed, static_cast<uint64_t>(layer)), static_cast<uint64_t>(expert)), static_cast<uint64_t>(tensor));
    for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
        const uint64_t word = mix(key + at);
        std::memcpy(&bytes[at], &word, std::min(sizeof word, bytes.size() - at));
    }
}

}  // namespace

Weights::Weights(const Session &session, const EplbOptions &options)
    : options_(options), rank_(session.rank()), local_slots_(options.slots / options.ranks) {
    expert_bytes_ = options.expert_bytes;
    tensor_bytes_ = split(options.expert_bytes, options.tensors);
    for (const uint64_t bytes : tensor_bytes_) {
        slot_bytes_ += aligned(bytes);
    }
    layer_bytes_ = slot_bytes_ * static_cast<uint64_t>(local_slots_);
    device_ = session.on_cuda() ? make_cuda_device(moelink_group_device_ordinal(session.group()), options.slots) : make_host_device();
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.bytes = layer_bytes_ * static_cast<uint64_t>(options.layers);
    moelink_memory *memory = nullptr;
    must(moelink_memory_create(session.group(), &params, &memory), "moelink_memory_create");
    memory_.reset(memory);
    for (int rank = 0; rank < options.ranks; ++rank) {
        void *address = nullptr;
        must(moelink_memory_peer(memory, rank, &address), "moelink_memory_peer");
        ranks_.push_back(static_cast<char *>(address));
    }
    landing_ = static_cast<char *>(device_->alloc(layer_bytes_));
}

uint64_t Weights::offset(int layer, int slot, int tensor) const {
    uint64_t at = layer_bytes_ * static_cast<uint64_t>(layer);
    for (int before = 0; before < tensor; ++before) {
        at += aligned(bytes_of(before)) * static_cast<uint64_t>(local_slots_);
    }
    return at + aligned(bytes_of(tensor)) * static_cast<uint64_t>(slot);
}

std::vector<moelink_eplb_tensor> Weights::tensors(int layer) const {
    std::vector<moelink_eplb_tensor> tensors;
    for (int tensor = 0; tensor < tensor_count(); ++tensor) {
        char *base = ranks_[static_cast<size_t>(rank_)] + offset(layer, 0, tensor);
        tensors.push_back({base, aligned(bytes_of(tensor)), 1, bytes_of(tensor), 0});
    }
    return tensors;
}

int32_t Weights::expert_in(const Map &map, int layer, int slot) const {
    return map[static_cast<size_t>(layer) * static_cast<size_t>(options_.slots) + static_cast<size_t>(rank_ * local_slots_ + slot)];
}

void Weights::write(const Map &map) {
    char *mine = ranks_[static_cast<size_t>(rank_)];
    device_->fill(mine, poison, layer_bytes_ * static_cast<uint64_t>(options_.layers));
    for (int tensor = 0; tensor < tensor_count(); ++tensor) {
        std::vector<char> bytes(bytes_of(tensor));
        for (int layer = 0; layer < options_.layers; ++layer) {
            for (int slot = 0; slot < local_slots_; ++slot) {
                const int32_t expert = expert_in(map, layer, slot);
                if (expert >= 0) {
                    fill(bytes, options_.seed, layer, expert, tensor);
                    device_->copy_in(mine + offset(layer, slot, tensor), bytes.data(), bytes.size());
                }
            }
        }
    }
    device_->sync();
}

CheckResult Weights::check(const Map &map) const {
    device_->sync();
    CheckResult result;
    for (int tensor = 0; tensor < tensor_count(); ++tensor) {
        std::vector<char> wanted(bytes_of(tensor));
        std::vector<char> got(wanted.size());
        for (int layer = 0; layer < options_.layers; ++layer) {
            for (int slot = 0; slot < local_slots_; ++slot) {
                const int32_t expert = expert_in(map, layer, slot);
                if (expert < 0) {
                    continue;
                }
                fill(wanted, options_.seed, layer, expert, tensor);
                device_->copy_out(got.data(), ranks_[static_cast<size_t>(rank_)] + offset(layer, slot, tensor), got.size());
                result.compared += got.size();
                if (std::memcmp(got.data(), wanted.data(), got.size()) == 0) {
                    continue;
                }
                for (size_t at = 0; at < got.size(); ++at) {
                    if (got[at] != wanted[at] && result.wrong++ == 0) {
                        result.first = fmt::format("layer {}, slot {}, expert {}, tensor {}, byte {}: {:#04x} instead of {:#04x}", layer,
                                                   rank_ * local_slots_ + slot, expert, tensor, at, static_cast<unsigned char>(got[at]),
                                                   static_cast<unsigned char>(wanted[at]));
                    }
                }
            }
        }
    }
    return result;
}

void Weights::corrupt(const Map &map) {
    for (int slot = 0; slot < local_slots_; ++slot) {
        if (expert_in(map, 0, slot) >= 0) {
            flip_byte(*device_, ranks_[static_cast<size_t>(rank_)] + offset(0, slot, 0) + bytes_of(0) - 1);
            return;
        }
    }
}

void Weights::pull(const std::vector<int32_t> &sources, int32_t sms) {
    std::vector<Copy> copies;
    for (int layer = 0; layer < options_.layers; ++layer) {
        for (int slot = 0; slot < local_slots_; ++slot) {
            const int32_t source = expert_in(sources, layer, slot);
            if (!comes_from_elsewhere(source)) {
                continue;
            }
            const char *from = ranks_[static_cast<size_t>(source / local_slots_)];
            for (int tensor = 0; tensor < tensor_count(); ++tensor) {
                const char *rows = from + offset(layer, source % local_slots_, tensor);
                copies.push_back({landing_ + offset(0, slot, tensor), rows, bytes_of(tensor)});
            }
        }
        if (sms > 0) {
            device_->copy_by_sms(copies, sms);
        } else {
            for (const Copy &copy : copies) {
                device_->copy(copy.to, copy.from, copy.bytes);
            }
        }
        copies.clear();
    }
}

uint64_t Weights::pulled_bytes(const std::vector<int32_t> &sources) const {
    uint64_t bytes = 0;
    for (int layer = 0; layer < options_.layers; ++layer) {
        for (int slot = 0; slot < local_slots_; ++slot) {
            bytes += comes_from_elsewhere(expert_in(sources, layer, slot)) ? expert_bytes_ : 0;
        }
    }
    return bytes;
}

}  // namespace perf
