// Which ranks this one reads over UCX, and where their live rows are. Only ranks whose memory is not to be mapped here are joined
// so, and only those whose memory comes while they sleep: what needs their CPU is no better than staging, and can stop a round.
#pragma once

#include "eplb/comm_backend.hpp"
#include "eplb/ucx_worker.hpp"

namespace moelink::eplb {

// A layer's rows of the ranks that were asked for, and this rank's own memory that others may read.
struct UcxLayer {
    struct Rows {
        std::vector<std::shared_ptr<UcxKey>> keys;  // by tensor; empty: they cannot be read, and why says so
        std::vector<uint64_t> base;                 // in the peer's process
        std::vector<uint64_t> slot_stride;
        std::vector<uint64_t> row_stride;
        std::string why;
    };
    std::vector<std::unique_ptr<UcxMemory>> mine;
    std::vector<Rows> ranks;
};

class UcxPeers {
public:
    explicit UcxPeers(const CommBackendParams &params);

    // Whether any two ranks are to be joined; all ranks say the same. If not, nothing below is called and UCX is not loaded.
    bool needed() const;
    // Collective. Connects, and tries which ranks can be read; never fails because some cannot.
    void meet(const Deadline &deadline);
    // Collective. Where the rows of the ranks with wanted[rank] != 0 are.
    UcxLayer look(const Layer &layer, std::vector<uint8_t> wanted, const Deadline &deadline);

    size_t size() const { return peers_.size(); }
    // Rows of this rank can be read.
    bool reads(int rank) const { return peers_[static_cast<size_t>(rank)].proven; }
    // What joins the rank, or why nothing does; "" when the two were not to be joined.
    std::string describe(int rank) const;
    // NULL when nobody reads anybody.
    UcxWorker *worker() { return worker_.get(); }

private:
    struct Peer {
        bool proven = false;
        std::string why;         // it is not
        std::string transports;  // where it is
        std::unique_ptr<UcxKey> probe_key;
        uint64_t probe = 0;      // address of its probe
        uint64_t seed = 0;       // what its probe holds
        Buffer landing;
        std::vector<UcxGet> gets;
    };
    class Progress;

    bool joined(int a, int b) const;
    void introduce(const Deadline &deadline);
    void wire(const Deadline &deadline);
    void prove(const Deadline &deadline);
    void give_up();
    bool drain(const Deadline &deadline);
    void start(Peer &peer, uint64_t from, uint64_t bytes);
    // What has come is taken off; false: something is still under way. A rank whose reading fails is refused.
    bool collect();
    bool collect_until(const Deadline &deadline);
    void check(int rank, Peer &peer);
    void refuse(Peer &peer, std::string why);

    Group &group_;
    const Device &device_;
    const std::vector<ProcessPlace> places_;
    const uint32_t flags_;
    std::shared_ptr<UcxWorker> worker_;
    Buffer probe_;
    std::unique_ptr<UcxMemory> probe_memory_;
    std::vector<Peer> peers_;
    std::string version_;
};

}  // namespace moelink::eplb
