// The network that joins a group's ranks: the first kind that reads every rank it should, else the one that reads the most.
#pragma once

#include "eplb/network_peers.hpp"

namespace moelink::eplb {

class Networks {
public:
    explicit Networks(const CommBackendParams &params);

    // Whether any two ranks are to be joined; all ranks say the same. If not, nothing below is called and no library is loaded.
    bool needed() const { return wanted_ != 0; }
    // Collective; never fails because some ranks cannot be read.
    void meet(const Deadline &deadline);
    // Collective. As NetworkPeers has it.
    NetworkLayer look(const Layer &layer, std::vector<uint8_t> wanted, const Deadline &deadline);

    size_t size() const { return kinds_[0]->size(); }
    // NULL when nobody reads anybody.
    Network *network() { return chosen_ ? chosen_->network() : nullptr; }
    bool reads(int rank) const { return chosen_ && chosen_->reads(rank); }
    // What joins the rank, or why nothing does; "" when the two were not to be joined.
    std::string describe(int rank) const;
    std::string refusal(const std::string &why) const { return chosen_->refusal(why); }

private:
    Group &group_;
    std::vector<std::unique_ptr<NetworkPeers>> kinds_;  // those that may be tried, in turn
    int64_t wanted_;                                    // ordered pairs of ranks
    NetworkPeers *chosen_ = nullptr;
};

}  // namespace moelink::eplb
