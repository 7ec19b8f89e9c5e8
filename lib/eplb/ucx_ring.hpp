// Chunks that are read from their sender's ring over UCX instead of being sent: between hosts whose network does that without the
// sender's CPU. It knows host memory only, whatever the ranks' device is.
#pragma once

#include "eplb/ucx_peers.hpp"

namespace moelink::eplb {

class UcxRing {
public:
    explicit UcxRing(const CommBackendParams &params);

    // Whether any two ranks are to be joined; all ranks say the same. If not, nothing below is called.
    bool needed() const { return peers_.needed(); }
    // Collective. `ring` is this rank's memory that peers may read, as large on every rank; never fails because some cannot.
    void meet(unsigned char *ring, uint64_t bytes, const Deadline &deadline);

    // The ring of this rank can be read.
    bool reads(int rank) const { return !rings_.ranks.empty() && !rings_.ranks[static_cast<size_t>(rank)].keys.empty(); }
    UcxGet get(int rank, uint64_t offset, void *to, uint64_t bytes) const;
    // What joins the rank, or why nothing does; "" when the two were not to be joined.
    std::string describe(int rank) const;
    UcxWorker &worker() { return *peers_.worker(); }

private:
    const Device host_;
    UcxPeers peers_;
    UcxLayer rings_;
};

}  // namespace moelink::eplb
