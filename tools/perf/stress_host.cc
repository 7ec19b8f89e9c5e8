// The steps of a stress run on the host.
#include <chrono>
#include <thread>

#include "stress_round.hpp"

namespace perf {

namespace {

void lose_time(const StressRound &round, const StressPair &pair, int phase) {
    const uint32_t delay = pair.delay(round.rank, phase, round.most_delay_ns);
    if (delay > 0) {
        std::this_thread::sleep_for(std::chrono::nanoseconds(delay));
    }
}

void load() {}

void prepare(const StressRound &round, moelink_stream) {
    const uint64_t sequence = round.sequence[0];
    const StressWork work(round, sequence, 0, 1);
    round.sequence[1] = sequence;
    *round.tokens = work.pair().tokens(round.rank);
    for (int token = 0; token < *round.tokens; ++token) {
        work.prepare(token);
    }
    lose_time(round, work.pair(), 0);
}

void receive(const StressRound &round, moelink_stream) {
    const StressWork work(round, round.sequence[1], 0, 1);
    for (int source = 0; source < round.ranks; ++source) {
        int rows = 0;
        uint64_t bytes = 0;
        for (int token = 0; token < work.pair().tokens(source); ++token) {
            if (work.pair().goes(source, token, round.rank)) {
                bytes += work.receive(source, token, rows);
                work.expert(source, token, rows);
                ++rows;
            }
        }
        work.count(source, rows);
        for (int slot = rows; slot < round.slots_per_rank; ++slot) {
            bytes += work.empty(source, slot);
        }
        work.add(static_cast<uint64_t>(rows), bytes);
    }
    lose_time(round, work.pair(), 1);
}

void finish(const StressRound &round, moelink_stream) {
    const StressWork work(round, round.sequence[1], 0, 1);
    const int tokens = work.pair().tokens(round.rank);
    uint64_t bytes = 0;
    for (int token = 0; token < tokens; ++token) {
        bytes += work.finish(token);
    }
    work.add(static_cast<uint64_t>(tokens), bytes);
    ++round.sequence[0];
    lose_time(round, work.pair(), 2);
}

}  // namespace

StressSteps stress_steps_host() {
    return {&load, &prepare, &receive, &finish};
}

}  // namespace perf
