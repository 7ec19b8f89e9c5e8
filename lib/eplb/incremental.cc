#include "eplb/incremental.hpp"

#include "base/error.hpp"
#include "eplb/bound.hpp"
#include "eplb/choice.hpp"
#include "eplb/maps.hpp"
#include "eplb/scratch.hpp"
#include "eplb/zones.hpp"

#include <algorithm>
#include <numeric>

namespace moelink::eplb {

namespace {

// One layer while it is planned.
class Planner {
public:
    explicit Planner(const LayerInput &input)
        : input_(input), cluster_(*input.cluster), before_(cluster_, input.load), origin_(input.previous.empty() ? nullptr : &before_) {
        std::vector<double> bounds = lower_bounds(cluster_, input.load);
        bound_ = std::accumulate(bounds.begin(), bounds.end(), 0.0);
        for (double bound : bounds) {
            goals_.push_back(bound * input.target);
            // Copies are free from scratch, so that a plan made so should leave little to do.
            fine_goals_.push_back(bound * (1 + (input.target - 1) / 2));
        }
        worth_ = input.move_cost * even_time(cluster_, input.load);
        rules_.origin = &origin_;
        rules_.fixed = input.fixed;
    }

    LayerPlan run() {
        if (input_.previous.empty()) return anew();
        bool mended = take_previous();
        if (cluster_.zones > 1) {
            rules_.zone = zones_of(before_);
            if (rules_.zone.empty()) return anew();
        }
        if (input_.from_scratch) {
            bool complete = true;
            for (int expert = 0; expert < cluster_.experts; ++expert) complete = complete && before_.count(expert) > 0;
            keeps_rules_ = complete && !mended;
            return anew();
        }

        Layout now = before_;
        if (settle_missing(now)) mended = true;
        if (mended) plan_.flags |= MOELINK_EPLB_RESULT_REPAIRED;
        plan_.start = now.slots();
        now.assign(plan_.start);
        // Costs of the first search are those from the map as it was; a later call counts them from the mended one.
        if (!advance(now) && !mended) return std::move(plan_);
        while (advance(now)) {
        }
        return std::move(plan_);
    }

private:
    // Reads the previous map; whether it broke a rule. Of two copies on a rank the pinned one stays.
    bool take_previous() {
        bool broken = false;
        std::vector<int32_t> kept(input_.previous.size(), empty_slot);
        for (bool fixed : {true, false}) {
            for (int slot = 0; slot < cluster_.slots(); ++slot) {
                int32_t expert = input_.previous[size_t(slot)];
                if ((input_.fixed[size_t(slot)] != 0) != fixed) continue;
                if (expert >= 0 && before_.held(cluster_.rank_of(slot), expert)) {
                    broken = true;
                } else {
                    kept[size_t(slot)] = expert;
                    before_.set(slot, expert);
                }
            }
        }
        before_.assign(kept);
        plan_.previous = std::move(kept);
        return broken;
    }

    // Gives experts without a copy a slot, those with most load first.
    bool settle_missing(Layout &now) {
        std::vector<std::pair<double, int>> missing;
        for (int expert = 0; expert < cluster_.experts; ++expert) {
            std::span<const double> load = now.load(expert);
            if (now.count(expert) == 0) missing.emplace_back(-std::accumulate(load.begin(), load.end(), 0.0), expert);
        }
        std::sort(missing.begin(), missing.end());
        for (auto [load, expert] : missing) {
            Move move = Search(now, origin_, rules_, goals_).settle(expert);
            if (move.count == 0) {
                fail(MOELINK_ERR_INVALID_ARGUMENT, "{} leave no slot{} for expert {}, which has none",
                     cluster_.zones > 1 ? "pins or inactive ranks" : "pins", cluster_.zones > 1 ? " of its group's node" : "", expert);
            }
            apply(move, now);
        }
        return !missing.empty();
    }

    Layout scratch(const Rules &rules) {
        Layout fresh(cluster_, input_.load);
        for (int slot = 0; slot < cluster_.slots(); ++slot) {
            if (!input_.previous.empty() && rules.fixed[size_t(slot)]) fresh.set(slot, before_.slots()[size_t(slot)]);
        }
        fresh.refresh();
        if (fill_from_scratch(fresh, rules, fine_goals_)) plan_.flags |= MOELINK_EPLB_RESULT_DEADLINE;
        if (!input_.previous.empty()) relabel(fresh, before_, rules);
        return fresh;
    }

