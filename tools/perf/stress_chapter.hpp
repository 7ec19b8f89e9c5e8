// Pairs of a stress run with one manager of random geometry.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "session.hpp"
#include "stress_round.hpp"

namespace perf {

// A number in [0, count), and one of some values.
int draw(Random &random, int count);
template <class T>
T draw_of(Random &random, std::initializer_list<T> values) {
    return values.begin()[draw(random, static_cast<int>(values.size()))];
}

// What a manager is made for; the same on every rank.
struct StressGeometry {
    int topk, experts, payload_count, most_tokens, slots, sm_budget;
    uint64_t row_bytes[stress_payloads];
    uint64_t combine_bytes;

    StressGeometry(uint64_t seed, int ranks, int most_tokens);
    std::string describe() const;
};

class StressChapter {
public:
    // Collective. `seed` is the chapter's.
    StressChapter(const Session &session, const StressOptions &options, const StressSteps &steps, uint64_t seed);
    ~StressChapter();
    StressChapter(const StressChapter &) = delete;
    StressChapter &operator=(const StressChapter &) = delete;

    const StressGeometry &geometry() const { return geometry_; }
    // The next stretch of pairs, graphs and eager calls, all of them random. Returns the number of pairs. Not synchronised.
    int stretch();
    // Waits for the device. What this rank compared so far in this chapter; a fault of the manager is thrown, unless values are wrong.
    StressResult result();

private:
    struct Buffers;
    struct Graph;

    void make_graphs();
    std::vector<int> play(uint64_t number, int pairs, bool capturing);
    void dispatch(Buffers &slot, Random &common, Random &own, bool capturing);
    void combine(Buffers &slot);
    void choose(Buffers &slot, Random &common, Random &own);
    moelink_rows place(Random &random, void *buffer, uint64_t row_bytes, std::initializer_list<int> offsets) const;

    const Session &session_;
    const StressOptions &options_;
    const StressSteps &steps_;
    uint64_t seed_;
    StressGeometry geometry_;
    std::unique_ptr<moelink_manager, ManagerCloser> manager_;
    int64_t slots_per_rank_ = 0;
    StressResult *result_ = nullptr;  // on the device
    std::vector<Buffers> slots_;
    std::vector<Graph> graphs_;
    uint64_t stretches_ = 0;
};

}  // namespace perf
