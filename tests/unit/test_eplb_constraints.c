/* What callers may ask of a plan: caps, pins, ranks that are gone, speeds, distances, several steps, thresholds, a deadline. */
#include <moelink/eplb.h>

#include "eplb_case.h"
#include "eplb_plan.h"
#include "values.h"

#include <stdlib.h>
#include <string.h>

enum { layers = 6, experts = 64, slots = 96, ranks = 12, rank_slots = slots / ranks, all = layers * slots };
static double loads[8 * layers * experts], drifted[8 * layers * experts];
static int32_t map_a[EPLB_MOST_SLOTS], map_b[EPLB_MOST_SLOTS], map_c[EPLB_MOST_SLOTS];

/* A plan for some loads in map_a, and other loads. */
static moelink_eplb_shape start(uint64_t seed, double sigma) {
    moelink_eplb_shape shape = eplb_shape(layers, experts, slots, ranks, 1, 1);
    random_loads(&seed, 1.0, 0, loads, layers * experts);
    drift_loads(&seed, sigma, loads, drifted, layers * experts);
    moelink_eplb_plan_params params = plan_params(loads, NULL);
    plan_map(&shape, &params, map_a);
    return shape;
}

static int largest_pair(const moelink_eplb_shape *shape, int layer) {
    int most = 0;
    for (int to = 0; to < shape->ranks; ++to) {
        int from[ranks] = {0};
        for (int s = to * rank_slots; s < (to + 1) * rank_slots; ++s) {
            int32_t source = plan_sources[layer * slots + s];
            if (source >= 0 && source / rank_slots != to && ++from[source / rank_slots] > most) most = from[source / rank_slots];
        }
    }
    return most;
}

static void test_caps(void **state) {
    (void)state;
    moelink_eplb_shape shape = start(21, 0.5);
    moelink_eplb_plan_params params = plan_params(drifted, map_a);
    moelink_eplb_plan_result open = plan_map(&shape, &params, map_b);
    assert_true(open.copies > 30);
    double time = open.time_before;
    for (int64_t cap = 1; cap <= open.copies; cap += 7) {
        params = plan_params(drifted, map_a);
        params.max_copies = cap;
        moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
        expect_valid_map(&shape, map_b, NULL);
        expect_figures(&shape, &params, map_b, &result);
        assert_true(result.copies <= cap && result.copies * 2 >= cap - 1); /* the budget is used, too */
        assert_true(result.time_after <= time);
        time = result.time_after * (1 + 0.01);
        /* Bytes are copies. */
        params.max_copies = 0;
        params.expert_bytes = 1000;
        params.max_bytes = (uint64_t)cap * 1000 + 999;
        result = plan_map(&shape, &params, map_c);
        assert_memory_equal(map_b, map_c, 4 * all);
        assert_int_equal(result.bytes, result.copies * 1000);
    }
    int tight = 0;
    for (int cap = 1; cap <= 3; ++cap) {
        params = plan_params(drifted, map_a);
        params.max_pair_copies = cap;
        moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
        expect_valid_map(&shape, map_b, NULL);
        expect_figures(&shape, &params, map_b, &result);
        int most = 0;
        for (int layer = 0; layer < layers; ++layer) {
            int pair = largest_pair(&shape, layer);
            if (pair > most) most = pair;
        }
        assert_int_equal(most, result.largest_pair);
        assert_true(most <= cap);
        if (most == cap) ++tight;
        assert_true(result.balance_after > result.balance_before);
    }
    assert_true(tight >= 1);
}

