/* Times the planner and counts what it moves, beside the published algorithm with slots preserved.
 *
 *   perf_eplb [SEEDS [ROUNDS]]      default: 20 seeds, 15 rounds
 *
 * First 58 layers of 256 experts on 288 slots of 32 ranks: from scratch, and after loads drifted by exp(N(0, 0.1)), the worst of all
 * seeds. Then the changes of topic in tests/data/expert_load.csv on 448 slots. Times are the least and the median of all rounds:
 * their distance is the machine's noise. Fails only when a call does. */
#include <moelink/eplb.h>

#include "eplb_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { layers = 58, experts = 256, slots = 288, ranks = 32, most_rounds = 10000 };

static double loads[layers * experts], drifted[layers * experts];
static int32_t before[layers * slots], planned[layers * slots], published[layers * slots];

struct times {
    double ms[most_rounds];
    int count;
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e3 * (double)time.tv_sec + 1e-6 * (double)time.tv_nsec;
}

static int smaller_first(const void *a, const void *b) {
    double left = *(const double *)a;
    double right = *(const double *)b;
    return left < right ? -1 : left > right;
}

static void check(moelink_status status) {
    if (status == MOELINK_OK) return;
    fprintf(stderr, "%s\n", moelink_last_error());
    exit(1);
}

static void add(struct times *times, double start) {
    if (times->count < most_rounds) times->ms[times->count++] = now() - start;
}

static void print(const char *what, struct times *times) {
    qsort(times->ms, (size_t)times->count, sizeof times->ms[0], smaller_first);
    printf("%-44s least %8.3f ms, median %8.3f ms of %d\n", what, times->ms[0], times->ms[times->count / 2], times->count);
}

static moelink_eplb_plan_result plan(const moelink_eplb_shape *shape, const double *load, const int32_t *previous, int32_t *map,
                                     int rounds, struct times *times) {
    moelink_eplb_plan_params params = MOELINK_EPLB_PLAN_PARAMS_INIT;
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    params.load = load;
    params.previous = previous;
    for (int i = 0; i < rounds; ++i) {
        double start = now();
        check(moelink_eplb_plan(shape, &params, map, &result));
        add(times, start);
    }
    return result;
}

static moelink_eplb_plan_result publish(const moelink_eplb_shape *shape, const double *load, const int32_t *previous, int32_t *map,
                                        int rounds, struct times *times) {
    for (int i = 0; i < rounds; ++i) {
        double start = now();
        check(moelink_eplb_rebalance(shape, load, map, NULL, 0, NULL));
        if (previous != NULL) check(moelink_eplb_preserve(shape, previous, map, map));
        add(times, start);
    }
    moelink_eplb_plan_params params = MOELINK_EPLB_PLAN_PARAMS_INIT;
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    params.load = load;
    params.previous = previous;
    check(moelink_eplb_rate(shape, &params, map, &result));
    return result;
}

static void drift(double sigma, int seeds, int rounds) {
    static struct times scratch, reference, incremental;
    scratch.count = reference.count = incremental.count = 0;
    double least_lead = 1, most_copies = 0, least_balance = 2, balance = 2;
    moelink_eplb_shape shape = eplb_shape(layers, experts, slots, ranks, 1, 1);
    for (int seed = 0; seed < seeds; ++seed) {
        uint64_t state = 1000 + (uint64_t)seed;
        random_loads(&state, sigma, 0, loads, layers * experts);
        drift_loads(&state, 0.1, loads, drifted, layers * experts);
        moelink_eplb_plan_result ours = plan(&shape, loads, NULL, before, rounds, &scratch);
        moelink_eplb_plan_result theirs = publish(&shape, loads, NULL, published, rounds, &reference);
        double lead = ours.balance_after - theirs.balance_after;
        if (lead < least_lead) least_lead = lead;
        ours = plan(&shape, drifted, before, planned, (rounds + 4) / 5, &incremental);
        theirs = publish(&shape, drifted, before, published, 1, &reference);
        double copies = (double)ours.copies / (double)theirs.copies;
        if (copies > most_copies) most_copies = copies;
        if (ours.balance_after / theirs.balance_after < least_balance) least_balance = ours.balance_after / theirs.balance_after;
        if (ours.balance_after < balance) balance = ours.balance_after;
    }
    printf("%d layers, %d experts, %d slots, %d ranks, loads exp(N(0, %.1f)), worst of %d seeds\n", layers, experts, slots, ranks,
           sigma, seeds);
    printf("  from scratch: balance %+.4f beside the published algorithm's\n", least_lead);
    printf("  after a drift of 0.1: balance %.4f, %.4f of the published algorithm's, with %.1f %% of its copies\n", balance,
           least_balance, 100 * most_copies);
    print("  published algorithm", &reference);
    print("  planner from scratch", &scratch);
    print("  planner after the drift", &incremental);
}

static void topics(int ranks_now, int rounds) {
    char from[32], to[32];
    moelink_eplb_shape shape = eplb_shape(1, 384, 448, ranks_now, 1, 1);
    static struct times ours_times, theirs_times, none;
    if (!real_loads(0, loads, from)) return;
    none.count = 0;
    plan(&shape, loads, NULL, before, 1, &none);
    printf("384 experts, 448 slots, %d ranks: planner / published algorithm with slots preserved\n", ranks_now);
    for (int topic = 1; real_loads(topic, loads, to); ++topic) {
        ours_times.count = theirs_times.count = 0;
        moelink_eplb_plan_result ours = plan(&shape, loads, before, planned, rounds, &ours_times);
        moelink_eplb_plan_result theirs = publish(&shape, loads, before, published, rounds, &theirs_times);
        qsort(ours_times.ms, (size_t)rounds, sizeof(double), smaller_first);
        qsort(theirs_times.ms, (size_t)rounds, sizeof(double), smaller_first);
        printf("  %-9s -> %-9s balance %.4f -> %.4f / %.4f (at most %.4f), copies %3d / %3d, %7.3f / %.3f ms\n", from, to,
               ours.balance_before, ours.balance_after, theirs.balance_after, ours.balance_bound, (int)ours.copies, (int)theirs.copies,
               ours_times.ms[0], theirs_times.ms[0]);
        memcpy(before, planned, sizeof before);
        memcpy(from, to, sizeof from);
    }
}

int main(int count, char **words) {
    int seeds = count > 1 ? atoi(words[1]) : 20;
    int rounds = count > 2 ? atoi(words[2]) : 15;
    if (seeds < 1 || seeds > 1000 || rounds < 1 || rounds > 1000) {
        fprintf(stderr, "usage: %s [SEEDS (1 .. 1000) [ROUNDS (1 .. 1000)]]\n", words[0]);
        return 2;
    }
    drift(0.5, seeds, rounds);
    drift(1.0, seeds, rounds);
    topics(8, rounds);
    topics(32, rounds);
    topics(64, rounds);
    return 0;
}
