#include "eplb/scratch.hpp"

#include "base/error.hpp"
#include "eplb/improve.hpp"
#include "eplb/match.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace moelink::eplb {

namespace {

double total(std::span<const double> load) {
    return std::accumulate(load.begin(), load.end(), 0.0);
}

// One zone while it is filled.
class Filler {
public:
    Filler(Layout &layout, const Rules &rules, int zone) : layout_(layout), cluster_(layout.cluster()), rules_(rules) {
        for (int rank = 0; rank < cluster_.ranks; ++rank) {
            if (cluster_.zone[size_t(rank)] != zone) continue;
            ranks_.push_back(rank);
            for (int slot = rank * cluster_.capacity; slot < (rank + 1) * cluster_.capacity; ++slot) {
                if (layout_.slots()[size_t(slot)] == empty_slot) ++room_;
            }
        }
        for (int expert = 0; expert < cluster_.experts; ++expert) {
            if (rules.zone.empty() || rules.zone[size_t(expert)] == zone) experts_.push_back(expert);
        }
        steps_ = size_t(cluster_.steps);
        copies_.assign(size_t(cluster_.experts), 0);
        time_.assign(size_t(cluster_.ranks) * steps_, 0.0);
        open_.assign(size_t(cluster_.ranks), {});
        for (int rank : ranks_) {
            for (int slot = (rank + 1) * cluster_.capacity - 1; slot >= rank * cluster_.capacity; --slot) {
                if (layout_.slots()[size_t(slot)] == empty_slot) open_[size_t(rank)].push_back(slot);
            }
        }
    }

    void fill() {
        replicate();
        std::vector<std::pair<double, int>> order;  // -load of a copy, expert; once for each copy to place
        for (int expert : experts_) {
            double share = total(layout_.load(expert)) / copies_[size_t(expert)];
            for (int copy = layout_.count(expert); copy < copies_[size_t(expert)]; ++copy) order.emplace_back(-share, expert);
            for (int slot = layout_.first(expert); slot >= 0; slot = layout_.next(slot)) add(cluster_.rank_of(slot), expert, 1.0);
        }
        std::sort(order.begin(), order.end());
        for (auto [share, expert] : order) place(expert);
    }

private:
    // Decides on the copies of each of the zone's experts, those that are there included.
    void replicate() {
        std::vector<std::pair<double, int>> heap;  // load per copy, -expert
        int spare = room_;
        for (int expert : experts_) {
            int &copies = copies_[size_t(expert)];
            copies = std::max(1, layout_.count(expert));
            if (layout_.count(expert) == 0) --spare;
            if (copies < int(ranks_.size())) heap.emplace_back(total(layout_.load(expert)) / copies, -expert);
        }
        if (spare < 0) {
            fail(MOELINK_ERR_INVALID_ARGUMENT, "{} slots{} can be filled on active ranks, but {} experts need one", room_,
                 cluster_.zones > 1 ? " of a node" : "", room_ - spare);
        }
        std::make_heap(heap.begin(), heap.end());
        for (; spare > 0 && !heap.empty(); --spare) {
            std::pop_heap(heap.begin(), heap.end());
            int expert = -heap.back().second;
            int copies = ++copies_[size_t(expert)];
            if (copies == int(ranks_.size())) {
                heap.pop_back();
                continue;
            }
            heap.back().first = total(layout_.load(expert)) / copies;
            std::push_heap(heap.begin(), heap.end());
        }
    }

    void add(int rank, int expert, double factor) {
        factor *= cluster_.slowness[size_t(rank)] / copies_[size_t(expert)];
        for (size_t step = 0; step < steps_; ++step) {
            time_[size_t(rank) * steps_ + step] += factor * layout_.load(expert)[step];
        }
    }

    void put(int slot, int expert) {
        layout_.set(slot, expert);
        add(cluster_.rank_of(slot), expert, 1.0);
    }