static void test_pins(void **state) {
    (void)state;
    moelink_eplb_shape shape = start(22, 0.7);
    uint8_t pinned[all];
    uint64_t seed = 5;
    for (int i = 0; i < all; ++i) pinned[i] = (uint8_t)random_chance(&seed, 40);
    for (int i = 0; i < all; i += 13) {
        /* Empty slots may be pinned, as long as their expert is elsewhere. */
        int copies = 0;
        for (int s = i / slots * slots; s < (i / slots + 1) * slots; ++s) copies += map_a[s] == map_a[i];
        if (copies > 1) map_a[i] = -1, pinned[i] = 1;
    }
    for (int scratch = 0; scratch < 2; ++scratch) {
        moelink_eplb_plan_params params = plan_params(drifted, map_a);
        params.pinned = pinned;
        params.flags = scratch ? MOELINK_EPLB_PLAN_F_FROM_SCRATCH : 0;
        moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
        expect_valid_map(&shape, map_b, NULL);
        expect_figures(&shape, &params, map_b, &result);
        assert_true(result.copies > 0);
        for (int i = 0; i < all; ++i) {
            if (pinned[i]) assert_int_equal(map_b[i], map_a[i]);
        }
    }
    /* Of two copies on a rank the pinned one stays, wherever it stands. */
    memcpy(map_c, map_a, 4 * all);
    memset(pinned, 0, sizeof pinned);
    for (int layer = 0; layer < layers; ++layer) {
        int32_t *first = map_c + layer * slots + layer * rank_slots;
        first[3] = first[6] = first[1];
        pinned[first - map_c + 3 * (layer % 3)] = 1;
    }
    for (int scratch = 0; scratch < 2; ++scratch) {
        moelink_eplb_plan_params params = plan_params(drifted, map_c);
        params.pinned = pinned;
        params.flags = scratch ? MOELINK_EPLB_PLAN_F_FROM_SCRATCH : 0;
        plan_map(&shape, &params, map_b);
        expect_valid_map(&shape, map_b, NULL);
        for (int i = 0; i < all; ++i) {
            if (pinned[i]) assert_int_equal(map_b[i], map_c[i]);
        }
    }
    /* All of it. */
    memset(pinned, 1, sizeof pinned);
    moelink_eplb_plan_params params = plan_params(drifted, map_a);
    params.pinned = pinned;
    plan_map(&shape, &params, map_b);
    assert_memory_equal(map_a, map_b, 4 * all);
}

static void test_ranks_that_are_gone(void **state) {
    (void)state;
    moelink_eplb_shape shape = start(23, 0.1);
    uint8_t active[ranks];
    memset(active, 1, sizeof active);
    active[3] = active[7] = 0;
    moelink_eplb_plan_params params = plan_params(drifted, map_a);
    params.rank_active = active;
    params.min_gain = 0.99; /* repairs are made all the same */
    moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
    expect_valid_map(&shape, map_b, active);
    expect_figures(&shape, &params, map_b, &result);
    assert_true(result.flags & MOELINK_EPLB_RESULT_REPAIRED);
    assert_true(result.flags & MOELINK_EPLB_RESULT_SKIPPED);
    int64_t lost = 0;
    for (int layer = 0; layer < layers; ++layer) {
        for (int e = 0; e < experts; ++e) {
            int there = 0, before = 0;
            for (int s = 0; s < slots; ++s) {
                there += map_b[layer * slots + s] == e;
                before += map_a[layer * slots + s] == e && active[s / rank_slots];
            }
            if (before == 0) lost += there;
        }
    }
    assert_true(lost > 0);
    assert_int_equal(result.lost, lost);
    params.min_gain = 0;
    moelink_eplb_plan_result better = plan_map(&shape, &params, map_b);
    expect_valid_map(&shape, map_b, active);
    expect_figures(&shape, &params, map_b, &better);
    assert_true(better.time_after < result.time_after);
    assert_true(better.balance_after > 0.95);
    /* They come back empty, and are filled. */
    params = plan_params(drifted, map_b);
    result = plan_map(&shape, &params, map_c);
    expect_valid_map(&shape, map_c, NULL);
    expect_figures(&shape, &params, map_c, &result);
    assert_true(result.time_after < better.time_after);
    assert_true(result.balance_after > 0.95);
    /* From scratch, and with no map at all. */
    params = plan_params(drifted, NULL);
    params.rank_active = active;
    result = plan_map(&shape, &params, map_c);
    expect_valid_map(&shape, map_c, active);
    expect_figures(&shape, &params, map_c, &result);
    assert_true(result.balance_after > 0.95);
    /* A map with nothing in it. */
    for (int i = 0; i < all; ++i) map_a[i] = -1;
    params = plan_params(drifted, map_a);
    result = plan_map(&shape, &params, map_b);
    expect_valid_map(&shape, map_b, NULL);
    expect_figures(&shape, &params, map_b, &result);
    assert_int_equal(result.copies, 0);
    assert_true(result.lost >= layers * experts);
    /* Two copies of an expert on a rank are one too many. */
    for (int i = 0; i < all; ++i) map_a[i] = i % slots < experts ? i % slots : i % slots / rank_slots * rank_slots % experts;
    for (int layer = 0; layer < layers; ++layer) map_a[layer * slots + experts] = map_a[layer * slots + experts + 1] = 5;
    params = plan_params(drifted, map_a);
    result = plan_map(&shape, &params, map_b);
    expect_valid_map(&shape, map_b, NULL);
    assert_true(result.flags & MOELINK_EPLB_RESULT_REPAIRED);
}