    // Pins hold groups where they are.
    Rules fresh_rules() const {
        Rules rules = rules_;
        bool pinned = std::any_of(rules.fixed.begin(), rules.fixed.end(), [](uint8_t fixed) { return fixed != 0; });
        if (cluster_.zones > 1 && (rules.zone.empty() || !pinned)) rules.zone = pack_zones(before_, rules_.zone);
        return rules;
    }

    // From scratch; then on from there as a later call would, so that it finds nothing to do.
    LayerPlan anew() {
        Rules rules = fresh_rules();
        Layout now = scratch(rules);
        rules_.zone = rules.zone;
        plan_.flags |= MOELINK_EPLB_RESULT_ANEW;
        if (keeps_rules_) {
            // The previous map stays a choice, for the gain threshold and for budgets.
            plan_.options.push_back({0, before_.peak(), 0, 0});
            plan_.start = before_.slots();
            for (int slot = 0; slot < cluster_.slots(); ++slot) plan_.log.emplace_back(slot, now.slots()[size_t(slot)]);
            plan_.anew_from = 1;
        } else {
            plan_.start = now.slots();
        }
        plan_.options.push_back(state_of(plan_.log.size(), now, origin_, origin_));
        now.assign(settle_slots());
        while (advance(now)) {
        }
        return std::move(plan_);
    }

    // Searches from `now` and takes the best bargain; false when there is none. Going on until then makes a second plan for the same
    // loads find nothing to do.
    bool advance(Layout &now) {
        const Layout start = now;
        Home here(&start);
        const Home &home = plan_.options.empty() ? origin_ : here;
        std::vector<Trail> trails;
        trails.push_back(improve(now, home, rules_, goals_));
        if (!good(trails)) trails.push_back(recount(start, home));
        if (!good(trails)) trails.push_back(relabelled(start, home));

        // The first trail's options, then the others' without their starts.
        std::vector<Option> options;
        std::vector<std::pair<size_t, size_t>> places;
        for (size_t trail = 0; trail < trails.size(); ++trail) {
            if (trails[trail].late) plan_.flags |= MOELINK_EPLB_RESULT_DEADLINE;
            for (size_t i = trail == 0 ? 0 : 1; i < trails[trail].options.size(); ++i) {
                options.push_back(trails[trail].options[i]);
                places.emplace_back(trail, i);
            }
        }
        size_t chosen = choose(options, worth_);
        auto [trail, last] = places[chosen];
        take(trails[trail], last);
        if (trail == 2) {
            rules_.zone = anew_zone_;
            if ((plan_.flags & MOELINK_EPLB_RESULT_ANEW) == 0) plan_.anew_from = plan_.options.size() - 1;
            plan_.flags |= MOELINK_EPLB_RESULT_ANEW;
        }
        now.assign(settle_slots());
        return chosen > 0 && (plan_.flags & MOELINK_EPLB_RESULT_DEADLINE) == 0;
    }

    // Whether a trail has come to the target, or there is no time for more.
    bool good(const std::vector<Trail> &trails) {
        if (trails.back().options.back().peak <= bound_ * input_.target) return true;
        if (!trails.back().late && !cluster_.late()) return false;
        plan_.flags |= MOELINK_EPLB_RESULT_DEADLINE;
        return true;
    }

    // A trail's states up to the chosen one. Those that the choice passed over stay: a budget may stop there.
    void take(const Trail &trail, size_t last) {
        size_t base = plan_.log.size();
        plan_.log.insert(plan_.log.end(), trail.log.begin(), trail.log.begin() + ptrdiff_t(trail.options[last].writes));
        for (size_t i = plan_.options.empty() ? 0 : 1; i <= last; ++i) {
            Option option = trail.options[i];
            option.writes += base;
            plan_.options.push_back(option);
        }
    }

