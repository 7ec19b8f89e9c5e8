// Read: the receiver copies from the peer's live rows, which are mapped here or which UCX reads; no CPU of the peer takes part.
// Others are pulled through host memory.
#include "eplb/pull.hpp"
#include "eplb/reach.hpp"
#include "eplb/ucx_peers.hpp"
#include "eplb/ucx_reads.hpp"

namespace moelink::eplb {

namespace {

class Read final : public CommBackend {
public:
    explicit Read(const CommBackendParams &params)
        : group_(params.group), device_(params.device), reach_(params), pull_(params), ucx_(params),
          piece_bytes_(params.params.chunk_bytes) {}

    // Collective.
    void meet(const Deadline &deadline) {
        if (!ucx_.needed()) return;
        ucx_.meet(deadline);
        if (ucx_.worker() != nullptr) ucx_reads_ = std::make_unique<UcxReads>(*ucx_.worker(), piece_bytes_);
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

    void begin(Round &round) override {
        round_ = &round;
        pull_.begin(round);
    }

    void ready(int peer) override {
        for (Transfer &receive : round_->receives) {
            if (receive.peer != peer) continue;
            if (receive.slot >= round_->layer->rank_slots[static_cast<size_t>(peer)]) {
                fail(MOELINK_ERR_PROTOCOL, "rank {} offers slot {} and has {}", peer, receive.slot,
                     round_->layer->rank_slots[static_cast<size_t>(peer)]);
            }
            const Looked &looked = layers_.at(round_->layer->number);
            const size_t from = static_cast<size_t>(peer);
            if (receive.slot >= 0 && !looked.reached[from].slot0.empty()) {
                receive.link = MOELINK_EPLB_LINK_PEER;
                reads_.push_back(&receive);
            } else if (receive.slot >= 0 && !looked.ucx.ranks[from].keys.empty()) {
                ucx_reads_->fetch(receive, looked.ucx.ranks[from]);
            } else {
                pull_.fetch(receive);
            }
        }
    }

    void on_message(int from, const MessageHead &head, const Payload &payload) override { pull_.on_message(from, head, payload); }

    // One expert a call, so that peers are served in between; a device gets all at once.
    bool poll() override {
        const bool pulling = pull_.poll();
        const bool getting = ucx_reads_ && ucx_reads_->poll();
        while (!reads_.empty()) {
            Transfer &receive = *reads_.front();
            reads_.pop_front();
            const Strips source = layers_.at(round_->layer->number).reached[static_cast<size_t>(receive.peer)].rows(receive.slot);
            copies_.push_back(Copy{&receive, Mark()});
            copy_strips(device_, receive.rows, source, round_->stream);
            copies_.back().mark = Mark(device_, round_->stream);
            if (!device_.on_cuda()) break;
        }
        while (!copies_.empty() && copies_.front().mark.passed()) {
            copies_.front().receive->landed = true;
            copies_.pop_front();
        }
        return pulling || getting || !reads_.empty() || !copies_.empty();
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
        if (copying) device_.synchronize(round_->stream);
        pull_.end();
        round_ = nullptr;
        if (ucx_reads_) ucx_reads_->end();
    }

    uint64_t host_bytes() const override { return pull_.host_bytes(); }

    void describe(moelink_eplb_comm_info &info, std::string &reasons) const override {
        for (int rank = 0; rank < group_.size(); ++rank) {
            if (rank == group_.rank() || layers_.empty()) continue;
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
    struct Copy {
        Transfer *receive;
        Mark mark;
    };

    // Where a layer's rows are, by rank.
    struct Looked {
        std::vector<Reached> reached;
        UcxLayer ucx;
    };

    Group &group_;
    const Device &device_;
    Reach reach_;
    Pull pull_;
    UcxPeers ucx_;
    const uint64_t piece_bytes_;
    std::unique_ptr<UcxReads> ucx_reads_;
    Looked looked_;
    std::map<int32_t, Looked> layers_;  // by number
    Round *round_ = nullptr;
    std::deque<Transfer *> reads_;
    std::deque<Copy> copies_;  // in stream order
};

std::unique_ptr<CommBackend> make_read(const CommBackendParams &params) {
    const Deadline deadline = Deadline::after_ns(params.params.timeout_ns);
    std::unique_ptr<Read> made;
    step(params.group, deadline, [&] { made = std::make_unique<Read>(params); });
    made->meet(deadline);
    return made;
}

}  // namespace

const CommKind comm_read_kind = {MOELINK_EPLB_COMM_READ,
                                 "read",
                                 "nixl",
                                 "the receiver reads the peer's live rows where they are mapped here or UCX reads them, and stages the others",
                                 false,
                                 false,
                                 &device_available,
                                 &pull_host_bytes,
                                 &make_read};

}  // namespace moelink::eplb
