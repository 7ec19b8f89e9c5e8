#include "moe/peer_slots.hpp"

#include "base/log.hpp"

#include <algorithm>

namespace moelink {

void check_workspace(const Group &group, const Config &config) {
    const bool host_memory = config.provider == MOELINK_MEMORY_HOST_SHM;
    if (config.provider != MOELINK_MEMORY_AUTO && host_memory == group.on_cuda()) {
        fail(MOELINK_ERR_UNSUPPORTED, "config.provider is {}, which is not memory of a {} group", moelink_provider_name(config.provider),
             group.on_cuda() ? "CUDA" : "host");
    }
    if (group.on_cuda() && group.size() > MOELINK_MAX_CUDA_RANKS) {
        fail(MOELINK_ERR_UNSUPPORTED, "the group has {} ranks; on CUDA the limit is {}", group.size(), int{MOELINK_MAX_CUDA_RANKS});
    }
}

PeerSlots::PeerSlots(const BackendParams &params, const Memory &memory, uint64_t slot_bytes) {
    const auto ranks = static_cast<size_t>(params.group->size()), slots = static_cast<size_t>(params.config.slots);
    peers_.resize(slots * ranks);
    for (size_t slot = 0; slot < slots; ++slot) {
        for (size_t rank = 0; rank < ranks; ++rank) {
            peers_[slot * ranks + rank] = static_cast<unsigned char *>(memory.peer(static_cast<int>(rank))) + slot * slot_bytes;
        }
    }
    device_peers_ = Buffer(params.device, peers_.size() * sizeof(peers_[0]));
    params.device.write(device_peers_.as(), peers_.data(), peers_.size() * sizeof(peers_[0]));
}

kernels::Workspace PeerSlots::workspace(const BackendParams &params, size_t slot) const {
    const auto ranks = static_cast<size_t>(params.group->size());
    kernels::Workspace ws{};
    ws.rank = params.group->rank();
    ws.ranks = params.group->size();
    ws.owners = params.owners;
    ws.top_k = params.config.top_k;
    ws.capacity = params.config.max_tokens;
    ws.timeout_ns = params.config.timeout_ns;
    ws.generation = params.generation;
    ws.anchor = params.faults.anchor();
    ws.fault = params.faults.device_view();
    ws.peers = device_peers_.as<unsigned char *>() + slot * ranks;
    if (ranks <= kernels::near_ranks) std::copy_n(peers_.begin() + static_cast<std::ptrdiff_t>(slot * ranks), ranks, ws.near);
    ws.mine = peers_[slot * ranks + static_cast<size_t>(ws.rank)];
    return ws;
}

GpuShare::GpuShare(Group &group, const Device &device, const Config &config, const Deadline &deadline) : sm_budget_(config.sm_budget) {
    std::vector<GpuName> all = group.allgather(device.gpu_name(), deadline);
    const GpuName &mine = all[static_cast<size_t>(group.rank())];
    const int sharing = static_cast<int>(std::count(all.begin(), all.end(), mine));
    blocks_ = std::max(1, device.multiprocessors() / (sharing * config.slots));
    alone_ = sharing * config.slots == 1;
    log(MOELINK_LOG_DEBUG, "rank {}: {} ranks share this GPU; kernels use up to {} blocks", group.rank(), sharing, blocks_);
}

kernels::cuda::Launch GpuShare::launch(int32_t tokens, int32_t sm_budget, moelink_stream stream) const {
    constexpr int32_t most_early = 2048;  // above, blocks that follow others one by one cost more than they save (docs/measurements.md)
    const int32_t budget = sm_budget > 0 ? sm_budget : sm_budget_;
    return {budget > 0 ? std::min(blocks_, budget) : blocks_, tokens, alone_ && budget == 0 && tokens <= most_early, stream};
}

}  // namespace moelink
