#include "eplb/networks.hpp"

#include "base/log.hpp"

namespace moelink::eplb {

namespace {

// UCX needs no thread of its own and no registered landings, so it comes first.
constexpr const NetworkKind *kinds[] = {&ucx_network_kind, &nixl_network_kind};

}  // namespace

Networks::Networks(const CommBackendParams &params) : group_(params.group) {
    for (const NetworkKind *kind : kinds) kinds_.push_back(std::make_unique<NetworkPeers>(params, *kind));
    wanted_ = kinds_[0]->wanted();
}

void Networks::meet(const Deadline &deadline) {
    int64_t most = 0;
    for (const auto &peers : kinds_) {
        const int64_t pairs = peers->meet(deadline);
        if (pairs > most) {
            if (chosen_ != nullptr) chosen_->leave();
            chosen_ = peers.get();
            most = pairs;
        } else {
            peers->leave();
        }
        if (most == wanted_) break;
    }
    for (int rank = 0; rank < group_.size(); ++rank) {
        const std::string text = describe(rank);
        if (!text.empty()) log(MOELINK_LOG_INFO, "rank {}: rank {}: {}", group_.rank(), rank, text);
    }
}

NetworkLayer Networks::look(const Layer &layer, std::vector<uint8_t> wanted, const Deadline &deadline) {
    if (chosen_) return chosen_->look(layer, std::move(wanted), deadline);
    NetworkLayer nothing;
    nothing.ranks.resize(size());
    return nothing;
}

std::string Networks::describe(int rank) const {
    if (reads(rank)) return chosen_->describe(rank);
    std::string refusals;
    for (const auto &peers : kinds_) {
        const std::string why = peers->describe(rank);
        refusals += refusals.empty() || why.empty() ? why : "; " + why;
    }
    return refusals;
}

}  // namespace moelink::eplb
