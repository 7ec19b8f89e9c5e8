// Life cycle of a manager: states, agreement between ranks, generations, pairing of dispatch and combine.
#pragma once

#include "base/guard.hpp"
#include "moe/backend.hpp"
#include "moe/arrangement.hpp"
#include "moe/owners.hpp"

#include <moelink/moe.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace moelink {

// The part of layouts in a manager's sizes.
void add_layout_sizes(moelink_manager_sizes &sizes, const Config &config, const Group &group);

class Manager : public Referenced {
public:
    Manager(Ref<Group> group, const ManagerKind &kind);

    void init(const moelink_manager_config *config);
    void ensure(const moelink_manager_config *config);
    void reinit(const moelink_manager_config *config);
    void cleanup();
    void abandon(int32_t slot);
    void dispatch(const moelink_dispatch_args *args, moelink_stream stream, moelink_dispatched *out);
    void receive_dispatch(int32_t slot, moelink_stream stream);
    void counts(int32_t slot, uint64_t timeout_ns, int64_t *rank_rows, int64_t *expert_rows, int64_t *rows);
    void receive_combine(int32_t slot, moelink_stream stream);
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
    // Where a slot is between two dispatches; not followed while capturing.
    enum class Stage { idle, sent, dispatched, returned };

    struct Slot {
        Stage stage = Stage::idle;
        bool routed = false;    // there has been a dispatch, which is the next
        DispatchCall dispatch;  // the last one
        bool dispatch_waits = false;  // for its receiving half
        int64_t rows = 0;        // that it has room for
        int64_t sum_tokens = 0;  // of its rank_tokens; -1: it had none
        std::unique_ptr<Arrangement> arrangement;

        // As at the start.
        void clear() {
            Slot fresh;
            fresh.arrangement = std::move(arrangement);
            *this = std::move(fresh);
        }
        CombineCall combine;    // the last one
        bool combine_waits = false;
    };

    // Collective: makes a workspace for what all ranks ask for, and takes it when every rank has one. A rank that cannot take
    // part says why, and all fail.
    void replace(const Config &mine, const Outcome &outcome);
    // Waits for the device, and gives peers the time to do the same: a kernel of theirs may still be waiting.
    Deadline wait_idle();
    void require_ready(const char *what);
    Slot &find_slot(int32_t slot);
    // The routing of the slot's last dispatch for one that repeats it. Throws INVALID_STATE, INVALID_ARGUMENT.
    void repeat_routing(const Slot &slot, DispatchCall &call) const;
    // What came is put in order, where the layout asks for it.
    void arrange(const Slot &slot, moelink_stream stream);
    void check_input_rows(const Slot &slot, const CombineCall &call) const;
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
