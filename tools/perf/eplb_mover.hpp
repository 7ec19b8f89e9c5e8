// Experts' weights moved from one map to another.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <moelink/moelink.h>

#include "eplb_traffic.hpp"
#include "eplb_weights.hpp"
#include "options.hpp"
#include "session.hpp"

namespace perf {

class Mover {
public:
    // Collective: a communicator that knows all layers.
    Mover(const Session &session, const EplbOptions &options, const Weights &weights);

    // Collective. Returns this rank's time [ms], all ranks having started together.
    double move(const Map &from, const Map &to);
    // [bytes] of one rank: of its device, and of host memory, that experts pass through.
    uint64_t staging_bytes() const { return info().staging_bytes; }
    uint64_t host_bytes() const { return info().host_bytes; }
    // Most experts that this rank has had staged at once, and batches of the last move.
    int32_t staged() const { return staged_; }
    int64_t batches() const { return batches_; }
    // Of these, those whose transfers began before the one before them had ended.
    int64_t overlapped() const { return overlapped_; }
    // Multiprocessors that read peers' rows in the last move on this rank; 0: none did.
    int32_t sms() const { return sms_; }
    // The kind in use, and why.
    std::string describe() const;

private:
    struct Closer {
        void operator()(moelink_eplb_comm *comm) const { moelink_eplb_comm_destroy(comm); }
    };
    moelink_eplb_comm_info info(std::string *reasons = nullptr) const;

    const Session &session_;
    const EplbOptions &options_;
    std::unique_ptr<moelink_eplb_comm, Closer> comm_;
    int32_t staged_ = 0;
    int64_t batches_ = 0;
    int64_t overlapped_ = 0;
    int32_t sms_ = 0;
    uint64_t sm_reads_ = 0;  // of all moves
};

}  // namespace perf
