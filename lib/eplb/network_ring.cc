#include "eplb/network_ring.hpp"

namespace moelink::eplb {

NetworkRing::NetworkRing(const CommBackendParams &params)
    : networks_(CommBackendParams{params.group, host_, params.copier, params.places, params.params}) {}

// A ring is a layer of one slot to a network's peers.
void NetworkRing::meet(unsigned char *ring, unsigned char *landing, uint64_t bytes, const Deadline &deadline) {
    networks_.meet(deadline);
    if (networks_.network() == nullptr) return;
    landing_ = networks_.network()->land(landing, bytes);
    const size_t ranks = networks_.size();
    Layer layer;
    layer.tensors = {moelink_eplb_tensor{ring, bytes, 1, bytes, bytes}};
    layer.local_slots = 1;
    layer.rank_slots.assign(ranks, 1);
    rings_ = networks_.look(layer, std::vector<uint8_t>(ranks, 1), deadline);
}

std::unique_ptr<NetworkGet> NetworkRing::get(int rank, uint64_t offset, void *to, uint64_t bytes) const {
    const NetworkLayer::Rows &rows = rings_.ranks[static_cast<size_t>(rank)];
    return rows.keys[0]->get(to, rows.base[0] + offset, bytes);
}

std::string NetworkRing::describe(int rank) const {
    const std::string joined = networks_.describe(rank);
    if (!networks_.reads(rank) || reads(rank)) return joined;
    return networks_.refusal(rings_.ranks[static_cast<size_t>(rank)].why);
}

}  // namespace moelink::eplb
