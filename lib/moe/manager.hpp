// Life cycle of a manager: states, agreement between ranks, generations, pairing of dispatch and combine.
#pragma once

#include "base/guard.hpp"
#include "moe/backend.hpp"
#include "moe/owners.hpp"

#include <moelink/moe.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace moelink {

class Manager : public Referenced {
public:
    Manager(Ref<Group> group, const ManagerKind &kind);

    void init(const moelink_manager_config *config);
    void ensure(const moelink_manager_config *config);
    void reinit(const moelink_manager_config *config);
    void cleanup();
    void abandon(int32_t slot);
    void dispatch(const moelink_dispatch_args *args, moelink_stream stream, moelink_dispatched *out);
    void prepare(const moelink_prepare_args *args, moelink_stream stream, moelink_prepared *out);
    void alltoallv(int32_t slot, const moelink_rows *tensors, int32_t count, const moelink_rows *outputs, moelink_stream stream);
    // ends: the round; else its routing stays.
    void combine(const moelink_combine_args *args, moelink_stream stream, bool ends);

    int32_t state() const;
    uint64_t generation() const { return generation_; }
    moelink_manager_sizes sizes() const;
    // Throws nothing; STALE once for each report.
    moelink_status fault();
    void note_error(const std::string &text) const noexcept;
    std::string error() const;

protected:
    ~Manager() override = default;

private:
    struct Slot {
        bool dispatched = false;
        bool has_weights = false;
        int32_t num_tokens = 0;
    };

    // Collective: makes a workspace for what all ranks ask for, and takes it when every rank has one. A rank that cannot take
    // part says why, and all fail.
    void replace(const Config &mine, const Outcome &outcome);
    // Waits for the device, and gives peers the time to do the same: a kernel of theirs may still be waiting.
    Deadline wait_idle();
    void require_ready(const char *what);
    void require_fifos(const char *what);
    // Runs a back end's call; what loses the round is kept as the manager's fault.
    template <class Call>
    auto in_round(bool capturing, Call &&call);
    // Collective, of a kind with FIFOs: everything to its start, on all ranks.
    void recover(const Deadline &deadline);
    void lose_round(moelink_status status, const std::string &text);
    bool poll_fault();
    std::string fault_text() const;

    Ref<Group> group_;
    const ManagerKind &kind_;
    Device device_;
    Faults faults_;
    Owners owners_;
    std::unique_ptr<Backend> backend_;  // uses owners_
    Config config_;
    std::vector<Slot> slots_;
    uint64_t generation_ = 0;

    mutable std::mutex mutex_;  // what follows, and config_, which any thread may ask for
    moelink_status fault_ = MOELINK_OK;
    std::string fault_text_;
    mutable std::string error_;
};

}  // namespace moelink

struct moelink_manager {
    moelink::Ref<moelink::Manager> object;
};
