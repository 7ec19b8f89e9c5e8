/* The planner: rules that every plan keeps, what it promises, and how it compares with the best there is. */
#include <moelink/eplb.h>

#include "eplb_case.h"
#include "eplb_plan.h"
#include "values.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { most_loads = 64 * 1024 };
static double loads[most_loads], drifted[most_loads];
static int32_t map_a[EPLB_MOST_SLOTS], map_b[EPLB_MOST_SLOTS], map_c[EPLB_MOST_SLOTS];

/* layers, experts, slots, ranks, nodes, groups */
static const int32_t shapes[][6] = {
    {4, 64, 72, 8, 1, 1},    {4, 64, 80, 8, 2, 8},    {2, 256, 288, 32, 1, 1}, {2, 256, 288, 32, 4, 8}, {3, 16, 16, 4, 1, 1},
    {3, 5, 9, 1, 1, 1},      {3, 8, 64, 4, 1, 1},     {3, 12, 48, 4, 2, 2},    {1, 256, 320, 320, 1, 1}, {1, 256, 640, 320, 5, 16},
    {3, 1, 4, 2, 1, 1},      {2, 64, 144, 48, 1, 1},  {2, 32, 60, 12, 3, 4},
};
enum { shape_count = sizeof shapes / sizeof shapes[0] };

static moelink_eplb_shape shape_of(size_t i) {
    return eplb_shape(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][4], shapes[i][5]);
}

static void make_loads(int kind, uint64_t *seed, const moelink_eplb_shape *shape, double *load) {
    int64_t count = (int64_t)shape->layers * shape->experts;
    random_loads(seed, kind == 1 ? 2.0 : 0.7, 0, load, count);
    for (int64_t i = 0; i < count; ++i) {
        if (kind == 2) load[i] = 0;
        if (kind == 3) load[i] = 5;
        if (kind == 4) load[i] = i % shape->experts == 3 % shape->experts ? 1e6 : 0;
        if (kind == 5 && random_chance(seed, 60)) load[i] = 0;
    }
}

/* A group's experts have all copies in one node, as many groups in each. */
static void expect_hierarchy(const moelink_eplb_shape *shape, const int32_t *map) {
    int size = shape->experts / shape->groups, node_slots = shape->slots / shape->nodes;
    for (int layer = 0; layer < shape->layers; ++layer) {
        int node_of[64], groups_in[64] = {0};
        for (int g = 0; g < shape->groups; ++g) node_of[g] = -1;
        for (int s = 0; s < shape->slots; ++s) {
            int32_t expert = map[(int64_t)layer * shape->slots + s];
            if (expert < 0) continue;
            int *node = &node_of[expert / size];
            if (*node < 0) ++groups_in[s / node_slots];
            if (*node >= 0) assert_int_equal(*node, s / node_slots);
            *node = s / node_slots;
        }
        for (int n = 0; n < shape->nodes; ++n) assert_int_equal(groups_in[n], shape->groups / shape->nodes);
    }
}