static void test_speeds(void **state) {
    (void)state;
    moelink_eplb_shape shape = start(24, 0.3);
    double speed[ranks];
    for (int r = 0; r < ranks; ++r) speed[r] = r < 4 ? 2.0 : r < 8 ? 1.0 : 0.5;
    moelink_eplb_plan_params params = plan_params(loads, map_a);
    params.rank_speed = speed;
    moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
    expect_valid_map(&shape, map_b, NULL);
    expect_figures(&shape, &params, map_b, &result);
    assert_true(result.balance_before < 0.6 && result.balance_after > 0.9);
    params.previous = NULL;
    result = plan_map(&shape, &params, map_b);
    expect_figures(&shape, &params, map_b, &result);
    assert_true(result.balance_after > 0.9);
}

static void test_steps(void **state) {
    (void)state;
    /* Two kinds of traffic: a map for their sum is poor for each. */
    enum { steps = 4 };
    uint64_t seed = 25;
    moelink_eplb_shape shape = eplb_shape(layers, experts, slots, ranks, 1, 1);
    random_loads(&seed, 1.2, 0, loads, steps * layers * experts);
    double sum[layers * experts] = {0};
    for (int i = 0; i < steps * layers * experts; ++i) sum[i % (layers * experts)] += loads[i];
    moelink_eplb_plan_params params = plan_params(sum, NULL);
    plan_map(&shape, &params, map_a);
    params = plan_params(loads, map_a);
    params.steps = steps;
    moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
    expect_valid_map(&shape, map_b, NULL);
    expect_figures(&shape, &params, map_b, &result);
    assert_true(result.gain > 0.05);
    params.previous = NULL;
    moelink_eplb_plan_result scratch = plan_map(&shape, &params, map_c);
    expect_valid_map(&shape, map_c, NULL);
    expect_figures(&shape, &params, map_c, &scratch);
    assert_true(scratch.time_after < result.time_before);
}

