// One way to move experts: a file that implements CommBackend and one row in the table of kinds (comm_kinds.cc).
#pragma once

#include "eplb/strip_copier.hpp"
#include "group/agreement.hpp"
#include "group/group.hpp"
#include "memory/place.hpp"

#include <moelink/eplb_comm.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace moelink::eplb {

// A layer as all ranks have agreed on it. Strides are set.
struct Layer {
    int32_t number = 0;
    std::vector<moelink_eplb_tensor> tensors;  // this rank's
    int32_t local_slots = 0;
    std::vector<int32_t> rank_slots;  // of every rank
    int64_t slots = 0;                // of all ranks
    uint64_t expert_bytes = 0;

    // This rank's live rows of a slot.
    Strips live(int32_t slot) const;
    // The slot whose live rows these are; -1: no slot's.
    int32_t slot_of(const Strips &strips) const;
};

// One expert on its way between this rank and a peer.
struct Transfer {
    int peer = 0;  // the rank at the other end
    int32_t expert = 0;
    Strips rows;       // what is sent, or where it lands
    int32_t slot = -1; // the sender's slot whose live rows they are; -1: other memory
    uint64_t code = 0; // the sender's, where codes are wanted
    uint32_t item = 0; // receives: number in the sender's list for this rank
    int32_t link = MOELINK_EPLB_LINK_LOCAL;  // receives: MOELINK_EPLB_LINK_*
    bool landed = false;
};

// What a round is to a back end. Outlives its flight.
struct Round {
    uint64_t generation = 0;
    const Layer *layer = nullptr;  // NULL: no transfers on this rank
    std::vector<Transfer> sends;   // by peer; those to one peer in the order of their items, by expert
    std::vector<Transfer> receives;
    moelink_stream after = nullptr;   // once this stream has been waited for, the rows of the sends are stable
    bool settled = false;             // they are without that
    moelink_stream stream = nullptr;  // experts move on this one, behind what is in `after`
    Deadline deadline;  // of the data
};

// First bytes of every message of a communicator. Those of other rounds never reach a back end.
struct MessageHead {
    uint64_t generation;
    uint32_t kind;  // below 16: the protocol's own (comm_round.cc); from 16 on: a back end's
    uint32_t item;
    uint64_t offset;
    uint64_t bytes;
};
static_assert(sizeof(MessageHead) == 32);

// A round under way, as a back end moves it. All calls come from the thread that is in a call on the communicator. Throwing an Error
// fails the round on every rank; throwing LostRound (comm_round.hpp), or the status DEVICE, poisons the communicator on all of them
// too. After it has thrown it may still be polled. end() is called before it goes.
class CommFlight {
public:
    virtual ~CommFlight() = default;
    // This peer's rows are stable, and its list matches: receives from it have slot, code and item set. For kinds that act
    // together it comes for all peers, after every rank has said that it goes on.
    virtual void ready(int peer) = 0;
    virtual void on_message(int from, const MessageHead &, const Payload &) { (void)from; }
    // Starts and ends copies; sets landed and, of receives from other ranks, link. Also called while this rank waits for the others'
    // outcome, since peers may still want its rows.
    virtual Busy poll() = 0;
    // This rank wants nothing more in this round; peers may still want its rows.
    virtual void give_up() noexcept {}
    // The round is over, agreed or not: nothing that it started still touches rows or landings. Throws only DEVICE.
    virtual void end(bool agreed) = 0;
};

class CommBackend {
public:
    virtual ~CommBackend() = default;
    // Collective; throws alike on all ranks, and then has taken nothing. A layer of the same number is replaced by keep_layer.
    virtual void add_layer(const Layer &, const Deadline &) {}
    // Local, after add_layer has succeeded on all ranks.
    virtual void keep_layer(const Layer &) noexcept {}
    // Local. Most receives land here from now on, and no longer where they did; what a back end cannot do then is no failure.
    virtual void land_in(void *, uint64_t) noexcept {}

    // Local. The rows of this rank's sends are stable from here until the flight's end. Throws as a flight does.
    virtual std::unique_ptr<CommFlight> begin(Round &round) = 0;

    virtual uint64_t host_bytes() const { return 0; }
    // Peers whose live rows are read and staged, and a line a reason.
    virtual void describe(moelink_eplb_comm_info &, std::string &) const {}
};

// How a back end speaks to its peers and learns about them.
struct CommBackendParams {
    Group &group;  // the communicator's own
    const Device &device;
    StripCopier &copier;
    const std::vector<ProcessPlace> &places;  // of all ranks
    moelink_eplb_comm_params params;          // defaults filled in
};

struct CommKind {
    int32_t kind;
    const char *name;
    const char *legacy;  // vLLM's names, one blank between them; "" for none
    const char *what;    // one line: what it is and needs
    bool together;       // all ranks must have said that they go on before any of them moves data; one round at a time
    bool reserves;       // moelink_eplb_comm_needs_reservation
    // OK, or why not on this machine.
    moelink_status (*available)(int32_t device, std::string *why);
    // [bytes] of host memory that an instance takes.
    uint64_t (*host_bytes)(int32_t device, const moelink_eplb_comm_params &params);
    // Collective; throws alike on all ranks.
    std::unique_ptr<CommBackend> (*make)(const CommBackendParams &params);
};

// A `make` for a back end whose constructor works on this rank alone, and whose meet is collective.
template <class Backend>
std::unique_ptr<CommBackend> make_comm_backend(const CommBackendParams &params) {
    const Deadline deadline = Deadline::after_ns(params.params.timeout_ns);
    std::unique_ptr<Backend> made;
    step(params.group, deadline, [&] { made = std::make_unique<Backend>(params); });
    made->meet(deadline);
    return made;
}

// NULL when there is none; AUTO has no row.
const CommKind *find_comm_kind(int32_t kind);

// The rows of the table.
extern const CommKind comm_staged_kind;
extern const CommKind comm_read_kind;
extern const CommKind comm_nccl_kind;
extern const CommKind comm_nccl_own_kind;

// What AUTO means where these can be used (bit 1 << kind), and why.
int32_t choose_comm_kind(uint32_t usable, int32_t device, bool one_host, const moelink_eplb_comm_params &params, std::string *why);

// Head and body in one.
Payload make_message(const MessageHead &head, const void *body = nullptr, uint64_t bytes = 0);

}  // namespace moelink::eplb
