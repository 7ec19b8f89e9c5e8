/* Runs the planner inside a cmocka test and checks every figure that it reports. */
#ifndef MOELINK_TESTS_EPLB_PLAN_H
#define MOELINK_TESTS_EPLB_PLAN_H

#include <moelink/eplb.h>

#include "eplb_case.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

enum { EPLB_MOST_SLOTS = 64 * 1024, EPLB_MOST_LAYERS = 256 };

/* Of the last plan. */
static int32_t plan_sources[EPLB_MOST_SLOTS];
static moelink_eplb_layer_result plan_layers[EPLB_MOST_LAYERS];

static moelink_eplb_plan_params plan_params(const double *load, const int32_t *previous) {
    moelink_eplb_plan_params params = MOELINK_EPLB_PLAN_PARAMS_INIT;
    params.load = load;
    params.previous = previous;
    return params;
}

static moelink_eplb_plan_result plan_map(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params, int32_t *map) {
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    result.layers = plan_layers;
    result.sources = plan_sources;
    moelink_status status = moelink_eplb_plan(shape, params, map, &result);
    if (status != MOELINK_OK) fprintf(stderr, "%s\n", moelink_last_error());
    assert_int_equal(status, MOELINK_OK);
    return result;
}

static int close_to(double a, double b) {
    return fabs(a - b) <= 1e-9 * fmax(fabs(a), fabs(b));
}

/* Every figure of the last plan, against the slow answers; params as they were given. */
static void expect_figures(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params, const int32_t *map,
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
        const moelink_eplb_layer_result *said = &plan_layers[layer];
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
            int32_t from = plan_sources[(int64_t)layer * shape->slots + s];
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
    int taken = (result->flags & MOELINK_EPLB_RESULT_SKIPPED) == 0;
    if (complete && before > 0 && taken) assert_true(fabs(result->gain - (1 - after / before)) < 1e-9);
    assert_true(result->balance_after <= result->balance_bound * (1 + 1e-9));
    assert_int_equal(result->bytes, (uint64_t)copies * params->expert_bytes);
}

#endif