static void test_thresholds(void **state) {
    (void)state;
    moelink_eplb_shape shape = start(26, 0.3);
    moelink_eplb_plan_params params = plan_params(drifted, map_a);
    moelink_eplb_plan_result taken = plan_map(&shape, &params, map_b);
    assert_true(taken.gain > 0.01 && taken.copies > 0 && !(taken.flags & MOELINK_EPLB_RESULT_SKIPPED));
    /* Just above and just below what the plan brings. */
    params.min_gain = taken.gain * 1.001;
    moelink_eplb_plan_result skipped = plan_map(&shape, &params, map_c);
    assert_memory_equal(map_a, map_c, 4 * all);
    assert_true(skipped.flags & MOELINK_EPLB_RESULT_SKIPPED);
    assert_true(plan_layers[2].flags & MOELINK_EPLB_RESULT_SKIPPED);
    assert_int_equal(skipped.copies, 0);
    assert_true(skipped.time_after == skipped.time_before && skipped.gain == taken.gain);
    params.min_gain = taken.gain * 0.999;
    plan_map(&shape, &params, map_c);
    assert_memory_equal(map_b, map_c, 4 * all);
    /* The same for a plan from scratch, which a budget may refuse, too. */
    params.flags = MOELINK_EPLB_PLAN_F_FROM_SCRATCH;
    params.min_gain = 0.9;
    skipped = plan_map(&shape, &params, map_c);
    assert_memory_equal(map_a, map_c, 4 * all);
    assert_int_equal(skipped.flags, MOELINK_EPLB_RESULT_SKIPPED);
    params.min_gain = 0;
    params.max_copies = 1;
    skipped = plan_map(&shape, &params, map_c);
    assert_memory_equal(map_a, map_c, 4 * all);
    assert_int_equal(skipped.flags, 0);
    params.max_copies = 0;
    params.flags = 0;
    /* Dearer moves: fewer of them. */
    int64_t copies = taken.copies;
    for (double cost = 0.002; cost < 2; cost *= 4) {
        params.move_cost = cost;
        moelink_eplb_plan_result result = plan_map(&shape, &params, map_c);
        assert_true(result.copies <= copies);
        copies = result.copies;
    }
    assert_int_equal(copies, 0);
    /* A lower standard: fewer moves. */
    params.move_cost = 0;
    params.target = 1.1;
    moelink_eplb_plan_result lax = plan_map(&shape, &params, map_c);
    assert_true(lax.copies < taken.copies);
    for (int layer = 0; layer < layers; ++layer) assert_true(plan_layers[layer].time_after <= 1.1 * plan_layers[layer].bound);
}

static void test_distances(void **state) {
    (void)state;
    moelink_eplb_shape shape = start(27, 0.3);
    shape.nodes = 3; /* of four ranks; groups 1, so the plan stays global */
    moelink_eplb_plan_params params = plan_params(drifted, map_a);
    params.node_distance = 1;
    moelink_eplb_plan_result flat = plan_map(&shape, &params, map_b);
    expect_figures(&shape, &params, map_b, &flat);
    assert_true(flat.cost == (double)flat.copies);
    params.node_distance = 20;
    moelink_eplb_plan_result near = plan_map(&shape, &params, map_c);
    expect_figures(&shape, &params, map_c, &near);
    assert_true(near.node_copies < flat.node_copies);
    assert_true(near.cost == (double)(near.copies + 19 * near.node_copies));
    /* The same distances as a matrix. */
    double distance[ranks * ranks];
    for (int from = 0; from < ranks; ++from) {
        for (int to = 0; to < ranks; ++to) distance[from * ranks + to] = from / 4 == to / 4 ? 1 : 20;
    }
    params.node_distance = 1;
    params.distance = distance;
    plan_map(&shape, &params, map_b);
    assert_memory_equal(map_b, map_c, 4 * all);
}

static void test_deadline(void **state) {
    (void)state;
    moelink_eplb_shape shape = start(28, 0.5);
    moelink_eplb_plan_params params = plan_params(drifted, map_a);
    params.deadline_ns = 1;
    moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
    assert_true(result.flags & MOELINK_EPLB_RESULT_DEADLINE);
    assert_memory_equal(map_a, map_b, 4 * all);
    params.previous = NULL; /* what must be is done */
    result = plan_map(&shape, &params, map_b);
    expect_valid_map(&shape, map_b, NULL);
    params.previous = map_a;
    params.deadline_ns = UINT64_MAX;
    result = plan_map(&shape, &params, map_b);
    assert_true(result.copies > 0 && !(result.flags & MOELINK_EPLB_RESULT_DEADLINE));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_caps),       cmocka_unit_test(test_pins),  cmocka_unit_test(test_ranks_that_are_gone),
        cmocka_unit_test(test_speeds),     cmocka_unit_test(test_steps), cmocka_unit_test(test_thresholds),
        cmocka_unit_test(test_distances),  cmocka_unit_test(test_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