static void test_rules_and_figures(void **state) {
    (void)state;
    uint64_t seed = 11;
    for (size_t i = 0; i < shape_count; ++i) {
        moelink_eplb_shape shape = shape_of(i);
        int hierarchical = shape.groups % shape.nodes == 0 && shape.nodes > 1;
        for (int kind = 0; kind < 6; ++kind) {
            make_loads(kind, &seed, &shape, loads);
            moelink_eplb_plan_params params = plan_params(loads, NULL);
            params.expert_bytes = 1000;
            moelink_eplb_plan_result result = plan_map(&shape, &params, map_a);
            expect_valid_map(&shape, map_a, NULL);
            expect_figures(&shape, &params, map_a, &result);
            assert_int_equal(result.flags, MOELINK_EPLB_RESULT_ANEW);
            assert_int_equal(result.changed_layers, shape.layers);
            if (hierarchical) expect_hierarchy(&shape, map_a);

            /* Other loads: never slower than before, and the same again moves nothing. */
            make_loads((kind + 1) % 6, &seed, &shape, loads);
            params.previous = map_a;
            result = plan_map(&shape, &params, map_b);
            expect_valid_map(&shape, map_b, NULL);
            expect_figures(&shape, &params, map_b, &result);
            if (hierarchical) expect_hierarchy(&shape, map_b);
            for (int layer = 0; layer < shape.layers; ++layer) {
                assert_true(plan_layers[layer].time_after <= plan_layers[layer].time_before * (1 + 1e-12));
            }
            params.previous = map_b;
            result = plan_map(&shape, &params, map_c);
            assert_memory_equal(map_b, map_c, 4u * (size_t)shape.layers * (size_t)shape.slots);
            assert_int_equal(result.copies + result.local + result.lost + result.changed_layers, 0);

            /* From scratch on demand; ranks keep as much as they can. */
            params.flags = MOELINK_EPLB_PLAN_F_FROM_SCRATCH;
            result = plan_map(&shape, &params, map_c);
            expect_valid_map(&shape, map_c, NULL);
            expect_figures(&shape, &params, map_c, &result);
            assert_true(result.flags & MOELINK_EPLB_RESULT_ANEW);
        }
    }
}

/* In place, without a result, on any number of threads: the same plan. */
static void test_threads_do_not_matter(void **state) {
    (void)state;
    uint64_t seed = 12;
    moelink_eplb_shape shape = eplb_shape(24, 64, 80, 16, 1, 1);
    random_loads(&seed, 1.0, 0, loads, 24 * 64);
    drift_loads(&seed, 0.3, loads, drifted, 24 * 64);
    shape.threads = 1;
    moelink_eplb_plan_params params = plan_params(loads, NULL);
    plan_map(&shape, &params, map_a);
    params = plan_params(drifted, map_a);
    params.max_copies = 100;
    plan_map(&shape, &params, map_b);
    for (int threads = 0; threads < 8; ++threads) {
        shape.threads = threads;
        memcpy(map_c, map_a, sizeof map_c);
        params.previous = map_c;
        assert_int_equal(moelink_eplb_plan(&shape, &params, map_c, NULL), MOELINK_OK);
        assert_memory_equal(map_b, map_c, 4 * 24 * 80);
    }
}

/* The acceptance figures, on fewer seeds: loads drift by exp(N(0, 0.1)); a plan from scratch with slots preserved is the measure. */
static void test_moves_little(void **state) {
    (void)state;
    for (uint64_t round = 0; round < 3; ++round) {
        uint64_t seed = 100 + round;
        moelink_eplb_shape shape = eplb_shape(16, 256, 288, 32, 1, 1);
        random_loads(&seed, round == 2 ? 1.0 : 0.5, 0, loads, 16 * 256);
        drift_loads(&seed, 0.1, loads, drifted, 16 * 256);
        moelink_eplb_plan_params params = plan_params(loads, NULL);
        moelink_eplb_plan_result scratch = plan_map(&shape, &params, map_a);
        moelink_eplb_plan_result reference = MOELINK_EPLB_PLAN_RESULT_INIT;
        assert_int_equal(moelink_eplb_rebalance(&shape, loads, map_b, NULL, 0, NULL), MOELINK_OK);
        assert_int_equal(moelink_eplb_rate(&shape, &params, map_b, &reference), MOELINK_OK);
        assert_true(scratch.balance_after >= reference.balance_after);

        params = plan_params(drifted, map_a);
        moelink_eplb_plan_result little = plan_map(&shape, &params, map_c);
        assert_int_equal(moelink_eplb_rebalance(&shape, drifted, map_b, NULL, 0, NULL), MOELINK_OK);
        assert_int_equal(moelink_eplb_preserve(&shape, map_a, map_b, map_b), MOELINK_OK);
        assert_int_equal(moelink_eplb_rate(&shape, &params, map_b, &reference), MOELINK_OK);
        assert_true(little.copies > 0);
        assert_true((double)little.copies <= 0.20 * (double)reference.copies);
        assert_true(little.balance_after >= 0.99 * reference.balance_after);
    }
}

