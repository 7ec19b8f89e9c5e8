// Read: the receiver copies from the peer's live rows, which are mapped here; no CPU of the peer takes part. What is not mapped is
// pulled through host memory.
#include "eplb/pull.hpp"
#include "eplb/reach.hpp"

namespace moelink::eplb {

namespace {

class Read final : public CommBackend {
public:
    explicit Read(const CommBackendParams &params)
        : group_(params.group), device_(params.device), reach_(params.group, params.device, params.places),
          pull_(params) {}

    void add_layer(const Layer &layer, const Deadline &deadline) override { looked_ = reach_.look(layer, deadline); }
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
            if (readable(receive)) {
                receive.link = MOELINK_EPLB_LINK_PEER;
                reads_.push_back(&receive);
            } else {
                pull_.fetch(receive);
            }
        }
    }

    void on_message(int from, const MessageHead &head, const Payload &payload) override { pull_.on_message(from, head, payload); }

    // One expert a call, so that peers are served in between; a device gets all at once.
    bool poll() override {
        const bool pulling = pull_.poll();
        while (!reads_.empty()) {
            Transfer &receive = *reads_.front();
            reads_.pop_front();
            const Strips source = reached(receive).rows(receive.slot);
            copies_.push_back(Copy{&receive, Mark()});
            copy_strips(device_, receive.rows, source, round_->stream);
            copies_.back().mark = Mark(device_, round_->stream);
            if (!device_.on_cuda()) break;
        }
        while (!copies_.empty() && copies_.front().mark.passed()) {
            copies_.front().receive->landed = true;
            copies_.pop_front();
        }
        return pulling || !reads_.empty() || !copies_.empty();
    }

    void give_up() noexcept override {
        reads_.clear();
        pull_.give_up();
    }

    void end(bool) override {
        const bool copying = !copies_.empty();
        reads_.clear();
        copies_.clear();
        if (copying) device_.synchronize(round_->stream);
        pull_.end();
        round_ = nullptr;
    }

    uint64_t host_bytes() const override { return pull_.host_bytes(); }

    void describe(moelink_eplb_comm_info &info, std::string &reasons) const override {
        for (int rank = 0; rank < group_.size(); ++rank) {
            if (rank == group_.rank() || layers_.empty()) continue;
            const std::string *why = nullptr;
            for (const auto &[number, layer] : layers_) {
                const Reached &reached = layer[static_cast<size_t>(rank)];
                if (why == nullptr && !reached.why.empty()) why = &reached.why;
            }
            ++(why == nullptr ? info.read_peers : info.staged_peers);
            if (why != nullptr) reasons += fmt::format("rank {} is staged: {}\n", rank, *why);
        }
    }

private:
    struct Copy {
        Transfer *receive;
        Mark mark;
    };

    const Reached &reached(const Transfer &receive) const {
        return layers_.at(round_->layer->number)[static_cast<size_t>(receive.peer)];
    }
    bool readable(const Transfer &receive) const { return receive.slot >= 0 && !reached(receive).slot0.empty(); }

    Group &group_;
    const Device &device_;
    Reach reach_;
    Pull pull_;
    std::vector<Reached> looked_;
    std::map<int32_t, std::vector<Reached>> layers_;  // by layer, by rank
    Round *round_ = nullptr;
    std::deque<Transfer *> reads_;
    std::deque<Copy> copies_;  // in stream order
};

}  // namespace

const CommKind comm_read_kind = {MOELINK_EPLB_COMM_READ,
                                 "read",
                                 "nixl",
                                 "the receiver reads the peer's live rows where they are mapped here, and stages the others",
                                 false,
                                 false,
                                 &device_available,
                                 &pull_host_bytes,
                                 &make_comm_backend<Read>};

}  // namespace moelink::eplb
