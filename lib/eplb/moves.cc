#include "eplb/moves.hpp"

#include <algorithm>
#include <limits>

namespace moelink::eplb {

namespace {

// Moves that cost nothing, or less, are as good as very cheap ones: what they gain then decides.
constexpr double least_cost = 0.125;

}  // namespace

Search::Search(const Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals)
    : layout_(layout),
      cluster_(layout.cluster()),
      home_(home),
      rules_(rules),
      goals_(goals),
      steps_(size_t(layout.cluster().steps)),
      changed_(size_t(cluster_.ranks) * steps_),
      is_touched_(size_t(cluster_.ranks), 0) {}

double Search::excess_of(const double *time) const {
    double sum = 0;
    for (size_t step = 0; step < steps_; ++step) {
        double above = std::max(0.0, time[step] - goals_[step]);
        sum += above * above;
    }
    return sum;
}

Move Search::relieve(int rank) {
    best_ = Move{};
    best_score_ = 0;
    least_gain_ = 1e-9 * excess(rank);
    steals(rank);
    swaps(rank);
    return best_;
}

Move Search::settle(int expert) {
    best_ = Move{};
    best_score_ = -std::numeric_limits<double>::infinity();
    least_gain_ = best_score_;
    for (int slot = 0; slot < cluster_.slots(); ++slot) {
        int32_t old = layout_.slots()[size_t(slot)];
        if (!movable(slot) || (old >= 0 && layout_.count(old) < 2)) continue;
        if (may_hold(cluster_.rank_of(slot), expert)) steal(slot, expert);
    }
    return best_;
}

void Search::offer(const Move &move) {
    if (move.gain <= least_gain_) return;
    double score = move.gain > 0 ? move.gain / std::max(move.cost, least_cost) : move.gain;
    if (score <= best_score_) return;
    if (cluster_.max_pair_copies > 0 && !pairs_allow(move)) return;
    best_score_ = score;
    best_ = move;
}

bool Search::pairs_allow(const Move &move) const {
    std::vector<int32_t> experts;
    std::vector<int> sources;
    for (int i = 0; i < move.count; ++i) {
        int rank = cluster_.rank_of(move.writes[size_t(i)].first);
        int start = rank * cluster_.capacity;
        experts.assign(layout_.slots().begin() + start, layout_.slots().begin() + start + cluster_.capacity);
        experts[size_t(move.writes[size_t(i)].first - start)] = move.writes[size_t(i)].second;
        if (!rules_.origin->sources(rank, experts, cluster_.max_pair_copies, sources)) return false;
    }
    return true;
}

// Exchanges an expert of the rank for a lighter one of another.
void Search::swaps(int rank) {
    const std::vector<int32_t> &slots = layout_.slots();
    const double *hot = layout_.time(rank);
    double hot_excess = excess(rank);
    double slowness = cluster_.slowness[size_t(rank)];
    int capacity = cluster_.capacity;
    for (int other = 0; other < cluster_.ranks; ++other) {
        if (other == rank) continue;
        const double *cold = layout_.time(other);
        double before = hot_excess + excess_of(cold);
        double other_slowness = cluster_.slowness[size_t(other)];
        for (int i = rank * capacity; i < (rank + 1) * capacity; ++i) {
            int32_t expert = slots[size_t(i)];
            if (expert < 0 || !movable(i) || !may_hold(other, expert)) continue;
            const double *mine = layout_.share(expert);
            double saved = home_.cost(expert, other) - home_.cost(expert, rank);
            for (int j = other * capacity; j < (other + 1) * capacity; ++j) {
                int32_t partner = slots[size_t(j)];
                if (partner == closed_slot) continue;
                const double *theirs = partner < 0 ? nullptr : layout_.share(partner);
                double after = 0;
                for (size_t step = 0; step < steps_; ++step) {
                    double shift = mine[step] - (theirs == nullptr ? 0.0 : theirs[step]);
                    double left = std::max(0.0, hot[step] - shift * slowness - goals_[step]);
                    double right = std::max(0.0, cold[step] + shift * other_slowness - goals_[step]);
                    after += left * left + right * right;
                }
                // The cheapest test first: few candidates beat the best.
                double gain = before - after;
                if (gain <= least_gain_ || gain <= best_score_ * least_cost || !movable(j)) continue;
                Move move;
                move.count = 2;
                move.writes = {{{i, partner}, {j, expert}}};
                move.gain = gain;
                move.cost = saved;
                if (partner >= 0) {
                    if (!may_hold(rank, partner)) continue;
                    move.cost += home_.cost(partner, rank) - home_.cost(partner, other);
                }
                offer(move);
            }
        }
    }
}

// Adds factor x share to a rank's time, apart from the layout.
void Search::add(int rank, const double *share, double factor) {
    double *time = changed_.data() + size_t(rank) * steps_;
    if (!is_touched_[size_t(rank)]) {
        is_touched_[size_t(rank)] = 1;
        touched_.push_back(rank);
        std::copy_n(layout_.time(rank), steps_, time);
    }
    factor *= cluster_.slowness[size_t(rank)];
    for (size_t step = 0; step < steps_; ++step) time[step] += factor * share[step];
}

// One slot takes over another expert: that one's copies all get lighter, those of the slot's old expert heavier.
void Search::steal(int slot, int32_t expert) {
    int rank = cluster_.rank_of(slot);
    int32_t old = layout_.slots()[size_t(slot)];
    Move move;
    move.count = 1;
    move.writes[0] = {slot, expert};
    double copies = layout_.count(expert);
    add(rank, layout_.load(expert).data(), 1 / (copies + 1));
    for (int i = layout_.first(expert); i >= 0; i = layout_.next(i)) {
        add(cluster_.rank_of(i), layout_.share(expert), -1 / (copies + 1));
    }
    move.cost = home_.cost(expert, rank);
    if (old >= 0) {
        double rest = layout_.count(old) - 1;
        for (int i = layout_.first(old); i >= 0; i = layout_.next(i)) {
            add(cluster_.rank_of(i), layout_.share(old), i == slot ? -1.0 : 1 / rest);
        }
        move.cost -= home_.cost(old, rank);
    }
    for (int touched : touched_) {
        move.gain += excess_of(layout_.time(touched)) - excess_of(changed_.data() + size_t(touched) * steps_);
        is_touched_[size_t(touched)] = 0;
    }
    touched_.clear();
    offer(move);
}

void Search::steals(int rank) {
    const std::vector<int32_t> &slots = layout_.slots();
    int start = rank * cluster_.capacity;
    // One more copy elsewhere of an expert that is here.
    for (int slot = 0; slot < cluster_.slots(); ++slot) {
        int other = cluster_.rank_of(slot);
        int32_t old = slots[size_t(slot)];
        if (other == rank || !movable(slot) || (old >= 0 && layout_.count(old) < 2)) continue;
        for (int i = start; i < start + cluster_.capacity; ++i) {
            int32_t expert = slots[size_t(i)];
            if (expert >= 0 && expert != old && may_hold(other, expert)) steal(slot, expert);
        }
    }
    // One copy less here, and another expert in its place.
    for (int slot = start; slot < start + cluster_.capacity; ++slot) {
        int32_t old = slots[size_t(slot)];
        if (old < 0 || !movable(slot) || layout_.count(old) < 2) continue;
        for (int32_t expert = 0; expert < cluster_.experts; ++expert) {
            if (expert != old && may_hold(rank, expert)) steal(slot, expert);
        }
    }
}

}  // namespace moelink::eplb
