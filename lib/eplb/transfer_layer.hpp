// The moves that take one layer from the old map to the new one, a batch at a time.
#pragma once

#include "eplb/topology.hpp"
#include "eplb/transfer_rounds.hpp"
#include "eplb/transfer_slots.hpp"

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace moelink::eplb {

struct LayerTask {
    const Topology &topology;
    int staging = 0;  // 1 or more
    int experts = 0;
    int layer = 0;    // for errors
    bool overlap = false;  // as MOELINK_EPLB_TRANSFER_F_OVERLAP; staging is 2 or more
    std::span<const int32_t> old_map;    // [slots]
    std::span<const int32_t> final_map;  // the new map, -1 where no slot of the old one has the expert
};

struct LayerBatch {
    int32_t moves = 0;
    int32_t rounds = 0;         // its transfers have rounds 0 .. rounds-1
    int32_t most_received = 0;  // of the last batch: by one rank in the whole layer
    bool whole = false;         // nothing is staged when it ends
    bool early = false;         // its transfers take nothing that the batch before it fills, and land where that stages nothing
    bool last = false;
};

class LayerPlanner {
public:
    // The maps differ, and outlive it.
    explicit LayerPlanner(const LayerTask &task);

    // Adds the next batch's moves, transfers first by round. layer, step and batch are left 0; rounds are the batch's own.
    // Not after the last one.
    LayerBatch next(std::vector<moelink_eplb_move> &moves);

private:
    enum class Use : uint8_t {
        none,
        resting,  // emptied by the last batch, of plans with overlap
        taken     // in this batch, or held
    };

    // Of walked_.
    struct Ring {
        size_t begin = 0;
        size_t end = 0;
    };

    bool done() const { return slots_.waiting() == 0 && hold_count_ == 0; }

    // Slots that may be written.
    void fill_ready();
    void fill(int slot);
    void copy(int from, int to);
    void commit(int slot);
    void readable_again(int32_t expert);

    // Transfers.
    int source_of(int slot) const;
    // Transfers that a rank may still receive in this batch.
    int room(size_t rank) const { return std::min(free_[rank], places_ - received_[rank]); }
    bool may_receive(int rank) const { return room(size_t(rank)) > 0; }
    bool may_receive() const;
    bool sent_less(int a, int b) const;
    Use &use(size_t rank, int place) { return use_[rank * size_t(numbers_) + size_t(place)]; }
    int find_place(size_t rank, Use wanted);
    void take(size_t rank, int place);
    void receive(int from, int to);

    // Rings.
    bool open(int slot);
    int full_ranks() const;
    void relieve();
    void open_rings();
    std::span<const int> slots_in(const Ring &ring) const { return {walked_.data() + ring.begin, ring.end - ring.begin}; }
    void find_rings();
    bool fits(std::span<const int> ring, bool alone);
    bool turn(std::span<const int> ring, bool whole);
    bool turn_local(std::span<const int> ring);
    bool is_held(int rank, int place) const;

    // The end of a batch.
    // Of a staging place's number.
    Use &use_of(int number) { return use(size_t(number / staging_), number % staging_); }
    int place_number(int slot) const { return topology_.rank_of(slot) * staging_ + staged_[size_t(slot)]; }
    void add(int32_t kind, int from, int to, int slot);
    void end_rest();
    LayerBatch finish_batch(std::vector<moelink_eplb_move> &moves);

    const Topology &topology_;
    int layer_;
    int staging_;   // numbers staging places
    bool overlap_;
    int places_;    // that a batch may receive into: more than a rank has slots are never needed
    int numbers_;   // of them all
    TransferSlots slots_;
    std::vector<int> staged_;            // [slots] the staging place with what the slot is to get, or -1
    std::vector<uint8_t> recent_;        // [slots] filled by the last batch
    std::vector<Use> use_;               // [ranks, numbers_] of staging places
    std::vector<int> free_;              // [ranks] places in no use
    bool waited_ = false;                // nothing rests in this batch: what lands where something did waits for the last one's end
    std::vector<int> received_, sent_;   // [ranks] transfers of this batch
    std::vector<int> all_sent_, all_received_;
    std::vector<int> holds_;             // [ranks] transfers staged over the end of this batch as it stands
    int hold_count_ = 0;
    std::vector<int> open_;              // slots that wait or are held, and some that did: the first slots of all ranks first
    std::vector<int> ready_;             // slots that may have become free; those that have been looked at too, until all have
    std::vector<Ring> rings_;            // that can turn in this batch, until they have
    std::vector<int> walked_, seen_;     // slots of rings, and [slots] the walk that has come there
    std::vector<int> ring_received_, ring_sent_;  // [ranks] of the one that is looked at; else 0
    std::vector<moelink_eplb_move> transfers_, local_;
    std::vector<Endpoints> ends_;
    std::vector<int> emptied_, rested_;  // places that are free again after this batch, and that were after the last
};

}  // namespace moelink::eplb
