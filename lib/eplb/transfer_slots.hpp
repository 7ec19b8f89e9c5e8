// What the slots of one layer hold on the way from the old map to the new one, and who still needs it.
#pragma once

#include "eplb/slot_lists.hpp"
#include "eplb/topology.hpp"

#include <cstring>
#include <span>
#include <vector>

namespace moelink::eplb {

// A slot *waits* for an expert until that is on its way into it. It is then *filled*, and counts as a copy from the next batch on:
// what a batch sends was there before it.
class TransferSlots {
public:
    // Every expert of the final map is somewhere in the old one; slots that are -1 there stay as they are.
    TransferSlots(const Topology &topology, int experts, std::span<const int32_t> old_map, std::span<const int32_t> final_map);

    const Topology &topology() const { return topology_; }
    int32_t held(int slot) const { return held_[size_t(slot)]; }
    bool waits(int slot) const { return waits_[size_t(slot)] != 0; }
    // The first from there on that does, or -1.
    int next_waiting(int slot) const {
        const size_t begin = size_t(slot), size = waits_.size();
        const void *found = begin < size ? std::memchr(waits_.data() + begin, 1, size - begin) : nullptr;
        return found == nullptr ? -1 : int(static_cast<const uint8_t *>(found) - waits_.data());
    }
    // The expert that a slot gets, or has got; -1 for one that stays as it is.
    int32_t wanted(int slot) const { return wanted_[size_t(slot)]; }
    // Slots that held the expert before this batch and have not been filled with another since.
    std::span<const int> copies(int32_t expert) const { return copies_[expert]; }
    int waiting() const { return waiting_count_; }

    // Nobody needs from the slot what it holds: it is empty, or every slot that waits for its expert has another copy as near.
    bool free(int slot) const;
    // How near the nearest copy is to a rank: MOELINK_EPLB_HOP_*, or MOELINK_EPLB_HOPS when there is none.
    int nearest(int32_t expert, int rank) const;
    // A copy on the rank, or -1.
    int local_copy(int32_t expert, int rank) const;
    // Whether what the slot waits for is on its rank, or comes there in this batch.
    bool has_local(int slot) const {
        return has_copy_[size_t(slot)] != 0 || (!arrived_.empty() && arriving_at(wanted(slot), topology_.rank_of(slot)) >= 0);
    }
    // Of a rank to which the expert is coming: the slot that it goes to, or -1.
    int arriving_at(int32_t expert, int rank) const;
    bool arriving_within(int32_t expert, int rank, int hop) const;

    // The only copy that can serve a waiting slot, if it serves no other slot; else -1.
    int only_source(int slot) const;
    // The only slot that needs what this one holds, else -1.
    int only_reader(int slot) const;

    // The expert is on its way to the slot: from here on it does not wait.
    void serve(int slot);
    // As serve, by a transfer that this batch ends with a commit.
    void arrive(int slot);
    // What the slot held is gone.
    void fill(int slot);
    void end_batch();

private:
    bool depends(int waiting, int slot) const;
    // The copies of an expert on a rank have become others.
    void note_copies(int32_t expert, int rank);

    const Topology &topology_;
    std::vector<int32_t> held_, wanted_;
    std::vector<uint8_t> waits_;
    SlotLists copies_, waiting_;
    std::vector<uint8_t> has_copy_;  // [slots] of those that wait: their rank has a copy of what they wait for
    SlotLists arriving_;             // to which transfers of this batch go
    std::vector<int> filled_;
    std::vector<int32_t> arrived_;  // experts with an entry in arriving_
    int waiting_count_ = 0;
};

}  // namespace moelink::eplb
