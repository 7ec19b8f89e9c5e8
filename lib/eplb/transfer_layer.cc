// Batches are built greedily. The moves of a batch are found in the order in which they will be made, so a move is added only
// when those before it have made it safe.
//
// Why this always goes on, with one staging place a rank: when no slot that still changes is free, each is the only near copy of
// something that somebody waits for. There are as many waiting slots as those, so each has exactly one reader, and the slots form
// rings. A ring that fits into the staging of its ranks turns within one batch. A longer one is opened by a transfer that stays
// staged (a *hold*) until its slot has been read; the reader's transfer may become the next hold, and so on round the ring. Nobody else
// needs what a ring's slots hold, so holds cannot wait for each other crosswise; and at most one rank may end a batch with all of
// its staging held, so the reader of what blocks that rank always has a place.
//
// With overlap all this is said of half of the staging, and a place that a batch has emptied rests for one batch: the next one's
// experts may come while it is still read. What is held takes from both halves; a batch that could not move anything for want of places waits
// for the end of the last one instead, after which nothing rests.
#include "eplb/transfer_layer.hpp"

#include "base/error.hpp"

#include <algorithm>

namespace moelink::eplb {

LayerPlanner::LayerPlanner(const LayerTask &task)
    : topology_(task.topology),
      layer_(task.layer),
      staging_(task.staging),
      overlap_(task.overlap),
      places_(std::min(overlap_ ? task.staging / 2 : task.staging, task.topology.rank_slots)),
      numbers_(overlap_ ? 2 * places_ : places_),
      slots_(task.topology, task.experts, task.old_map, task.final_map),
      staged_(task.old_map.size(), -1),
      recent_(task.old_map.size(), 0),
      use_(size_t(task.topology.ranks) * size_t(numbers_), Use::none),
      free_(size_t(task.topology.ranks), numbers_),
      received_(size_t(task.topology.ranks), 0),
      sent_(received_),
      all_sent_(received_),
      all_received_(received_),
      holds_(received_),
      ring_received_(received_),
      ring_sent_(received_) {
    open_.reserve(staged_.size());
    for (int i = 0; i < topology_.rank_slots; ++i) {
        for (int rank = 0; rank < topology_.ranks; ++rank) open_.push_back(rank * topology_.rank_slots + i);
    }
}

LayerBatch LayerPlanner::next(std::vector<moelink_eplb_move> &moves) {
    const bool only_empties = done();  // slots, which needs a batch too
    std::erase_if(open_, [&](int slot) { return !slots_.waits(slot) && staged_[size_t(slot)] < 0; });
    waited_ = false;
    for (;;) {
        ready_.assign(open_.begin(), open_.end());
        fill_ready();
        relieve();
        open_rings();
        if (!transfers_.empty() || !local_.empty() || waited_ || !overlap_) break;
        waited_ = true;
        end_rest();
    }
    const LayerBatch batch = finish_batch(moves);
    if (batch.moves == 0 && !only_empties) fail(MOELINK_ERR_INTERNAL, "the plan of layer {} does not go on", layer_);
    return batch;
}

// ---- Slots that may be written ----

void LayerPlanner::fill_ready() {
    for (size_t next = 0; next < ready_.size(); ++next) {
        const int slot = ready_[next];
        bool held = staged_[size_t(slot)] >= 0;
        if (!held && (!slots_.waits(slot) || (!may_receive(topology_.rank_of(slot)) && !slots_.has_local(slot)))) continue;
        if (!slots_.free(slot)) continue;
        if (held) {
            commit(slot);
            --holds_[size_t(topology_.rank_of(slot))];
            --hold_count_;
        } else {
            fill(slot);
        }
    }
    ready_.clear();
}

void LayerPlanner::fill(int slot) {
    int32_t expert = slots_.wanted(slot);
    int rank = topology_.rank_of(slot);
    int local = slots_.local_copy(expert, rank);
    if (local < 0) local = slots_.arriving_at(expert, rank);
    if (local >= 0) {
        copy(local, slot);
    } else if (int source = source_of(slot); source >= 0) {
        receive(source, slot);
        slots_.arrive(slot);
        commit(slot);
    }
}

void LayerPlanner::copy(int from, int to) {
    add(MOELINK_EPLB_MOVE_COPY, from, to, to);
    slots_.serve(to);
    slots_.fill(to);
    readable_again(slots_.held(to));
}

void LayerPlanner::commit(int slot) {
    add(MOELINK_EPLB_MOVE_COMMIT, place_number(slot), slot, slot);
    slots_.fill(slot);
    emptied_.push_back(place_number(slot));
    staged_[size_t(slot)] = -1;
}

// Copies of the expert may be free now.
void LayerPlanner::readable_again(int32_t expert) {
    for (int copy : slots_.copies(expert)) ready_.push_back(copy);
}

// ---- Transfers ----

// A slot to receive from in this batch, or -1. Of the nearest copies the one whose rank has sent least. When the expert
// is coming nearer in this batch, it is worth waiting for the next.
int LayerPlanner::source_of(int slot) const {
    int32_t expert = slots_.wanted(slot);
    int rank = topology_.rank_of(slot);
    if (!may_receive(rank)) return -1;
    int hop = slots_.nearest(expert, rank);
    if (slots_.arriving_within(expert, rank, hop)) return -1;
    int best = -1;
    for (int copy : slots_.copies(expert)) {
        int from = topology_.rank_of(copy);
        if (topology_.hop(rank, from) == hop && sent_[size_t(from)] < places_ && (best < 0 || sent_less(copy, best))) best = copy;
    }
    return best;
}

bool LayerPlanner::may_receive() const {
    for (int rank = 0; rank < topology_.ranks; ++rank) {
        if (may_receive(rank)) return true;
    }
    return false;
}

// Of equals, what the last batch has filled would have this one wait for it.
bool LayerPlanner::sent_less(int a, int b) const {
    size_t x = size_t(topology_.rank_of(a)), y = size_t(topology_.rank_of(b));
    if (sent_[x] != sent_[y]) return sent_[x] < sent_[y];
    if (overlap_ && recent_[size_t(a)] != recent_[size_t(b)]) return recent_[size_t(b)] != 0;
    return all_sent_[x] < all_sent_[y];
}

// The lowest place in that use, or -1.
int LayerPlanner::find_place(size_t rank, Use wanted) {
    for (int place = 0; place < numbers_; ++place) {
        if (use(rank, place) == wanted && !(wanted == Use::taken && is_held(int(rank), place))) return place;
    }
    return -1;
}

void LayerPlanner::take(size_t rank, int place) {
    use(rank, place) = Use::taken;
    --free_[rank];
    ++received_[rank];
}

void LayerPlanner::receive(int from, int to) {
    size_t sender = size_t(topology_.rank_of(from)), receiver = size_t(topology_.rank_of(to));
    ++sent_[sender], ++all_sent_[sender];
    ++all_received_[receiver];
    int place = find_place(receiver, Use::none);
    take(receiver, place);
    staged_[size_t(to)] = place;
    moelink_eplb_move move = {};
    move.kind = MOELINK_EPLB_MOVE_TRANSFER;
    move.expert = slots_.wanted(to);
    move.from = from;
    move.to = int32_t(place_number(to));
    transfers_.push_back(move);
    ends_.push_back({int(sender), int(receiver)});
    readable_again(slots_.wanted(to));
}

// ---- Rings ----

// A transfer whose slot is not free yet.
bool LayerPlanner::open(int slot) {
    int rank = topology_.rank_of(slot);
    int source = holds_[size_t(rank)] < places_ ? source_of(slot) : -1;
    if (source < 0) return false;
    receive(source, slot);
    slots_.serve(slot);
    ++holds_[size_t(rank)];
    ++hold_count_;
    ready_.push_back(slot);
    fill_ready();
    return true;
}

int LayerPlanner::full_ranks() const {
    return int(std::count_if(holds_.begin(), holds_.end(), [&](int holds) { return holds >= places_; }));
}

// Has somebody read what blocks a rank whose staging is all held.
void LayerPlanner::relieve() {
    if (full_ranks() == 0) return;
    for (size_t slot = 0; slot < staged_.size(); ++slot) {
        int rank = topology_.rank_of(int(slot));
        if (staged_[slot] < 0 || holds_[size_t(rank)] < places_) continue;
        int reader = slots_.only_reader(int(slot));
        while (reader >= 0 && topology_.rank_of(reader) == rank) reader = slots_.only_reader(reader);
        if (reader >= 0) open(reader);
    }
}

void LayerPlanner::open_rings() {
    find_rings();
    for (Ring &ring : rings_) {
        if (fits(slots_in(ring), false) && turn(slots_in(ring), true)) ring = {};
    }
    // One that would fit into a batch of its own waits for it, so that nothing of it is ever only in staging.
    for (const Ring &ring : rings_) {
        if (!slots_in(ring).empty() && !fits(slots_in(ring), true)) turn(slots_in(ring), false);
    }
}

// Slots that still change, each filled from the next and the last from the first, that nobody else needs.
void LayerPlanner::find_rings() {
    rings_.clear();
    walked_.clear();
    seen_.assign(staged_.size(), -1);
    // Where nobody can receive, rings within ranks are all that can turn.
    const bool local_only = !may_receive();
    for (int first = slots_.next_waiting(0); first >= 0; first = slots_.next_waiting(first + 1)) {
        const size_t begin = walked_.size();
        int slot = first;
        while (slot >= 0 && slots_.waits(slot) && seen_[size_t(slot)] < 0 && (!local_only || slots_.has_local(slot))) {
            seen_[size_t(slot)] = first;
            walked_.push_back(slot);
            slot = slots_.only_source(slot);
        }
        if (walked_.size() > begin && slot == first) {
            rings_.push_back({begin, walked_.size()});
        } else {
            walked_.resize(begin);
        }
    }
}

// Whether a ring can turn within this batch as it stands, or alone in one.
bool LayerPlanner::fits(std::span<const int> ring, bool alone) {
    bool fit = true;
    for (size_t i = 0; i < ring.size(); ++i) {
        const size_t to = size_t(topology_.rank_of(ring[i])), from = size_t(topology_.rank_of(ring[(i + 1) % ring.size()]));
        if (from == to) continue;
        fit &= ++ring_received_[to] <= (alone ? places_ : room(to)) && ++ring_sent_[from] <= places_ - (alone ? 0 : sent_[from]);
    }
    for (int slot : ring) ring_received_[size_t(topology_.rank_of(slot))] = ring_sent_[size_t(topology_.rank_of(slot))] = 0;
    return fit;
}

bool LayerPlanner::turn(std::span<const int> ring, bool whole) {
    bool local = true;
    for (int slot : ring) {
        int rank = topology_.rank_of(slot);
        if (slots_.local_copy(slots_.wanted(slot), rank) >= 0) continue;
        local = false;
        if (!whole && full_ranks() + (holds_[size_t(rank)] + 1 >= places_) > 1) continue;
        if (open(slot)) return true;
    }
    return local && turn_local(ring);
}

// A ring within one rank needs one place, after the batch's commits.
bool LayerPlanner::turn_local(std::span<const int> ring) {
    size_t rank = size_t(topology_.rank_of(ring[0]));
    if (holds_[rank] >= places_) return false;
    int place = find_place(rank, Use::taken);  // that is empty again by then
    const bool fresh = place < 0;
    if (fresh) place = find_place(rank, Use::none);
    if (place < 0) return false;
    int last = ring.back();
    int32_t number = int32_t(int(rank) * staging_ + place);
    if (fresh) {
        take(rank, place);
        emptied_.push_back(number);
    }
    add(MOELINK_EPLB_MOVE_SAVE, ring[0], number, last);
    for (size_t i = 0; i + 1 < ring.size(); ++i) {
        add(MOELINK_EPLB_MOVE_COPY, ring[i + 1], ring[i], ring[i]);
        slots_.serve(ring[i]);
        slots_.fill(ring[i]);
    }
    add(MOELINK_EPLB_MOVE_COMMIT, number, last, last);
    slots_.serve(last);
    slots_.fill(last);
    return true;
}

bool LayerPlanner::is_held(int rank, int place) const {
    for (int slot = rank * topology_.rank_slots; slot < (rank + 1) * topology_.rank_slots; ++slot) {
        if (staged_[size_t(slot)] == place) return true;
    }
    return false;
}

// ---- The end of a batch ----

void LayerPlanner::add(int32_t kind, int from, int to, int slot) {
    moelink_eplb_move move = {};
    move.round = -1;
    move.kind = kind;
    move.expert = slots_.wanted(slot);
    move.from = from;
    move.to = to;
    local_.push_back(move);
}

void LayerPlanner::end_rest() {
    for (int number : rested_) {
        if (use_of(number) != Use::resting) continue;
        use_of(number) = Use::none;
        ++free_[size_t(number / staging_)];
    }
}

LayerBatch LayerPlanner::finish_batch(std::vector<moelink_eplb_move> &moves) {
    std::vector<int> rounds = colour_rounds(ends_, topology_.ranks);
    LayerBatch batch;
    batch.moves = int32_t(transfers_.size() + local_.size());
    batch.early = overlap_ && std::none_of(transfers_.begin(), transfers_.end(), [&](const moelink_eplb_move &move) {
        return recent_[size_t(move.from)] != 0 || (waited_ && std::find(rested_.begin(), rested_.end(), move.to) != rested_.end());
    });
    for (size_t i = 0; i < transfers_.size(); ++i) {
        transfers_[i].round = rounds[i];
        batch.rounds = std::max(batch.rounds, rounds[i] + 1);
    }
    std::stable_sort(transfers_.begin(), transfers_.end(), [](const auto &a, const auto &b) { return a.round < b.round; });
    std::fill(recent_.begin(), recent_.end(), uint8_t{0});
    for (const moelink_eplb_move &move : local_) {
        if (move.kind != MOELINK_EPLB_MOVE_SAVE) recent_[size_t(move.to)] = 1;
    }
    for (auto *made : {&transfers_, &local_}) {
        moves.insert(moves.end(), made->begin(), made->end());
        made->clear();
    }

    end_rest();
    rested_.swap(emptied_);
    emptied_.clear();
    for (int number : rested_) use_of(number) = Use::resting;
    if (!overlap_) end_rest();
    ends_.clear();
    slots_.end_batch();
    batch.whole = hold_count_ == 0;
    batch.last = done();
    if (batch.last) batch.most_received = *std::max_element(all_received_.begin(), all_received_.end());
    std::fill(received_.begin(), received_.end(), 0);
    std::fill(sent_.begin(), sent_.end(), 0);
    return batch;
}

}  // namespace moelink::eplb
