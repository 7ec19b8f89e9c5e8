// Life cycle of a weight-exchange communicator: connections, layers, queues, the outcome of rounds.
#pragma once

#include "base/guard.hpp"
#include "eplb/comm_backend.hpp"

#include <moelink/eplb_comm.h>

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace moelink::eplb {

class Rounds;

// Where a received expert lands before the round is agreed on.
enum class Landing {
    as_configured,  // staged, or with the DIRECT flag at its destination
    direct          // at its destination, which is not live: the caller copies it on once the round is agreed on
};

class Comm : public Referenced {
public:
    Comm(Ref<Group> group, int32_t kind);  // the kind is one that there is

    void init(const moelink_eplb_comm_params *params);
    void ensure(const moelink_eplb_comm_params *params);
    void reinit(const moelink_eplb_comm_params *params);
    void cleanup();

    void add_layer(int32_t number, const moelink_eplb_tensor *tensors, int32_t count, int32_t local_slots);
    void set_stream(moelink_stream stream);
    void set_context(const int32_t *old_indices, int64_t count, int32_t layer);
    void add_send(const moelink_rows *tensors, int32_t count, int32_t dst_rank, int32_t expert);
    void add_recv(const moelink_rows *tensors, int32_t count, int32_t src_rank, int32_t expert, Landing landing = Landing::as_configured);
    void execute();

    // execute in two halves, so that a round's data move while the one before it ends: at most two are under way, and what a round
    // sends and where it lands must not be touched by what follows the other. Not for kinds that act together.
    //
    // Local; what fails shows in finish. Rows must be stable once the communicator's stream has been waited for; settled: they are
    // already, and only landings wait for what is in that stream.
    void start(bool settled);
    // Local, before the first start.
    void prepare_overlap();
    // Collective, for the oldest that is under way; after an error none is.
    void finish();
    // Local. For what all ranks have agreed on: where it fails, this rank's slots are not what they should be, and no rank goes on.
    template <class Body>
    void or_poison(Body &&body) {
        try {
            body();
        } catch (const std::exception &error) {
            poison(error.what());
            group_->abort();
            throw;
        }
    }
    // Collective where any is under way: those fail on all ranks. What peers still read of this rank's rows, until they too return from
    // here, they drop.
    void call_off(const Outcome &why);
    bool can_overlap() const { return row_ != nullptr && !row_->together; }

    // For what is built on top. The group is the communicator's own and is there from init on; it is used by calls on the
    // communicator only. Throws INVALID_STATE when CREATED.
    Group &group();
    const Device &device() const { return device_; }
    StripCopier &copier() { return *copier_; }
    // No round is under way.
    bool idle() const { return flights_.empty(); }
    // Where an expert is staged, packed; place is below params().staging_experts. Rows that were received there directly stay until
    // others are staged.
    Strips staged(const Layer &layer, int place) const;
    const Layer &layer(int32_t number) const;  // throws INVALID_ARGUMENT when it is not registered
    moelink_stream stream() const { return stream_; }
    const moelink_eplb_comm_params &params() const { return params_; }

    int32_t state() const;
    int32_t kind() const { return row_ != nullptr ? row_->kind : wanted_; }
    bool needs_reservation() const { return row_ != nullptr && row_->reserves; }
    moelink_eplb_comm_info describe(std::string *reasons) const;
    void stats(moelink_eplb_comm_stats &out);
    void note_error(const std::string &text) const noexcept;
    std::string error() const;

protected:
    ~Comm() override;

private:
    struct Flight;
    enum class Queue { may_hold, must_be_empty };
    void require(Queue queue, const char *what) const;  // throws INVALID_STATE
    void open(const moelink_eplb_comm_params *given);
    const Layer &current() const;
    void check_route(int32_t rank, int32_t expert) const;
    Strips read_rows(const moelink_rows *tensors, int32_t count) const;
    Strips live_rows(int32_t expert) const;
    void clear_queues() noexcept;
    void poison(const std::string &text);
    void launch(moelink_stream stream, bool settled);
    void end(Flight &flight);
    void count(const Round &round);
    void take_counters();

    const Ref<Group> parent_;
    const int32_t wanted_;
    Device device_;

    Ref<Group> group_;
    const CommKind *row_ = nullptr;
    moelink_eplb_comm_params params_ = MOELINK_EPLB_COMM_PARAMS_INIT;
    std::vector<ProcessPlace> places_;
    std::string reason_;
    std::unique_ptr<StripCopier> copier_;
    std::unique_ptr<CommBackend> backend_;
    std::map<int32_t, std::unique_ptr<Layer>> layers_;
    Buffer staging_;
    uint64_t staging_bytes_ = 0;  // of one expert
    moelink_stream stream_ = nullptr;

    const Layer *layer_ = nullptr;  // of the transfer context
    std::vector<int32_t> old_indices_;
    uint64_t context_ = 0;
    std::vector<Transfer> sends_;
    std::vector<Transfer> receives_;
    std::vector<Strips> destinations_;  // of the receives; empty: they land there
    int32_t staged_ = 0;                // receives that land in staging

    uint64_t generation_ = 0;
    std::unique_ptr<Rounds> rounds_;
    std::array<std::unique_ptr<Stream>, 2> overlapped_;  // of data that move while the caller's stream is used
    std::deque<std::unique_ptr<Flight>> flights_;
    moelink_eplb_comm_stats stats_ = MOELINK_EPLB_COMM_STATS_INIT;
    std::vector<uint64_t> wait_ns_;
    bool poisoned_ = false;

    mutable std::mutex mutex_;  // error_
    mutable std::string error_;
};

}  // namespace moelink::eplb

struct moelink_eplb_comm {
    moelink::Ref<moelink::eplb::Comm> object;
};
