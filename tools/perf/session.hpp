// A rank's group, device and manager, with MoELink's errors as exceptions.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <moelink/moelink.h>

#include "channel.hpp"
#include "check.hpp"
#include "device.hpp"
#include "options.hpp"
#include "status.hpp"

namespace perf {

// A kind of manager, and what its flags make of it.
struct ManagerChoice {
    int32_t kind = 0;    // MOELINK_MANAGER_*
    uint32_t flags = 0;  // MOELINK_MANAGER_F_*

    bool over_nccl() const { return (flags & MOELINK_MANAGER_F_NCCL) != 0; }
};
// Of a name such as "one-sided" or "allgather-reducescatter-nccl". Throws std::invalid_argument.
ManagerChoice manager_of(const std::string &name);
// All-gather and reduce-scatter as they are without MoELink: NCCL's on CUDA.
ManagerChoice gathering_baseline(bool on_cuda);
// MOELINK_MEMORY_* of a name such as "posix-fd" or "auto". Throws std::invalid_argument.
int32_t provider_of(const std::string &name);

// Changes one byte of device memory, for self-tests.
void flip_byte(Device &device, void *value);

struct GroupCloser {
    void operator()(moelink_group *group) const { moelink_group_destroy(group); }
};
struct ManagerCloser {
    void operator()(moelink_manager *manager) const { moelink_manager_destroy(manager); }
};
struct MemoryCloser {
    void operator()(moelink_memory *memory) const { moelink_memory_destroy(memory); }
};

// What one rank has for the whole run.
class Session {
public:
    Session(const PairOptions &options, moelink_group *group);
    ~Session();
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;

    const PairOptions &options() const { return options_; }
    moelink_group *group() const { return group_.get(); }
    Device &device() const { return *device_; }
    int rank() const { return rank_; }
    int ranks() const { return options_.ranks; }
    bool on_cuda() const { return on_cuda_; }
    // Several ranks on one GPU: their launches share its queues.
    bool shares_gpu() const { return shares_gpu_; }
    // Why ranks are aligned by the group's barrier and not on the device; "" when they are aligned on the device.
    const std::string &start_note() const { return start_note_; }

    // What runs here, from rank 0. Collective.
    void introduce(Channel &channel) const;
    // Leaves the group together with the others, with the number of wrong values. Collective.
    void finish(Channel &channel, uint64_t wrong) const;
    void barrier() const { must(moelink_group_barrier(group()), "moelink_group_barrier"); }
    // Starts ranks together: on the device in stream order, or by the group's barrier.
    void align() const;
    // Largest of each value over the ranks.
    std::vector<double> slowest(const std::vector<double> &mine) const;
    template <class T>
    std::vector<T> gather(const T &mine) const {
        std::vector<T> all(static_cast<size_t>(ranks()));
        must(moelink_group_allgather(group(), &mine, all.data(), sizeof(T)), "moelink_group_allgather");
        return all;
    }

private:
    PairOptions options_;
    std::unique_ptr<moelink_group, GroupCloser> group_;
    int rank_;
    bool on_cuda_;
    bool shares_gpu_ = false;
    std::unique_ptr<Device> device_;
    std::unique_ptr<moelink_memory, MemoryCloser> start_memory_;
    std::vector<void *> start_words_;
    StartLine start_line_{};
    std::string start_note_;
};

// One token count with one routing: the manager, its workspace and the buffers.
class Job {
public:
    Job(const Session &session, const World &world, ManagerChoice manager, int sm_budget);
    ~Job();
    Job(const Job &) = delete;
    Job &operator=(const Job &) = delete;

    const World &world() const { return world_; }
    const Session &session() const { return session_; }
    uint64_t workspace_bytes() const { return workspace_bytes_; }
    bool gathers_all() const { return choice_.kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER; }
    // NCCL adds in its own order and rounds in between.
    bool own_rounding() const { return choice_.over_nccl() && (choice_.flags & MOELINK_MANAGER_F_DETERMINISTIC) == 0; }
    // Blocks the host, so no graph.
    bool blocks() const { return choice_.kind == MOELINK_MANAGER_REFERENCE; }

    // What dispatch reads: the tokens, [tokens, hidden], or where the caller makes FP8, [tokens, hidden] of it and then their scales.
    void *tokens() const { return inputs_.front(); }
    // Buffers of [tokens, hidden] that a chain of pairs writes in turn.
    void *output(int which) const { return outputs_[which]; }
    uint64_t output_bytes() const { return tokens_here_ * row_bytes_; }
    // What pair `pair` of a chain reads, where a chain starts from the tokens every `restart` pairs: the combine before it, or for FP8 of
    // the caller one of the inputs. given: which rows these are, after any number of pairs.
    const void *chain_input(int pair, int restart) const;
    Given chain_given(int pair, int restart) const;

    void dispatch(const void *tokens, const void *ids);
    void dispatch(const void *tokens) { dispatch(tokens, ids_); }
    // Straight from the rows that were received; where those are FP8, from the senders' tokens in the run's type, made before.
    void combine_received(void *output);
    // The experts' work on what was received, and its combine.
    void run_experts();
    void combine_experts(void *output);

    // A round on other ids with poisoned rows: nothing of it may be left in the round that is checked.
    void decoy();
    // Poisons everything that the next round is to write: received rows and weights, the experts' rows, the outputs. Collective.
    void poison();
    void poison_received();
    Received received() const;
    std::vector<char> output_on_host(int which) const;
    // Flips one bit of a received value, or of an output, on the last rank that has one: a proof that the check can fail.
    void corrupt_received();
    void corrupt_output(int which);

private:
    void combine(void *rows, uint64_t stride, void *output);
    void fill_input(int number);
    void fill_chain_rows(int64_t slots);
    uint64_t view_stride(size_t payload) const;

    const Session &session_;
    const World &world_;
    ManagerChoice choice_;
    uint64_t row_bytes_;
    std::vector<uint64_t> sent_bytes_;  // of each payload: values, and scales of FP8
    uint64_t tokens_here_;
    std::vector<int64_t> rank_tokens_;
    std::unique_ptr<moelink_manager, ManagerCloser> manager_;
    uint64_t workspace_bytes_ = 0;
    std::vector<void *> inputs_;
    void *outputs_[2] = {nullptr, nullptr};
    void *ids_ = nullptr;
    void *decoy_ids_ = nullptr;
    void *weights_ = nullptr;
    void *expert_rows_ = nullptr;
    void *chain_rows_ = nullptr;
    moelink_rows own_rows_[2]{};  // where received rows are copied to; data nullptr: they stay in the view
    moelink_dispatched view_ = MOELINK_DISPATCHED_INIT;
    moelink_rows view_rows_[2]{};
};

}  // namespace perf
