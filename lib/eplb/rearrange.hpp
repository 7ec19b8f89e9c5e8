// A plan of transfers carried out over a communicator.
#pragma once

#include "eplb/comm.hpp"
#include "eplb/transfer_planner.hpp"

#include <moelink/eplb_rearrange.h>

#include <chrono>
#include <optional>
#include <vector>

namespace moelink::eplb {

class Rearrangement {
public:
    // Collective: all ranks ask for the same, and can. Throws alike on all ranks.
    Rearrangement(Comm &comm, const moelink_eplb_shape *shape, const moelink_eplb_rearrange_params *params,
                  const moelink_eplb_rearrange_result *out);

    // Collective. Throws as Comm::execute; what is done until then stays, and is in the result.
    void run();
    void write(moelink_eplb_rearrange_result *out) const;

private:
    struct Staged {
        int32_t experts = 0;
        uint64_t bytes = 0;
    };
    using Clock = std::chrono::steady_clock;
    void read(const moelink_eplb_shape *shape, const moelink_eplb_rearrange_params *params, const moelink_eplb_rearrange_result *out);
    void read_layers(const Shape &shape);
    void agree(const Outcome &mine);
    bool ends_before(int64_t batch);
    void reserve();
    bool overlaps() const;
    bool plans_ahead() const;
    void begin(int64_t batch);
    void end(int64_t batch);
    void exchange(const Layer &layer, std::span<const moelink_eplb_move> moves);
    size_t queue(const Layer &layer, std::span<const moelink_eplb_move> moves);
    void add(const Layer &layer, const moelink_eplb_move &move);
    void make_local(const Layer &layer, std::span<const moelink_eplb_move> moves);
    bool settled(const Layer &layer, std::span<const moelink_eplb_move> moves) const;
    ExpertCopy local_copy(const Layer &layer, const moelink_eplb_move &move) const;
    void count(const Layer &layer, const moelink_eplb_move &move);
    void count_staged(const moelink_eplb_move &move, uint64_t bytes);
    Staged coming_to(int64_t batch) const;
    void note_staged();
    void call_back();

    bool profile() const { return (params_.flags & MOELINK_EPLB_REARRANGE_F_PROFILE) != 0; }
    bool by_rounds() const { return (params_.flags & MOELINK_EPLB_REARRANGE_F_ROUNDS) != 0; }
    static bool has_transfers(std::span<const moelink_eplb_move> moves) {
        return !moves.empty() && moves[0].kind == MOELINK_EPLB_MOVE_TRANSFER;
    }
    const TransferPlan &plan() const { return planner_->plan(); }
    const Layer &layer_of(int64_t batch) const { return *layers_[size_t(plan().batches[size_t(batch)].layer)]; }
    int local(int slot) const { return slot % plan().topology.rank_slots; }
    int place(int number) const { return number % places_; }
    int rank_of_place(int number) const { return number / places_; }
    int rank_of_local(const moelink_eplb_move &move) const {
        return move.kind == MOELINK_EPLB_MOVE_COMMIT ? rank_of_place(move.from) : plan().topology.rank_of(move.from);
    }
    std::span<const int32_t> local_slots(int layer) const {
        const size_t width = size_t(plan().topology.rank_slots);
        return {map_.data() + size_t(layer) * size_t(plan().shape.slots) + size_t(rank_) * width, width};
    }

    Comm &comm_;
    const Clock::time_point start_;
    const int rank_;
    moelink_eplb_rearrange_params params_ = MOELINK_EPLB_REARRANGE_PARAMS_INIT;
    moelink_eplb_rearrange_result result_ = MOELINK_EPLB_REARRANGE_RESULT_INIT;
    std::vector<const Layer *> layers_;  // [layers]
    std::optional<TransferPlanner> planner_;  // there once the input is read
    int places_ = 1;             // of staging, a rank
    bool overlap_ = false;       // a batch's transfers begin before the one before it ends, where the plan allows it
    uint64_t digest_[2] = {};    // of what all ranks must ask for alike
    std::vector<int32_t> map_;   // in force
    std::vector<int32_t> told_;  // this rank's slots of told_layer_ as the caller knows them; empty: as they are
    int told_layer_ = 0;
    uint64_t staged_bytes_ = 0;  // now
    Staged coming_;              // on this rank, of batches that have begun
    bool settled_ = false;       // of what is in the communicator's stream nothing writes this rank's slots but those in filling_
    std::vector<const unsigned char *> filling_;  // slots, by their first row
};

}  // namespace moelink::eplb
