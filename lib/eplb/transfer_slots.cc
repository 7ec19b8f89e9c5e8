#include "eplb/transfer_slots.hpp"

#include <algorithm>

namespace moelink::eplb {

namespace {

// [experts] how many slots have each, of both maps or of one.
std::vector<int> count_slots(int experts, std::span<const int32_t> map, std::span<const int32_t> other = {}) {
    std::vector<int> counts(size_t(experts), 0);
    for (std::span<const int32_t> slots : {map, other}) {
        for (int32_t expert : slots) {
            if (expert >= 0) ++counts[size_t(expert)];
        }
    }
    return counts;
}

}  // namespace

TransferSlots::TransferSlots(const Topology &topology, int experts, std::span<const int32_t> old_map, std::span<const int32_t> final_map)
    : topology_(topology),
      held_(old_map.begin(), old_map.end()),
      wanted_(old_map.size(), -1),
      waits_(old_map.size(), 0),
      copies_(count_slots(experts, old_map, final_map)),
      waiting_(count_slots(experts, final_map)),
      has_copy_(old_map.size(), 0),
      arriving_(count_slots(experts, final_map)) {
    for (size_t slot = 0; slot < held_.size(); ++slot) {
        if (held_[slot] >= 0) copies_.add(held_[slot], int(slot));
        if (final_map[slot] < 0 || final_map[slot] == held_[slot]) continue;
        wanted_[slot] = final_map[slot];
        waits_[slot] = 1;
        waiting_.add(wanted_[slot], int(slot));
        ++waiting_count_;
    }
    for (size_t slot = 0; slot < held_.size(); ++slot) {
        if (waits_[slot]) has_copy_[slot] = local_copy(wanted_[slot], topology_.rank_of(int(slot))) >= 0;
    }
}

void TransferSlots::note_copies(int32_t expert, int rank) {
    const uint8_t has = local_copy(expert, rank) >= 0;
    for (int slot : waiting_[expert]) {
        if (topology_.rank_of(slot) == rank) has_copy_[size_t(slot)] = has;
    }
}

int TransferSlots::nearest(int32_t expert, int rank) const {
    int least = MOELINK_EPLB_HOPS;
    for (int copy : copies(expert)) least = std::min(least, topology_.hop(rank, topology_.rank_of(copy)));
    return least;
}

bool TransferSlots::depends(int waiting, int slot) const {
    int rank = topology_.rank_of(waiting);
    int hop = topology_.hop(rank, topology_.rank_of(slot));
    return hop <= nearest(held(slot), rank) && !arriving_within(held(slot), rank, hop);
}

bool TransferSlots::free(int slot) const {
    int32_t expert = held(slot);
    if (expert < 0 || waiting_[expert].empty()) return true;
    int rank = topology_.rank_of(slot);
    int other = MOELINK_EPLB_HOPS;  // the next copy: who is nearer to this slot than that one has only this slot
    for (int copy : copies(expert)) {
        if (copy != slot) other = std::min(other, topology_.hop(rank, topology_.rank_of(copy)));
    }
    for (int waiting : waiting_[expert]) {
        int reader = topology_.rank_of(waiting);
        int hop = topology_.hop(rank, reader);
        if (hop < other && !arriving_within(expert, reader, hop)) return false;
    }
    return true;
}

int TransferSlots::local_copy(int32_t expert, int rank) const {
    for (int copy : copies(expert)) {
        if (topology_.rank_of(copy) == rank) return copy;
    }
    return -1;
}

int TransferSlots::arriving_at(int32_t expert, int rank) const {
    for (int slot : arriving_[expert]) {
        if (topology_.rank_of(slot) == rank) return slot;
    }
    return -1;
}

bool TransferSlots::arriving_within(int32_t expert, int rank, int hop) const {
    for (int slot : arriving_[expert]) {
        int other = topology_.hop(rank, topology_.rank_of(slot));
        if (other < hop || other == MOELINK_EPLB_HOP_RANK) return true;
    }
    return false;
}

int TransferSlots::only_source(int slot) const {
    int32_t expert = wanted(slot);
    int rank = topology_.rank_of(slot);
    int hop = nearest(expert, rank);
    int source = -1;
    for (int copy : copies(expert)) {
        if (topology_.hop(rank, topology_.rank_of(copy)) != hop) continue;
        if (source >= 0) return -1;
        source = copy;
    }
    return source >= 0 && only_reader(source) == slot ? source : -1;
}

int TransferSlots::only_reader(int slot) const {
    int reader = -1;
    for (int waiting : waiting_[held(slot)]) {
        if (!depends(waiting, slot)) continue;
        if (reader >= 0) return -1;
        reader = waiting;
    }
    return reader;
}

void TransferSlots::serve(int slot) {
    waits_[size_t(slot)] = 0;
    --waiting_count_;
    waiting_.remove(wanted(slot), slot);
}

void TransferSlots::arrive(int slot) {
    serve(slot);
    if (arriving_[wanted(slot)].empty()) arrived_.push_back(wanted(slot));
    arriving_.add(wanted(slot), slot);
}

void TransferSlots::fill(int slot) {
    if (held(slot) >= 0) {
        copies_.remove(held(slot), slot);
        note_copies(held(slot), topology_.rank_of(slot));
    }
    held_[size_t(slot)] = wanted(slot);
    filled_.push_back(slot);
}

void TransferSlots::end_batch() {
    for (int slot : filled_) {
        copies_.add(held(slot), slot);
        note_copies(held(slot), topology_.rank_of(slot));
    }
    for (int32_t expert : arrived_) arriving_.clear(expert);
    filled_.clear();
    arrived_.clear();
}

}  // namespace moelink::eplb
