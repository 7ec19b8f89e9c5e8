// Chunks that are read from their sender's ring over a network instead of being sent: between hosts where that takes none of the
// sender's CPU. It knows host memory only, whatever the ranks' device is.
#pragma once

#include "eplb/networks.hpp"

namespace moelink::eplb {

class NetworkRing {
public:
    explicit NetworkRing(const CommBackendParams &params);

    // Whether any two ranks are to be joined; all ranks say the same. If not, nothing below is called.
    bool needed() const { return networks_.needed(); }
    // Collective. `ring` is this rank's memory that peers may read, as large on every rank, `landing` what it reads into, as large; never
    // fails because some cannot.
    void meet(unsigned char *ring, unsigned char *landing, uint64_t bytes, const Deadline &deadline);

    // The ring of this rank can be read.
    bool reads(int rank) const { return !rings_.ranks.empty() && !rings_.ranks[static_cast<size_t>(rank)].keys.empty(); }
    std::unique_ptr<NetworkGet> get(int rank, uint64_t offset, void *to, uint64_t bytes) const;
    // What joins the rank, or why nothing does; "" when the two were not to be joined.
    std::string describe(int rank) const;
    Network &network() { return *networks_.network(); }

private:
    const Device host_;
    Networks networks_;
    NetworkLayer rings_;
    std::shared_ptr<NetworkMemory> landing_;
};

}  // namespace moelink::eplb