    // To the rank that takes it best: the one with the least time then, of steps those with most of its load counting most.
    void place(int expert) {
        std::span<const double> load = layout_.load(expert);
        int best = -1;
        double least = 0;
        for (int rank : ranks_) {
            if (open_[size_t(rank)].empty() || layout_.held(rank, expert)) continue;
            double factor = cluster_.slowness[size_t(rank)] / copies_[size_t(expert)];
            double time = 0;
            for (size_t step = 0; step < steps_; ++step) {
                double then = time_[size_t(rank) * steps_ + step] + load[step] * factor;
                time += steps_ == 1 ? then : then * load[step];
            }
            if (best < 0 || time < least) {
                best = rank;
                least = time;
            }
        }
        if (best >= 0) {
            put(open_[size_t(best)].back(), expert);
            open_[size_t(best)].pop_back();
        } else {
            make_room(expert);
        }
    }

    // Every rank with room has the expert. A full rank without it takes it, and gives one of its own experts to a rank with room. Where
    // pins prevent that too, the expert gets one copy less.
    void make_room(int expert) {
        for (int from : ranks_) {
            if (layout_.held(from, expert)) continue;
            for (int slot = from * cluster_.capacity; slot < (from + 1) * cluster_.capacity; ++slot) {
                int32_t other = layout_.slots()[size_t(slot)];
                if (other < 0 || rules_.fixed[size_t(slot)]) continue;
                for (int to : ranks_) {
                    if (open_[size_t(to)].empty() || layout_.held(to, other)) continue;
                    add(from, other, -1.0);
                    put(slot, expert);
                    put(open_[size_t(to)].back(), other);
                    open_[size_t(to)].pop_back();
                    return;
                }
            }
        }
    }

    Layout &layout_;
    const Cluster &cluster_;
    const Rules &rules_;
    size_t steps_ = 1;
    int room_ = 0;
    std::vector<int> ranks_, experts_;
    std::vector<std::vector<int>> open_;  // [ranks] slots to fill, the first last
    std::vector<int> copies_;             // [experts]
    std::vector<double> time_;            // [ranks, steps]
};

}  // namespace

bool fill_from_scratch(Layout &layout, const Rules &rules, std::span<const double> goals) {
    for (int zone = 0; zone < layout.cluster().zones; ++zone) Filler(layout, rules, zone).fill();
    layout.refresh();
    // Nothing is anywhere yet, so moves are free and no cap holds.
    Home nowhere(nullptr);
    Rules free = rules;
    free.origin = &nowhere;
    return improve(layout, nowhere, free, goals).late;
}

void relabel(Layout &layout, const Layout &before, const Rules &rules) {
    const Cluster &cluster = layout.cluster();
    // Ranks are alike when zone and speed are; one with pins keeps its name.
    std::vector<int> kind;
    for (int rank = 0; rank < cluster.ranks; ++rank) {
        int alike = 0;
        while (cluster.zone[size_t(alike)] != cluster.zone[size_t(rank)] ||
               cluster.slowness[size_t(alike)] != cluster.slowness[size_t(rank)]) {
            ++alike;
        }
        auto first = rules.fixed.begin() + ptrdiff_t(rank) * cluster.capacity;
        bool pinned = std::any_of(first, first + cluster.capacity, [](uint8_t fixed) { return fixed != 0; });
        kind.push_back(pinned ? -1 : alike);
    }
    std::vector<Overlap> overlaps;
    for (int expert = 0; expert < cluster.experts; ++expert) {
        for (int fresh = layout.first(expert); fresh >= 0; fresh = layout.next(fresh)) {
            for (int old = before.first(expert); old >= 0; old = before.next(old)) {
                overlaps.push_back({cluster.rank_of(fresh), cluster.rank_of(old)});
            }
        }
    }
    std::vector<int> name = match(overlaps, kind);
    std::vector<int32_t> slots(layout.slots().size());
    for (int rank = 0; rank < cluster.ranks; ++rank) {
        std::copy_n(layout.slots().begin() + ptrdiff_t(rank) * cluster.capacity, cluster.capacity,
                    slots.begin() + ptrdiff_t(name[size_t(rank)]) * cluster.capacity);
    }
    layout.assign(slots);
}

}  // namespace moelink::eplb
