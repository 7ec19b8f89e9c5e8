// Read: the receiver copies from the peer's live rows, which are mapped here or which a network reads; no CPU of the peer takes part.
// Others are pulled through host memory.
#include "eplb/network_reads.hpp"
#include "eplb/networks.hpp"
#include "eplb/pull.hpp"
#include "eplb/reach.hpp"

namespace moelink::eplb {

namespace {

// Where a layer's rows are, by rank.
struct Looked {
    std::vector<Reached> reached;
    NetworkLayer network;
};

// layer: where the round's rows are; NULL for a round without transfers on this rank. network: NULL where nobody is read over one.
class ReadFlight final : public CommFlight {
public:
    ReadFlight(PullRoom &room, StripCopier &copier, Network *network, const Looked *looked, Round &round)
        : device_(room.device), copier_(copier), looked_(looked), round_(round), pull_(room, round) {
        if (network != nullptr) network_reads_ = std::make_unique<NetworkReads>(*network, room.chunk_bytes, Mark(device_, round.stream));
    }

    void ready(int peer) override {
        for (Transfer &receive : round_.receives) {
            if (receive.peer != peer) continue;
            const auto from = static_cast<size_t>(peer);
            if (receive.slot >= round_.layer->rank_slots[from]) {
                fail(MOELINK_ERR_PROTOCOL, "rank {} offers slot {} and has {}", peer, receive.slot, round_.layer->rank_slots[from]);
            }
            if (receive.slot >= 0 && !looked_->reached[from].slot0.empty()) {
                receive.link = MOELINK_EPLB_LINK_PEER;
                reads_.push_back(&receive);
            } else if (receive.slot >= 0 && !looked_->network.ranks[from].keys.empty()) {
                network_reads_->fetch(receive, looked_->network.ranks[from]);
            } else {
                pull_.fetch(receive);
            }
        }
    }

    void on_message(int from, const MessageHead &head, const Payload &payload) override { pull_.on_message(from, head, payload); }

    Busy poll() override {
        Busy busy = pull_.poll();
        if (network_reads_) busy = std::max(busy, network_reads_->poll());
        if (!reads_.empty()) start_copies();
        while (!copies_.empty() && copies_.front().mark.passed()) {
            for (Transfer *receive : copies_.front().receives) receive->landed = true;
            copies_.pop_front();
        }
        if (!copies_.empty()) busy = std::max(busy, Busy::waiting);
        return reads_.empty() ? busy : Busy::working;
    }

    void give_up() noexcept override {
        reads_.clear();
        if (network_reads_) network_reads_->give_up();
        pull_.give_up();
    }

    void end(bool) override {
        const bool copying = starting_ || !copies_.empty();
        reads_.clear();
        copies_.clear();
        if (copying) device_.synchronize(round_.stream);
        pull_.end();
        if (network_reads_) network_reads_->end();
    }

private:
    // Experts that are there when a point in the stream has passed.
    struct Copies {
        std::vector<Transfer *> receives;
        Mark mark;
    };

    // One expert a call, so that peers are served in between; a device gets all at once.
    void start_copies() {
        const size_t count = device_.on_cuda() ? reads_.size() : 1;
        std::vector<Transfer *> receives(reads_.begin(), reads_.begin() + static_cast<ptrdiff_t>(count));
        reads_.erase(reads_.begin(), reads_.begin() + static_cast<ptrdiff_t>(count));
        std::vector<ExpertCopy> copies;
        for (const Transfer *receive : receives) {
            const Reached &reached = looked_->reached[static_cast<size_t>(receive->peer)];
            copies.push_back({receive->rows, reached.rows(receive->slot), false, reached.by_kernels});
        }
        starting_ = true;
        copier_.copy(copies, round_.stream, false);
        copies_.push_back({std::move(receives), Mark(device_, round_.stream)});
        starting_ = false;
    }

