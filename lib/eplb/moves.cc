#include "eplb/moves.hpp"

#include <algorithm>
#include <limits>

namespace moelink::eplb {

namespace {

// Moves that cost nothing, or less, are as good as very cheap ones: what they gain then decides.
constexpr double least_cost = 0.125;

// First moves of two that are tried.
constexpr size_t most_shifts = 16;

std::vector<double> least_costs(const Cluster &cluster, const Home &home) {
    std::vector<double> least;
    for (int rank = 0; rank < cluster.ranks; ++rank) least.push_back(home.least_cost(rank));
    return least;
}

}  // namespace

void apply(const Move &move, Layout &layout) {
    for (int i = 0; i < move.count; ++i) layout.set(move.writes[size_t(i)].first, move.writes[size_t(i)].second);
    layout.refresh();
}

Search::Search(const Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals, std::vector<double> least)
    : layout_(layout),
      cluster_(layout.cluster()),
      home_(home),
      rules_(rules),
      slots_(layout.slots().data()),
      goals_(goals.data()),
      steps_(size_t(layout.cluster().steps)),
      excess_(size_t(cluster_.ranks)),
      least_(std::move(least)),
      refund_(size_t(cluster_.ranks)),
      misses_(size_t(cluster_.ranks)),
      relief_(size_t(cluster_.experts)),
      nothing_(steps_, 0.0) {}

Search::Search(const Layout &layout, const Home &home, const Rules &rules, std::span<const double> goals)
    : Search(layout, home, rules, goals, least_costs(layout.cluster(), home)) {}

Search::Search(const Layout &layout, const Search &other)
    : Search(layout, other.home_, other.rules_, {other.goals_, other.steps_}, other.least_) {}

Move Search::relieve(int rank) {
    prepare();
    best_ = Move{};
    best_score_ = 0;
    least_gain_ = 1e-9 * excess_[size_t(rank)];
    // First what is likely to be best, so that bounds rule out most of the rest.
    if (home_.free()) {
        swaps(rank);
        if (best_.gain < 0.99 * excess_[size_t(rank)]) steals(rank);
    } else {
        steals(rank);
        swaps(rank);
    }
    return best_;
}

// What bounds on gains are made from.
void Search::prepare() {
    coldest_.clear();
    for (int rank = 0; rank < cluster_.ranks; ++rank) {
        excess_[size_t(rank)] = excess(rank);
        double time = 0;
        for (size_t step = 0; step < steps_; ++step) time += layout_.time(rank)[step];
        coldest_.emplace_back(time, rank);
        refund_[size_t(rank)] = 0;
        int here = 0;
        for (int slot = rank * cluster_.capacity; slot < (rank + 1) * cluster_.capacity; ++slot) {
            if (slots_[slot] < 0) continue;
            double cost = home_.cost(slots_[slot], rank);
            refund_[size_t(rank)] = std::max(refund_[size_t(rank)], cost);
            if (cost == 0) ++here;
        }
        misses_[size_t(rank)] = here < home_.held_at(rank);
    }
    std::sort(coldest_.begin(), coldest_.end());
}

void Search::prepare_steals() {
    for (int expert = 0; expert < cluster_.experts; ++expert) {
        const double *share = layout_.share(expert);
        double part = 1.0 / (layout_.count(expert) + 1);
        double relief = 0;
        for (int slot = layout_.first(expert); slot >= 0; slot = layout_.next(slot)) {
            int rank = cluster_.rank_of(slot);
            if (excess_[size_t(rank)] == 0) continue;
            const double *time = layout_.time(rank);
            double slowness = part * cluster_.slowness[size_t(rank)];
            relief += excess_[size_t(rank)] - excess_with([&](size_t step) { return time[step] - share[step] * slowness; });
        }
        relief_[size_t(expert)] = relief;
    }
}

Move Search::settle(int expert, const std::vector<int> *counts) {
    prepare();
    prepare_steals();
    best_ = Move{};
    best_score_ = -std::numeric_limits<double>::infinity();
    least_gain_ = best_score_;
    for (int slot = 0; slot < cluster_.slots(); ++slot) {
        int32_t old = slots_[slot];
        if (!movable(slot) || (old >= 0 && layout_.count(old) <= (counts == nullptr ? 1 : (*counts)[size_t(old)]))) continue;
        if (may_hold(cluster_.rank_of(slot), expert)) steal(slot, expert);
    }
    return best_;
}

double Search::score(double gain, double cost) const {
    return gain > 0 ? gain / std::max(cost, least_cost) : gain;
}

bool Search::beats(double gain, double cost) const {
    if (shifted_ >= 0) return shifts_.size() < most_shifts || gain > shifts_.front().gain;
    return gain > least_gain_ && score(gain, cost) > best_score_;
}

void Search::offer(const Move &move) {
    if (!beats(move.gain, move.cost)) return;
    if (cluster_.max_pair_copies > 0 && !pairs_allow(move)) return;
    if (shifted_ >= 0) {
        keep(move);
    } else {
        best_score_ = score(move.gain, move.cost);
        best_ = move;
    }
}

// Among moves that are no gain, most do nothing at all. Only those count that take half of the rank's excess away.
void Search::keep(const Move &move) {
    if (left_ > excess_[size_t(shifted_)] / 2) return;
    auto less_harm = [](const Move &a, const Move &b) { return a.gain > b.gain; };
    if (shifts_.size() == most_shifts) {
        std::pop_heap(shifts_.begin(), shifts_.end(), less_harm);
        shifts_.pop_back();
    }
    shifts_.push_back(move);
    std::push_heap(shifts_.begin(), shifts_.end(), less_harm);
}

std::vector<Move> Search::shift(int rank) {
    prepare();
    shifted_ = rank;
    shifts_.clear();
    steals(rank);
    swaps(rank);
    shifted_ = -1;
    std::sort(shifts_.begin(), shifts_.end(), [](const Move &a, const Move &b) { return a.gain > b.gain; });
    return shifts_;
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

// Costs less only where an expert comes home, or was away.
double Search::least_swap_cost(int rank, int other) const {
    return (misses_[size_t(rank)] ? 0 : least_[size_t(rank)]) + (misses_[size_t(other)] ? 0 : least_[size_t(other)]) -
           refund_[size_t(rank)] - refund_[size_t(other)];
}

// Exchanges an expert of the rank for a lighter one of another.
void Search::swaps(int rank) {
    for (auto [time, other] : coldest_) {
        // No swap takes off more excess than both ranks have.
        double most = excess_[size_t(rank)] + excess_[size_t(other)];
        if (other != rank && beats(most, least_swap_cost(rank, other))) swaps_with(rank, other);
    }
}

void Search::swaps_with(int rank, int other) {
    const double *hot = layout_.time(rank);
    const double *cold = layout_.time(other);
    double before = excess_[size_t(rank)] + excess_[size_t(other)];
    double slowness = cluster_.slowness[size_t(rank)];
    double other_slowness = cluster_.slowness[size_t(other)];
    // What the partner's half of a swap costs at least.
    double back = (misses_[size_t(rank)] ? 0 : least_[size_t(rank)]) - refund_[size_t(other)];
    int start = rank * cluster_.capacity;
    int other_start = other * cluster_.capacity;
    for (int i = start; i < start + cluster_.capacity; ++i) {
        int32_t expert = slots_[i];
        if (expert < 0 || !movable(i) || !may_hold(other, expert)) continue;
        const double *mine = layout_.share(expert);
        double there = home_.cost(expert, other) - home_.cost(expert, rank);
        for (int j = other_start; j < other_start + cluster_.capacity; ++j) {
            int32_t partner = slots_[j];
            const double *theirs = partner < 0 ? nothing_.data() : layout_.share(partner);
            left_ = excess_with([&](size_t step) { return hot[step] - (mine[step] - theirs[step]) * slowness; });
            Move move;
            move.gain = before - left_ -
                        excess_with([&](size_t step) { return cold[step] + (mine[step] - theirs[step]) * other_slowness; });
            // Cheap tests first: few candidates beat the best.
            if (!beats(move.gain, partner < 0 ? there : there + back) || !movable(j)) continue;
            move.cost = there;
            if (partner >= 0) {
                if (!may_hold(rank, partner)) continue;
                move.cost += home_.cost(partner, rank) - home_.cost(partner, other);
            }
            move.count = 2;
            move.writes = {{{i, partner}, {j, expert}}};
            offer(move);
        }
    }
}

// No steal gains more: what the expert's holders get rid of, and what changes on the slot's own rank.
double Search::steal_limit(int slot, int32_t expert) const {
    int rank = cluster_.rank_of(slot);
    int32_t old = slots_[slot];
    const double *time = layout_.time(rank);
    const double *load = layout_.load(expert).data();
    double part = 1.0 / (layout_.count(expert) + 1);
    const double *freed = old < 0 ? nothing_.data() : layout_.share(old);
    double slowness = cluster_.slowness[size_t(rank)];
    return relief_[size_t(expert)] + excess_[size_t(rank)] -
           excess_with([&](size_t step) { return time[step] + (load[step] * part - freed[step]) * slowness; });
}

// One slot takes over another expert: that one's copies all get lighter, those of the slot's old expert heavier.
void Search::steal(int slot, int32_t expert) {
    int rank = cluster_.rank_of(slot);
    int32_t old = slots_[slot];
    Move move;
    move.count = 1;
    move.writes[0] = {slot, expert};
    move.cost = home_.cost(expert, rank) - (old < 0 ? 0.0 : home_.cost(old, rank));
    move.gain = steal_limit(slot, expert);
    if (!beats(move.gain, move.cost)) return;
    if (old >= 0) {
        const double *more = layout_.share(old);
        double rise = 1.0 / (layout_.count(old) - 1);
        const double *less = layout_.share(expert);
        double fall = 1.0 / (layout_.count(expert) + 1);
        for (int i = layout_.first(old); i >= 0; i = layout_.next(i)) {
            if (i == slot) continue;
            int holder = cluster_.rank_of(i);
            const double *time = layout_.time(holder);
            double slowness = cluster_.slowness[size_t(holder)];
            double light = layout_.held(holder, expert) ? fall * slowness : 0.0;  // what the limit has counted as relief
            double heavy = rise * slowness;
            move.gain += excess_with([&](size_t step) { return time[step] - less[step] * light; }) -
                         excess_with([&](size_t step) { return time[step] - less[step] * light + more[step] * heavy; });
        }
    }
    if (shifted_ >= 0) left_ = excess_after_steal(slot, expert);
    offer(move);
}

// What is left of the excess of the rank that shift is about.
double Search::excess_after_steal(int slot, int32_t expert) const {
    int32_t old = slots_[slot];
    double slowness = cluster_.slowness[size_t(shifted_)];
    bool here = cluster_.rank_of(slot) == shifted_;
    double added = here ? 1.0 / (layout_.count(expert) + 1) : 0.0;                                         // of the load
    double fallen = layout_.held(shifted_, expert) ? 1.0 / (layout_.count(expert) + 1) : 0.0;              // of the share
    double risen = old < 0 || !layout_.held(shifted_, old) ? 0.0 : here ? -1.0 : 1.0 / (layout_.count(old) - 1);  // of the old one's
    const double *time = layout_.time(shifted_);
    const double *load = layout_.load(expert).data();
    const double *share = layout_.share(expert);
    const double *freed = old < 0 ? nothing_.data() : layout_.share(old);
    return excess_with([&](size_t step) {
        return time[step] + (load[step] * added - share[step] * fallen + freed[step] * risen) * slowness;
    });
}

void Search::steals(int rank) {
    prepare_steals();
    int start = rank * cluster_.capacity;
    // One more copy elsewhere of an expert that is here.
    for (int slot = 0; slot < cluster_.slots(); ++slot) {
        int32_t old = slots_[slot];
        if ((old >= 0 && layout_.count(old) < 2) || !movable(slot)) continue;
        int other = cluster_.rank_of(slot);
        if (other == rank) continue;
        for (int i = start; i < start + cluster_.capacity; ++i) {
            int32_t expert = slots_[i];
            if (expert >= 0 && expert != old && may_hold(other, expert)) steal(slot, expert);
        }
    }
    // One copy less here, and another expert in its place.
    for (int slot = start; slot < start + cluster_.capacity; ++slot) {
        int32_t old = slots_[slot];
        if (old < 0 || layout_.count(old) < 2 || !movable(slot)) continue;
        for (int32_t expert = 0; expert < cluster_.experts; ++expert) {
            if (expert != old && may_hold(rank, expert)) steal(slot, expert);
        }
    }
}

}  // namespace moelink::eplb