/* One slot a rank: names are all that a plan from scratch has to get right. */
static void test_ranks_are_relabelled(void **state) {
    (void)state;
    uint64_t seed = 14;
    moelink_eplb_shape shape = eplb_shape(2, 256, 320, 320, 1, 1);
    random_loads(&seed, 0.5, 0, loads, 2 * 256);
    drift_loads(&seed, 0.1, loads, drifted, 2 * 256);
    moelink_eplb_plan_params params = plan_params(loads, NULL);
    plan_map(&shape, &params, map_a);
    params = plan_params(drifted, map_a);
    params.flags = MOELINK_EPLB_PLAN_F_FROM_SCRATCH;
    moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
    expect_figures(&shape, &params, map_b, &result);
    assert_true(result.copies > 0 && result.copies < 2 * 320 / 10);
}

static void test_real_topics(void **state) {
    (void)state;
    static const int32_t ranks[] = {8, 32, 64};
    for (int i = 0; i < 3; ++i) {
        moelink_eplb_shape shape = eplb_shape(1, 384, 448, ranks[i], 1, 1);
        assert_true(real_loads(0, loads, NULL));
        moelink_eplb_plan_params params = plan_params(loads, NULL);
        plan_map(&shape, &params, map_a);
        for (int topic = 1; topic < 6; ++topic) {
            assert_true(real_loads(topic, loads, NULL));
            params = plan_params(loads, map_a);
            moelink_eplb_plan_result result = plan_map(&shape, &params, map_b);
            expect_valid_map(&shape, map_b, NULL);
            expect_figures(&shape, &params, map_b, &result);
            assert_true(result.balance_after >= 0.98);
            moelink_eplb_plan_result reference = MOELINK_EPLB_PLAN_RESULT_INIT;
            assert_int_equal(moelink_eplb_rebalance(&shape, loads, map_c, NULL, 0, NULL), MOELINK_OK);
            assert_int_equal(moelink_eplb_rate(&shape, &params, map_c, &reference), MOELINK_OK);
            assert_true((double)result.copies <= 0.30 * (double)reference.copies);
            memcpy(map_a, map_b, sizeof map_a);
        }
    }
}

/* ---- tiny cases, all maps tried ---- */

struct brute {
    moelink_eplb_shape shape;
    const double *load;
    int32_t map[12];
    double best;
};

/* Ranks hold sets; slots of a rank ascend, so that each set is tried once. */
static void try_all(struct brute *brute, int slot) {
    int rank_slots = brute->shape.slots / brute->shape.ranks;
    if (slot == brute->shape.slots) {
        double time = slow_time(&brute->shape, brute->load, brute->map, NULL, NULL);
        if (time >= 0 && (brute->best < 0 || time < brute->best)) brute->best = time;
        return;
    }
    int32_t first = slot % rank_slots == 0 ? -1 : brute->map[slot - 1];
    for (int32_t e = first == -1 ? -1 : first + 1; e < brute->shape.experts; ++e) {
        brute->map[slot] = e;
        try_all(brute, slot + 1);
    }
}

