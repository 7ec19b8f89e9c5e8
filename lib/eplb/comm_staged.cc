// Staged: every expert goes through host memory; between hosts over a network where that reads it there.
#include "eplb/pull.hpp"

namespace moelink::eplb {

namespace {

class StagedFlight final : public CommFlight {
public:
    StagedFlight(PullRoom &room, Round &round) : round_(round), pull_(room, round) {}

    void ready(int peer) override {
        for (Transfer &receive : round_.receives) {
            if (receive.peer == peer) pull_.fetch(receive);
        }
    }
    void on_message(int from, const MessageHead &head, const Payload &payload) override { pull_.on_message(from, head, payload); }
    Busy poll() override { return pull_.poll(); }
    void give_up() noexcept override { pull_.give_up(); }
    void end(bool) override { pull_.end(); }

private:
    Round &round_;
    Pull pull_;
};

class Staged final : public CommBackend {
public:
    explicit Staged(const CommBackendParams &params) : room_(params, PullRoom::Way::network_too) {}

    // Collective.
    void meet(const Deadline &deadline) { room_.meet(deadline); }

    std::unique_ptr<CommFlight> begin(Round &round) override { return std::make_unique<StagedFlight>(room_, round); }
    uint64_t host_bytes() const override { return room_.host_bytes(); }
    void describe(moelink_eplb_comm_info &info, std::string &reasons) const override {
        info.staged_peers = room_.group.size() - 1;
        for (int rank = 0; rank < room_.group.size(); ++rank) {
            const std::string joined = rank == room_.group.rank() ? "" : room_.network->describe(rank);
            if (joined.empty()) continue;
            reasons += room_.reads(rank) ? fmt::format("rank {} is staged over {}\n", rank, joined)
                                         : fmt::format("rank {} is staged over the group's connections: {}\n", rank, joined);
        }
    }

private:
    PullRoom room_;
};

}  // namespace

uint64_t pull_host_bytes(int32_t device, const moelink_eplb_comm_params &params) {
    return ChunkRing::bytes(params.chunk_bytes) * (device == MOELINK_DEVICE_CUDA ? 2 : 1);
}

const CommKind comm_staged_kind = {MOELINK_EPLB_COMM_STAGED,
                                   "staged",
                                   "torch_gloo gloo",
                                   "through host memory and the group's own connections; needs nothing else",
                                   false,
                                   false,
                                   &device_available,
                                   &pull_host_bytes,
                                   &make_comm_backend<Staged>};

}  // namespace moelink::eplb
