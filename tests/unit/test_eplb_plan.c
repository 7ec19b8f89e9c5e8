/* The planner: rules that every plan keeps, what it promises, and how it compares with the best there is. */
#include <moelink/eplb.h>

#include "eplb_case.h"
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

enum { most_loads = 64 * 1024, most_slots = 64 * 1024 };
static double loads[most_loads], drifted[most_loads];
static int32_t map_a[most_slots], map_b[most_slots], map_c[most_slots], sources[most_slots];
static moelink_eplb_layer_result layer_results[256];

static moelink_eplb_plan_params params_of(const double *load, const int32_t *previous) {
    moelink_eplb_plan_params params = MOELINK_EPLB_PLAN_PARAMS_INIT;
    params.load = load;
    params.previous = previous;
    return params;
}

static moelink_eplb_plan_result plan(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params, int32_t *map) {
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    result.layers = layer_results;
    result.sources = sources;
    moelink_status status = moelink_eplb_plan(shape, params, map, &result);
    if (status != MOELINK_OK) fprintf(stderr, "%s\n", moelink_last_error());
    assert_int_equal(status, MOELINK_OK);
    return result;
}

static int close_to(double a, double b) {
    return fabs(a - b) <= 1e-9 * fmax(fabs(a), fabs(b));
}

/* Every figure of the last plan, against the slow answers; params as they were given. */
static void check_figures(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params, const int32_t *map,
                          const moelink_eplb_plan_result *result) {
    int64_t copies = 0;
    double before = 0, after = 0, speed = 0;
    int complete = params->previous != NULL;
    for (int r = 0; r < shape->ranks; ++r) {
        if (params->rank_active == NULL || params->rank_active[r]) speed += params->rank_speed == NULL ? 1 : params->rank_speed[r];
    }
    for (int layer = 0; layer < shape->layers; ++layer) {
        const int32_t *mine = map + (int64_t)layer * shape->slots;
        const int32_t *old = params->previous == NULL ? NULL : params->previous + (int64_t)layer * shape->slots;
        double time = 0, old_time = 0, even = 0;
        int known = old != NULL;
        for (int step = 0; step < params->steps; ++step) {
            const double *load = params->load + ((int64_t)step * shape->layers + layer) * shape->experts;
            double one = slow_time(shape, load, mine, params->rank_speed, params->rank_active);
            assert_true(one >= 0);
            time += one;
            if (known) one = slow_time(shape, load, old, params->rank_speed, params->rank_active);
            if (one < 0) known = 0;
            old_time += one;
            for (int e = 0; e < shape->experts; ++e) even += load[e] / speed;
        }
        const moelink_eplb_layer_result *said = &layer_results[layer];
        assert_true(close_to(said->time_after, time));
        assert_true(close_to(said->time_before, known ? old_time : 0));
        assert_true(close_to(said->balance_after, time == 0 ? 1 : even / time));
        assert_true(said->bound <= time * (1 + 1e-9));
        int64_t here = old == NULL ? 0 : slow_copies(shape, old, mine, params->rank_active);
        assert_int_equal(said->copies, here);
        copies += here;
        after += time;
        before += known ? old_time : 0;
        if (!known) complete = 0;
        for (int s = 0; s < shape->slots; ++s) {
            int32_t from = sources[(int64_t)layer * shape->slots + s];
            if (old == NULL || mine[s] < 0) {
                assert_int_equal(from, -1);
            } else if (from >= 0) {
                assert_int_equal(old[from], mine[s]);
                if (old[s] == mine[s]) assert_int_equal(from, s);
            }
        }
    }
    assert_int_equal(result->copies, copies);
    assert_true(close_to(result->time_after, after));
    assert_true(close_to(result->time_before, complete ? before : 0));
    if (complete && before > 0 && !(result->flags & MOELINK_EPLB_RESULT_SKIPPED)) assert_true(fabs(result->gain - (1 - after / before)) < 1e-9);
    assert_true(result->balance_after <= result->balance_bound * (1 + 1e-9));
    assert_int_equal(result->bytes, (uint64_t)copies * params->expert_bytes);
}

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
            moelink_eplb_plan_params params = params_of(loads, NULL);
            params.expert_bytes = 1000;
            moelink_eplb_plan_result result = plan(&shape, &params, map_a);
            expect_valid_map(&shape, map_a, NULL);
            check_figures(&shape, &params, map_a, &result);
            assert_int_equal(result.flags, MOELINK_EPLB_RESULT_ANEW);
            assert_int_equal(result.changed_layers, shape.layers);
            if (hierarchical) expect_hierarchy(&shape, map_a);

            /* Other loads: never slower than before, and the same again moves nothing. */
            make_loads((kind + 1) % 6, &seed, &shape, loads);
            params.previous = map_a;
            result = plan(&shape, &params, map_b);
            expect_valid_map(&shape, map_b, NULL);
            check_figures(&shape, &params, map_b, &result);
            if (hierarchical) expect_hierarchy(&shape, map_b);
            for (int layer = 0; layer < shape.layers; ++layer) {
                assert_true(layer_results[layer].time_after <= layer_results[layer].time_before * (1 + 1e-12));
            }
            params.previous = map_b;
            result = plan(&shape, &params, map_c);
            assert_memory_equal(map_b, map_c, 4u * (size_t)shape.layers * (size_t)shape.slots);
            assert_int_equal(result.copies + result.local + result.lost + result.changed_layers, 0);

            /* From scratch on demand; ranks keep as much as they can. */
            params.flags = MOELINK_EPLB_PLAN_F_FROM_SCRATCH;
            result = plan(&shape, &params, map_c);
            expect_valid_map(&shape, map_c, NULL);
            check_figures(&shape, &params, map_c, &result);
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
    moelink_eplb_plan_params params = params_of(loads, NULL);
    plan(&shape, &params, map_a);
    params = params_of(drifted, map_a);
    params.max_copies = 100;
    plan(&shape, &params, map_b);
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
        moelink_eplb_plan_params params = params_of(loads, NULL);
        moelink_eplb_plan_result scratch = plan(&shape, &params, map_a);
        moelink_eplb_plan_result reference = MOELINK_EPLB_PLAN_RESULT_INIT;
        assert_int_equal(moelink_eplb_rebalance(&shape, loads, map_b, NULL, 0, NULL), MOELINK_OK);
        assert_int_equal(moelink_eplb_rate(&shape, &params, map_b, &reference), MOELINK_OK);
        assert_true(scratch.balance_after >= reference.balance_after);

        params = params_of(drifted, map_a);
        moelink_eplb_plan_result little = plan(&shape, &params, map_c);
        assert_int_equal(moelink_eplb_rebalance(&shape, drifted, map_b, NULL, 0, NULL), MOELINK_OK);
        assert_int_equal(moelink_eplb_preserve(&shape, map_a, map_b, map_b), MOELINK_OK);
        assert_int_equal(moelink_eplb_rate(&shape, &params, map_b, &reference), MOELINK_OK);
        assert_true(little.copies > 0);
        assert_true((double)little.copies <= 0.20 * (double)reference.copies);
        assert_true(little.balance_after >= 0.99 * reference.balance_after);
    }
}

