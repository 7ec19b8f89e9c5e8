// Read: the receiver copies from the peer's live rows, which are mapped here or which UCX reads; no CPU of the peer takes part.
// Others are pulled through host memory.
#include "eplb/pull.hpp"
#include "eplb/reach.hpp"
#include "eplb/ucx_peers.hpp"
#include "eplb/ucx_reads.hpp"

namespace moelink::eplb {

namespace {

// Where a layer's rows are, by rank.
struct Looked {
    std::vector<Reached> reached;
    UcxLayer ucx;
};

// layer: where the round's rows are; NULL for a round without transfers on this rank. ucx: NULL where nobody is read over it.
class ReadFlight final : public CommFlight {
public:
    ReadFlight(PullRoom &room, UcxWorker *ucx, const Looked *looked, Round &round)
        : device_(room.device), looked_(looked), round_(round), pull_(room, round) {
        if (ucx != nullptr) ucx_reads_ = std::make_unique<UcxReads>(*ucx, room.chunk_bytes);
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
            } else if (receive.slot >= 0 && !looked_->ucx.ranks[from].keys.empty()) {
                ucx_reads_->fetch(receive, looked_->ucx.ranks[from]);
            } else {
                pull_.fetch(receive);
            }
        }
    }

    void on_message(int from, const MessageHead &head, const Payload &payload) override { pull_.on_message(from, head, payload); }

    // One expert a call, so that peers are served in between; a device gets all at once.
    Busy poll() override {
        Busy busy = pull_.poll();
        if (ucx_reads_) busy = std::max(busy, ucx_reads_->poll());
        while (!reads_.empty()) {
            Transfer &receive = *reads_.front();
            reads_.pop_front();
            const Strips source = looked_->reached[static_cast<size_t>(receive.peer)].rows(receive.slot);
            copies_.push_back(Copy{&receive, Mark()});
            copy_strips(device_, receive.rows, source, round_.stream);
            copies_.back().mark = Mark(device_, round_.stream);
            if (!device_.on_cuda()) break;
        }
        while (!copies_.empty() && copies_.front().mark.passed()) {
            copies_.front().receive->landed = true;
            copies_.pop_front();
        }
        if (!copies_.empty()) busy = std::max(busy, Busy::waiting);
        return reads_.empty() ? busy : Busy::working;
    }

    void give_up() noexcept override {
        reads_.clear();
        if (ucx_reads_) ucx_reads_->give_up();
        pull_.give_up();
    }

    void end(bool) override {
        const bool copying = !copies_.empty();
        reads_.clear();
        copies_.clear();
        if (copying) device_.synchronize(round_.stream);
        pull_.end();
        if (ucx_reads_) ucx_reads_->end();
    }

private:
    struct Copy {
        Transfer *receive;
        Mark mark;
    };

    const Device &device_;
    const Looked *looked_;
    Round &round_;
    Pull pull_;
    std::unique_ptr<UcxReads> ucx_reads_;
    std::deque<Transfer *> reads_;
    std::deque<Copy> copies_;  // in stream order
};

class Read final : public CommBackend {
public:
    explicit Read(const CommBackendParams &params) : reach_(params), room_(params, PullRoom::Way::connections), ucx_(params) {}

    // Collective.
    void meet(const Deadline &deadline) {
        if (ucx_.needed()) ucx_.meet(deadline);
    }

    void add_layer(const Layer &layer, const Deadline &deadline) override {
        looked_.reached = reach_.look(layer, deadline);
        looked_.ucx = {};
        looked_.ucx.ranks.resize(looked_.reached.size());
        if (!ucx_.needed()) return;
        std::vector<uint8_t> wanted;
        for (const Reached &reached : looked_.reached) wanted.push_back(reached.why.empty() ? 0 : 1);
        looked_.ucx = ucx_.look(layer, std::move(wanted), deadline);
    }
    void keep_layer(const Layer &layer) noexcept override { layers_[layer.number] = std::move(looked_); }

    std::unique_ptr<CommFlight> begin(Round &round) override {
        return std::make_unique<ReadFlight>(room_, ucx_.worker(), round.layer == nullptr ? nullptr : &layers_.at(round.layer->number), round);
    }

    uint64_t host_bytes() const override { return room_.host_bytes(); }

    void describe(moelink_eplb_comm_info &info, std::string &reasons) const override {
        const Group &group = room_.group;
        for (int rank = 0; rank < group.size(); ++rank) {
            if (rank == group.rank() || layers_.empty()) continue;
            const std::string joined = ucx_.describe(rank);
            std::string why;
            bool over_ucx = false;
            for (const auto &[number, layer] : layers_) {
                const Reached &reached = layer.reached[static_cast<size_t>(rank)];
                if (reached.why.empty()) continue;
                if (ucx_.reads(rank) && layer.ucx.ranks[static_cast<size_t>(rank)].why.empty()) {
                    over_ucx = true;
                } else if (why.empty()) {
                    const std::string &refused = ucx_.reads(rank) ? "UCX: " + layer.ucx.ranks[static_cast<size_t>(rank)].why : joined;
                    why = refused.empty() ? reached.why : reached.why + "; " + refused;
                }
            }
            ++(why.empty() ? info.read_peers : info.staged_peers);
            if (!why.empty()) reasons += fmt::format("rank {} is staged: {}\n", rank, why);
            if (over_ucx) reasons += fmt::format("rank {} is read over {}\n", rank, joined);
        }
    }

private:
    Reach reach_;
    PullRoom room_;
    UcxPeers ucx_;
    Looked looked_;
    std::map<int32_t, Looked> layers_;  // by number
};

}  // namespace

const CommKind comm_read_kind = {MOELINK_EPLB_COMM_READ,
                                 "read",
                                 "nixl",
                                 "the receiver reads the peer's live rows where they are mapped here or UCX reads them, and stages the others",
                                 false,
                                 false,
                                 &device_available,
                                 &pull_host_bytes,
                                 &make_comm_backend<Read>};

}  // namespace moelink::eplb