    // The last state with each expert in the slot that it will be returned in: the same that a later call will start from, bit for bit.
    std::vector<int32_t> settle_slots() {
        std::vector<int32_t> slots = plan_.slots(plan_.options.size() - 1);
        std::vector<int32_t> settled(slots.size());
        if (input_.previous.empty()) return slots;
        preserve_slots(plan_.previous, slots, cluster_.capacity, settled);
        for (size_t slot = 0; slot < slots.size(); ++slot) {
            if (settled[slot] != slots[slot]) plan_.log.emplace_back(int(slot), settled[slot]);
        }
        plan_.options.back().writes = plan_.log.size();
        return settled;
    }

    // First as many copies of each expert as a plan from scratch would make, wherever they do least harm, then moves.
    Trail recount(const Layout &start, const Home &home) {
        Trail trail;
        trail.options.push_back(state_of(0, start, home, origin_));
        Layout now = start;
        std::vector<int> counts = scratch_counts(start, rules_);
        for (;;) {
            int neediest = -1;
            double most = 0;
            for (int expert = 0; expert < cluster_.experts; ++expert) {
                double share = std::accumulate(now.share(expert), now.share(expert) + cluster_.steps, 0.0);
                if (now.count(expert) < counts[size_t(expert)] && share > most) {
                    neediest = expert;
                    most = share;
                }
            }
            if (neediest < 0 || cluster_.late()) break;
            Move move = Search(now, home, rules_, goals_).settle(neediest, &counts);
            if (move.count == 0) {
                counts[size_t(neediest)] = now.count(neediest);
                continue;
            }
            apply(move, now);
            trail.log.push_back(move.writes[0]);
        }
        size_t settled = trail.log.size();
        Trail rest = improve(now, home, rules_, goals_);
        trail.late = rest.late;
        trail.log.insert(trail.log.end(), rest.log.begin(), rest.log.end());
        for (Option option : rest.options) {
            option.writes += settled;
            trail.options.push_back(option);
        }
        return trail;
    }

    // The plan from scratch, its ranks relabelled.
    Trail relabelled(const Layout &start, const Home &home) {
        if (anew_.empty()) {
            Rules rules = fresh_rules();
            anew_ = scratch(rules).slots();
            anew_zone_ = rules.zone;
        }
        Trail trail;
        trail.options.push_back(state_of(0, start, home, origin_));
        Layout fresh(cluster_, input_.load);
        fresh.assign(anew_);
        if (!pairs_allow(fresh)) return trail;
        for (int slot = 0; slot < cluster_.slots(); ++slot) {
            if (start.slots()[size_t(slot)] != anew_[size_t(slot)]) trail.log.emplace_back(slot, anew_[size_t(slot)]);
        }
        trail.options.push_back(state_of(trail.log.size(), fresh, home, origin_));
        return trail;
    }

    bool pairs_allow(const Layout &layout) const {
        if (cluster_.max_pair_copies == 0) return true;
        std::vector<int32_t> experts(static_cast<size_t>(cluster_.capacity));
        std::vector<int> sources;
        for (int rank = 0; rank < cluster_.ranks; ++rank) {
            std::copy_n(layout.slots().begin() + ptrdiff_t(rank) * cluster_.capacity, cluster_.capacity, experts.begin());
            if (!origin_.sources(rank, experts, cluster_.max_pair_copies, sources)) return false;
        }
        return true;
    }

    const LayerInput &input_;
    const Cluster &cluster_;
    Layout before_;
    Home origin_;
    Rules rules_;
    bool keeps_rules_ = false;  // the previous map, which a plan from scratch was asked for in place of
    double bound_ = 0;
    double worth_ = 0;  // what a copy of cost 1 must save
    std::vector<double> goals_, fine_goals_;
    std::vector<int32_t> anew_;  // the plan from scratch, once there is one
    std::vector<int> anew_zone_;
    LayerPlan plan_;
};

}  // namespace

std::vector<int32_t> LayerPlan::slots(size_t option) const {
    std::vector<int32_t> slots = start;
    for (size_t i = 0; i < options[option].writes; ++i) slots[size_t(log[i].first)] = log[i].second;
    return slots;
}

LayerPlan plan_layer(const LayerInput &input) {
    return Planner(input).run();
}

}  // namespace moelink::eplb