static void test_real_topics(void **state) {
    (void)state;
    static const int32_t ranks[] = {8, 32, 64};
    for (int i = 0; i < 3; ++i) {
        moelink_eplb_shape shape = eplb_shape(1, 384, 448, ranks[i], 1, 1);
        assert_true(real_loads(0, loads, NULL));
        moelink_eplb_plan_params params = params_of(loads, NULL);
        plan(&shape, &params, map_a);
        for (int topic = 1; topic < 6; ++topic) {
            assert_true(real_loads(topic, loads, NULL));
            params = params_of(loads, map_a);
            moelink_eplb_plan_result result = plan(&shape, &params, map_b);
            expect_valid_map(&shape, map_b, NULL);
            check_figures(&shape, &params, map_b, &result);
            assert_true(result.balance_after >= 0.97);
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
            moelink_eplb_plan_params params = params_of(loads, NULL);
            params.target = 1;
            params.move_cost = 0;
            moelink_eplb_plan_result result = plan(&brute.shape, &params, map_a);
            assert_true(result.bound <= brute.best * (1 + 1e-12));       /* the certificate is true */
            assert_true(result.time_after >= brute.best * (1 - 1e-12));  /* and so is the search */
            assert_true(result.time_after <= brute.best * 1.34);
            if (result.time_after <= brute.best * (1 + 1e-9)) ++optimal;
            /* From any map at all, too. */
            for (int s = 0; s < brute.shape.slots; ++s) map_b[s] = random_range(&seed, -1, brute.shape.experts - 1);
            params.previous = map_b;
            result = plan(&brute.shape, &params, map_a);
            expect_valid_map(&brute.shape, map_a, NULL);
            check_figures(&brute.shape, &params, map_a, &result);
            assert_true(result.bound <= brute.best * (1 + 1e-12) && result.time_after >= brute.best * (1 - 1e-12));
        }
    }
    assert_true(optimal * 2 >= all);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules_and_figures), cmocka_unit_test(test_threads_do_not_matter), cmocka_unit_test(test_moves_little),
        cmocka_unit_test(test_real_topics),       cmocka_unit_test(test_against_all_maps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
