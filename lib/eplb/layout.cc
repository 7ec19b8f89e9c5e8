#include "eplb/layout.hpp"

#include <algorithm>

namespace moelink::eplb {

Layout::Layout(const Cluster &cluster, std::span<const double> load)
    : cluster_(&cluster),
      load_(load),
      steps_(size_t(cluster.steps)),
      slots_(size_t(cluster.slots()), empty_slot),
      counts_(size_t(cluster.experts), 0),
      held_(size_t(cluster.ranks) * size_t(cluster.experts), 0),
      first_(size_t(cluster.experts), -1),
      next_(size_t(cluster.slots()), -1),
      share_(load.begin(), load.end()),
      time_(size_t(cluster.ranks) * steps_, 0.0) {}

void Layout::set(int slot, int32_t expert) {
    int32_t old = slots_[size_t(slot)];
    size_t rank = size_t(cluster_->rank_of(slot));
    if (old >= 0) {
        --counts_[size_t(old)];
        held_[rank * size_t(cluster_->experts) + size_t(old)] = 0;
        int32_t *link = &first_[size_t(old)];
        while (*link != slot) link = &next_[size_t(*link)];
        *link = next_[size_t(slot)];
    }
    slots_[size_t(slot)] = expert;
    if (expert >= 0) {
        ++counts_[size_t(expert)];
        held_[rank * size_t(cluster_->experts) + size_t(expert)] = 1;
        next_[size_t(slot)] = first_[size_t(expert)];
        first_[size_t(expert)] = slot;
    }
}

void Layout::assign(const std::vector<int32_t> &slots) {
    for (int slot = 0; slot < cluster_->slots(); ++slot) set(slot, empty_slot);
    for (int slot = 0; slot < cluster_->slots(); ++slot) set(slot, slots[size_t(slot)]);
    refresh();
}

// All anew each time, so that no rounding adds up over many moves.
void Layout::refresh() {
    for (size_t expert = 0; expert < counts_.size(); ++expert) {
        double copies = std::max(1, counts_[expert]);
        for (size_t step = 0; step < steps_; ++step) share_[expert * steps_ + step] = load_[expert * steps_ + step] / copies;
    }
    for (int rank = 0; rank < cluster_->ranks; ++rank) {
        double *time = time_.data() + size_t(rank) * steps_;
        std::fill(time, time + steps_, 0.0);
        for (int i = 0; i < cluster_->capacity; ++i) {
            int32_t expert = slots_[size_t(rank * cluster_->capacity + i)];
            if (expert < 0) continue;
            for (size_t step = 0; step < steps_; ++step) time[step] += share_[size_t(expert) * steps_ + step];
        }
        for (size_t step = 0; step < steps_; ++step) time[step] *= cluster_->slowness[size_t(rank)];
    }
}

double Layout::peak() const {
    double sum = 0;
    for (size_t step = 0; step < steps_; ++step) {
        double most = 0;
        for (int rank = 0; rank < cluster_->ranks; ++rank) most = std::max(most, time(rank)[step]);
        sum += most;
    }
    return sum;
}

}  // namespace moelink::eplb
