#include "eplb/incremental.hpp"

#include "base/error.hpp"
#include "eplb/bound.hpp"
#include "eplb/choice.hpp"
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
            fine_goals_.push_back(bound * (1 + (input.target - 1) / 4));
        }
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
        if (input_.from_scratch) return anew();

        Layout now = before_;
        if (settle_missing(now)) mended = true;
        if (mended) plan_.flags |= MOELINK_EPLB_RESULT_REPAIRED;
        plan_.start = now.slots();
        while (advance(now)) {
        }
        return std::move(plan_);
    }

private:
    // Reads the previous map; whether it broke a rule.
    bool take_previous() {
        bool broken = false;
        for (int slot = 0; slot < cluster_.slots(); ++slot) {
            int32_t expert = input_.previous[size_t(slot)];
            if (expert >= 0 && before_.held(cluster_.rank_of(slot), expert)) {
                broken = true;
            } else {
                before_.set(slot, expert);
            }
        }
        before_.refresh();
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
            if (move.count == 0) fail(MOELINK_ERR_INVALID_ARGUMENT, "pins leave no slot for expert {}, which has none", expert);
            now.set(move.writes[0].first, move.writes[0].second);
            now.refresh();
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

    LayerPlan anew() {
        Layout fresh = scratch(fresh_rules());
        plan_.start = fresh.slots();
        plan_.options.push_back({0, fresh.peak(), 0, count_crossing(fresh, origin_)});
        plan_.flags |= MOELINK_EPLB_RESULT_ANEW;
        return std::move(plan_);
    }

    // Searches from `now` and takes the best bargain; false when there is none. Going on until then makes a second plan for the same
    // loads find nothing to do.
    bool advance(Layout &now) {
        Layout home_layout = now;
        Home home(&home_layout);
        Trail trail = improve(now, plan_.options.empty() ? origin_ : home, rules_, goals_);
        if (trail.late) plan_.flags |= MOELINK_EPLB_RESULT_DEADLINE;
        size_t last = trail.options.size() - 1;
        if (trail.options[last].peak > bound_ * input_.target && !cluster_.late()) add_relabelled(now, home_layout, trail);

        double mean = mean_time();
        size_t chosen = choose(trail.options, input_.move_cost * mean);
        // States that the choice passed over stay: a budget may stop there.
        size_t base = plan_.log.size();
        plan_.log.insert(plan_.log.end(), trail.log.begin(), trail.log.begin() + ptrdiff_t(trail.options[chosen].writes));
        for (size_t i = plan_.options.empty() ? 0 : 1; i <= chosen; ++i) {
            Option option = trail.options[i];
            option.writes += base;
            plan_.options.push_back(option);
        }
        if (chosen > last) {
            plan_.flags |= MOELINK_EPLB_RESULT_ANEW;
            if (plan_.anew_from == 0) plan_.anew_from = plan_.options.size() - 1;
        }
        now.assign(plan_.slots(plan_.options.size() - 1));
        return chosen > 0 && !trail.late;
    }

    // One more state: a plan from scratch, its ranks relabelled.
    void add_relabelled(const Layout &now, const Layout &home_layout, Trail &trail) {
        if (anew_.empty()) anew_ = scratch(fresh_rules()).slots();
        Layout fresh(cluster_, input_.load);
        fresh.assign(anew_);
        if (!pairs_allow(fresh)) return;
        for (int slot = 0; slot < cluster_.slots(); ++slot) {
            if (now.slots()[size_t(slot)] != anew_[size_t(slot)]) trail.log.emplace_back(slot, anew_[size_t(slot)]);
        }
        Home home(&home_layout);
        const Home &from = plan_.options.empty() ? origin_ : home;
        trail.options.push_back({trail.log.size(), fresh.peak(), count_cost(fresh, from), count_crossing(fresh, origin_)});
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

    double mean_time() const {
        double load = std::accumulate(input_.load.begin(), input_.load.end(), 0.0);
        double speed = 0;
        for (double slowness : cluster_.slowness) speed += 1 / slowness;
        return load / speed;
    }

    const LayerInput &input_;
    const Cluster &cluster_;
    Layout before_;
    Home origin_;
    Rules rules_;
    double bound_ = 0;
    std::vector<double> goals_, fine_goals_;
    std::vector<int32_t> anew_;
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