static void test_against_all_maps(void **state) {
    (void)state;
    static const int32_t tiny[][3] = {{3, 4, 2}, {4, 6, 2}, {4, 6, 3}, {5, 6, 3}, {3, 6, 3}, {2, 4, 4}, {6, 6, 2}};
    uint64_t seed = 13;
    int optimal = 0, all = 0;
    for (size_t i = 0; i < sizeof tiny / sizeof tiny[0]; ++i) {
        for (int round = 0; round < 12; ++round, ++all) {
            struct brute brute = {eplb_shape(1, tiny[i][0], tiny[i][1], tiny[i][2], 1, 1), loads, {0}, -1};
            random_loads(&seed, 1.0, 1, loads, tiny[i][0]);
            try_all(&brute, 0);
            moelink_eplb_plan_params params = plan_params(loads, NULL);
            params.target = 1;
            params.move_cost = 0;
            moelink_eplb_plan_result result = plan_map(&brute.shape, &params, map_a);
            assert_true(result.bound <= brute.best * (1 + 1e-12));       /* the certificate is true */
            assert_true(result.time_after >= brute.best * (1 - 1e-12));  /* and so is the search */
            assert_true(result.time_after <= brute.best * 1.34);
            if (result.time_after <= brute.best * (1 + 1e-9)) ++optimal;
            /* From any map at all, too. */
            for (int s = 0; s < brute.shape.slots; ++s) map_b[s] = random_range(&seed, -1, brute.shape.experts - 1);
            params.previous = map_b;
            result = plan_map(&brute.shape, &params, map_a);
            expect_valid_map(&brute.shape, map_a, NULL);
            expect_figures(&brute.shape, &params, map_a, &result);
            assert_true(result.bound <= brute.best * (1 + 1e-12) && result.time_after >= brute.best * (1 - 1e-12));
        }
    }
    assert_true(optimal * 2 >= all);
}

/* Once mended, a map is as any other: the same loads move nothing. Here the first search sees other costs than a later one. */
static void test_mended_maps_are_settled(void **state) {
    (void)state;
    static const double load[3 * 14] = {
        6475.3327744341977, 2.3821418024579778e-27, 6820.9584692907492, 312.23474070801052, 7.710515858035663e-28,
        4739.8239800172241, 2.6500674512975902e-28, 2.334972234397873e-27, 1.2969300866657716e-27, 2.2855006266942053e-28,
        6321.7748536071431, 294.05160495167837, 4553.9728234414815, 6.9866417188285497e-27, 312.23474070801052,
        5.6665762138222473e-28, 6.1385287304281721e-28, 2.956481858147545e-27, 1911.7135758847485, 1.6031973837265742e-27,
        5.5622349671378822e-27, 1.2262981534562107e-27, 413.12709387821826, 2.7362410337040804e-28, 2.0709345938545985e-27,
        195.5381065766949, 6.3217748536071434e-27, 5365.5559711219757, 6.016977717621094e-28, 5651.9465050776289,
        5.3152768187871805e-28, 1655.329363157055, 433.44082381650429, 504.59457193355115, 3.9118092861497971e-27,
        3040.4331839891711, 2.8707837984570167e-28, 1000, 3.1899332761161853e-27, 7.437874280201797e-28, 5584.5284642760553,
        1.2214027581601702e-27};
    static const int32_t broken[3 * 24] = {
        5, 3, 7, 8, 6, 11, 8, 5, 5, 9, 6, -1, 12, 13, 9, 12, 5, 2, 12, 0, 4, 3, 2, 4, 0, 6, 7, 11, 13, 0, 13, 6, 10, 0, 10,
        1, 2, 3, 9, -1, 0, 2, 1, 9, 11, 1, 0, 7, 1, 12, 2, 4, 1, 3, 4, -1, 6, 0, 1, 10, 10, 5, 6, 4, 12, 12, -1, 12, -1, 0,
        7, 12};
    static const uint8_t active[4] = {1, 1, 0, 1};
    moelink_eplb_shape shape = eplb_shape(3, 14, 24, 4, 1, 1);
    moelink_eplb_plan_params params = plan_params(load, broken);
    params.rank_active = active;
    params.target = 1;
    params.move_cost = 0;
    assert_true(plan_map(&shape, &params, map_b).flags & MOELINK_EPLB_RESULT_REPAIRED);
    params.previous = map_b;
    plan_map(&shape, &params, map_c);
    assert_memory_equal(map_b, map_c, 4 * 3 * 24);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules_and_figures), cmocka_unit_test(test_threads_do_not_matter), cmocka_unit_test(test_moves_little),
        cmocka_unit_test(test_ranks_are_relabelled), cmocka_unit_test(test_real_topics),       cmocka_unit_test(test_against_all_maps),
        cmocka_unit_test(test_mended_maps_are_settled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
