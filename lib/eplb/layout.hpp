// One layer's problem, and a layout of its experts with the times that follow from it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace moelink::eplb {

inline constexpr int32_t empty_slot = -1;   // may be filled
inline constexpr int32_t closed_slot = -2;  // pinned empty

// What is the same for every layer. Ranks are the active ones, numbered anew.
struct Cluster {
    int experts = 0;
    int ranks = 0;
    int capacity = 0;               // slots of a rank
    int steps = 1;
    int zones = 1;                  // nodes of a hierarchical plan, else 1
    int groups = 1;
    std::vector<int> rank_id;       // [ranks] the caller's number
    std::vector<int> zone;          // [ranks] no expert leaves its zone
    std::vector<double> slowness;   // [ranks] 1 / speed
    std::vector<double> distance;   // [ranks, ranks]; empty: all 1
    int max_pair_copies = 0;        // 0: no cap
    std::chrono::steady_clock::time_point deadline = std::chrono::steady_clock::time_point::max();

    int slots() const { return ranks * capacity; }
    int rank_of(int slot) const { return slot / capacity; }
    bool late() const {
        return deadline != std::chrono::steady_clock::time_point::max() && std::chrono::steady_clock::now() >= deadline;
    }
};

// Where the experts are; never two copies of one on a rank.
class Layout {
public:
    // load [experts, steps], kept by reference.
    Layout(const Cluster &cluster, std::span<const double> load);

    const Cluster &cluster() const { return *cluster_; }
    std::span<const double> load(int expert) const { return load_.subspan(size_t(expert) * steps_, steps_); }
    std::span<const double> load() const { return load_; }
    const std::vector<int32_t> &slots() const { return slots_; }
    int count(int expert) const { return counts_[size_t(expert)]; }
    bool held(int rank, int expert) const { return held_[size_t(rank) * size_t(cluster_->experts) + size_t(expert)] != 0; }
    // Load of one copy, [steps]; and what a rank takes, [steps].
    const double *share(int expert) const { return share_.data() + size_t(expert) * steps_; }
    const double *time(int rank) const { return time_.data() + size_t(rank) * steps_; }

    int experts_at(int rank) const {
        auto first = slots_.begin() + ptrdiff_t(rank) * cluster_->capacity;
        return int(std::count_if(first, first + cluster_->capacity, [](int32_t expert) { return expert >= 0; }));
    }

    // Slots of an expert's copies: for (int slot = first(e); slot >= 0; slot = next(slot)).
    int first(int expert) const { return first_[size_t(expert)]; }
    int next(int slot) const { return next_[size_t(slot)]; }

    // Changes a slot; shares and times are stale until refresh.
    void set(int slot, int32_t expert);
    void assign(const std::vector<int32_t> &slots);
    void refresh();

    // The slowest rank's time, summed over steps.
    double peak() const;

private:
    const Cluster *cluster_;
    std::span<const double> load_;
    size_t steps_;
    std::vector<int32_t> slots_;
    std::vector<int32_t> counts_;
    std::vector<uint8_t> held_;
    std::vector<int32_t> first_, next_;
    std::vector<double> share_, time_;
    std::vector<int32_t> stale_experts_;
    std::vector<uint8_t> stale_ranks_;
};

}  // namespace moelink::eplb
