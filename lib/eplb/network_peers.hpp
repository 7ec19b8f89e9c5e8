// Which ranks this one reads over one network, and where their live rows are. Only ranks whose memory is not to be mapped here are joined
// so, and only those whose memory comes while they sleep: what needs their CPU is no better than staging, and can stop a round.
#pragma once

#include "eplb/comm_backend.hpp"
#include "eplb/network.hpp"

namespace moelink::eplb {

// A layer's rows of the ranks that were asked for, and this rank's own memory that others may read.
struct NetworkLayer {
    struct Rows {
        std::vector<std::unique_ptr<NetworkKey>> keys;  // by tensor; empty: they cannot be read, and why says so
        std::vector<uint64_t> base;                 // in the peer's process
        std::vector<uint64_t> slot_stride;
        std::vector<uint64_t> row_stride;
        std::string why;
    };
    std::vector<std::shared_ptr<NetworkMemory>> mine;
    std::vector<Rows> ranks;
};

class NetworkPeers {
public:
    NetworkPeers(const CommBackendParams &params, const NetworkKind &kind);
    ~NetworkPeers();
    NetworkPeers(const NetworkPeers &) = delete;
    NetworkPeers &operator=(const NetworkPeers &) = delete;

    // Ordered pairs of ranks that are to be joined; all ranks say the same.
    int64_t wanted() const;
    // Collective. Connects, and tries which ranks can be read; never fails because some cannot. Gives the ordered pairs of which the
    // first reads the second, on all ranks the same.
    int64_t meet(const Deadline &deadline);
    // Local. Nobody is to be read over it any more, for the reasons that were found or because another network is better.
    void leave();
    // Collective. Where the rows of the ranks with wanted[rank] != 0 are.
    NetworkLayer look(const Layer &layer, std::vector<uint8_t> wanted, const Deadline &deadline);

    size_t size() const { return peers_.size(); }
    // Rows of this rank can be read.
    bool reads(int rank) const { return peers_[static_cast<size_t>(rank)].proven; }
    // What joins the rank, or why nothing does; "" when the two were not to be joined.
    std::string describe(int rank) const;
    // NULL when nobody reads anybody.
    Network *network() { return network_.get(); }
    // What a rank that cannot be read is refused with.
    std::string refusal(const std::string &why) const { return std::string(kind_.name) + ": " + why; }

private:
    struct Peer {
        bool proven = false;
        std::string why;         // it is not
        std::string transports;  // where it is
        std::unique_ptr<NetworkKey> probe_key;
        uint64_t probe = 0;      // address of its probe
        uint64_t seed = 0;       // what its probe holds
        Buffer landing;
        std::vector<std::unique_ptr<NetworkGet>> gets;
    };
    class Progress;

    bool joined(int a, int b) const;
    bool introduce(const Deadline &deadline);
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
    const NetworkKind &kind_;
    std::shared_ptr<Network> network_;
    Buffer probe_;
    std::shared_ptr<NetworkMemory> probe_memory_;
    std::vector<Peer> peers_;
};

}  // namespace moelink::eplb
