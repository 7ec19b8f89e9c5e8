#include "eplb/ucx_ring.hpp"

namespace moelink::eplb {

UcxRing::UcxRing(const CommBackendParams &params)
    : peers_(CommBackendParams{params.group, host_, params.copier, params.places, params.params}) {}

// A ring is a layer of one slot to UcxPeers.
void UcxRing::meet(unsigned char *ring, uint64_t bytes, const Deadline &deadline) {
    peers_.meet(deadline);
    const size_t ranks = peers_.size();
    Layer layer;
    layer.tensors = {moelink_eplb_tensor{ring, bytes, 1, bytes, bytes}};
    layer.local_slots = 1;
    layer.rank_slots.assign(ranks, 1);
    rings_ = peers_.look(layer, std::vector<uint8_t>(ranks, 1), deadline);
}

UcxGet UcxRing::get(int rank, uint64_t offset, void *to, uint64_t bytes) const {
    const UcxLayer::Rows &rows = rings_.ranks[static_cast<size_t>(rank)];
    return UcxGet(*rows.keys[0], to, rows.base[0] + offset, bytes);
}

std::string UcxRing::describe(int rank) const {
    const std::string joined = peers_.describe(rank);
    if (!peers_.reads(rank) || reads(rank)) return joined;
    return "UCX: " + rings_.ranks[static_cast<size_t>(rank)].why;
}

}  // namespace moelink::eplb