    const Device &device_;
    StripCopier &copier_;
    const Looked *looked_;
    Round &round_;
    Pull pull_;
    std::unique_ptr<NetworkReads> network_reads_;
    std::deque<Transfer *> reads_;
    std::deque<Copies> copies_;  // in stream order
    bool starting_ = false;      // so it stays where that fails half-way
};

class Read final : public CommBackend {
public:
    explicit Read(const CommBackendParams &params)
        : copier_(params.copier), reach_(params), room_(params, PullRoom::Way::connections), networks_(params) {}

    // Collective.
    void meet(const Deadline &deadline) {
        if (networks_.needed()) networks_.meet(deadline);
    }

    void add_layer(const Layer &layer, const Deadline &deadline) override {
        looked_.reached = reach_.look(layer, deadline);
        looked_.network = {};
        looked_.network.ranks.resize(looked_.reached.size());
        if (!networks_.needed()) return;
        std::vector<uint8_t> wanted;
        for (const Reached &reached : looked_.reached) wanted.push_back(reached.why.empty() ? 0 : 1);
        looked_.network = networks_.look(layer, std::move(wanted), deadline);
    }
    void keep_layer(const Layer &layer) noexcept override { layers_[layer.number] = std::move(looked_); }
    void land_in(void *staging, uint64_t bytes) noexcept override {
        landing_.reset();
        if (networks_.network() != nullptr) landing_ = networks_.network()->land(staging, bytes);
    }

    std::unique_ptr<CommFlight> begin(Round &round) override {
        const Looked *looked = round.layer == nullptr ? nullptr : &layers_.at(round.layer->number);
        return std::make_unique<ReadFlight>(room_, copier_, networks_.network(), looked, round);
    }

    uint64_t host_bytes() const override { return room_.host_bytes(); }

    void describe(moelink_eplb_comm_info &info, std::string &reasons) const override {
        const Group &group = room_.group;
        if (group.on_cuda()) reasons += copier_.describe() + "\n";
        for (int rank = 0; rank < group.size(); ++rank) {
            if (rank == group.rank() || layers_.empty()) continue;
            const std::string joined = networks_.describe(rank);
            std::string why;
            bool over_network = false;
            bool by_kernels = true;
            for (const auto &[number, layer] : layers_) {
                const Reached &reached = layer.reached[static_cast<size_t>(rank)];
                by_kernels = by_kernels && reached.by_kernels;
                if (reached.why.empty()) continue;
                if (networks_.reads(rank) && layer.network.ranks[static_cast<size_t>(rank)].why.empty()) {
                    over_network = true;
                } else if (why.empty()) {
                    const std::string &refused = networks_.reads(rank) ? networks_.refusal(layer.network.ranks[static_cast<size_t>(rank)].why) : joined;
                    why = refused.empty() ? reached.why : reached.why + "; " + refused;
                }
            }
            ++(why.empty() ? info.read_peers : info.staged_peers);
            if (!why.empty()) reasons += fmt::format("rank {} is staged: {}\n", rank, why);
            if (why.empty() && !by_kernels && copier_.budget().from_peers != 0) {
                reasons += fmt::format("rank {} is read by the copy engines alone: some of its rows are not memory of cudaMalloc\n", rank);
            }
            if (over_network) reasons += fmt::format("rank {} is read over {}\n", rank, joined);
        }
    }

private:
    StripCopier &copier_;
    Reach reach_;
    PullRoom room_;
    Networks networks_;
    std::shared_ptr<NetworkMemory> landing_;
    Looked looked_;
    std::map<int32_t, Looked> layers_;  // by number
};

}  // namespace

const CommKind comm_read_kind = {MOELINK_EPLB_COMM_READ,
                                 "read",
                                 "nixl",
                                 "the receiver reads the peer's live rows where they are mapped here or a network reads them, and stages the others",
                                 false,
                                 false,
                                 &device_available,
                                 &pull_host_bytes,
                                 &make_comm_backend<Read>};

}  // namespace moelink::eplb
