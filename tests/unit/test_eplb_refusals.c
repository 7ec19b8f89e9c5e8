/* Input that no plan can be made from: a clear error, and nothing is written. */
#include <moelink/eplb.h>

#include "eplb_case.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { layers = 2, experts = 6, slots = 8, ranks = 4 };

struct call {
    moelink_eplb_shape shape;
    moelink_eplb_plan_params params;
    double load[2 * layers * experts];
    int32_t previous[layers * slots];
    double speed[ranks], distance[ranks * ranks];
    uint8_t active[ranks], pinned[layers * slots];
};

static void make(struct call *call) {
    memset(call, 0, sizeof *call);
    call->shape = eplb_shape(layers, experts, slots, ranks, 1, 1);
    for (int i = 0; i < 2 * layers * experts; ++i) call->load[i] = 10 + i;
    for (int i = 0; i < layers * slots; ++i) call->previous[i] = i % slots % experts;
    for (int i = 0; i < ranks; ++i) call->speed[i] = 1, call->active[i] = 1;
    for (int i = 0; i < ranks * ranks; ++i) call->distance[i] = 1;
    moelink_eplb_plan_params_init(&call->params);
    call->params.load = call->load;
    call->params.previous = call->previous;
    call->params.rank_speed = call->speed;
    call->params.rank_active = call->active;
    call->params.distance = call->distance;
    call->params.pinned = call->pinned;
}

static void refused(const struct call *call, const char *part) {
    int32_t map[layers * slots], untouched[layers * slots];
    memset(map, 0x55, sizeof map);
    memset(untouched, 0x55, sizeof map);
    moelink_eplb_layer_result rows[layers], same_rows[layers];
    memset(rows, 0x55, sizeof rows);
    memset(same_rows, 0x55, sizeof rows);
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    result.layers = rows;
    result.copies = 77;
    assert_int_equal(moelink_eplb_plan(&call->shape, &call->params, map, &result), MOELINK_ERR_INVALID_ARGUMENT);
    if (strstr(moelink_last_error(), part) == NULL) fprintf(stderr, "\"%s\" does not say \"%s\"\n", moelink_last_error(), part);
    assert_non_null(strstr(moelink_last_error(), part));
    assert_memory_equal(map, untouched, sizeof map);
    assert_memory_equal(rows, same_rows, sizeof rows);
    assert_int_equal(result.copies, 77);
}

static void test_good(void **state) {
    (void)state;
    struct call call;
    make(&call);
    int32_t map[layers * slots];
    assert_int_equal(moelink_eplb_plan(&call.shape, &call.params, map, NULL), MOELINK_OK);
}

static void test_loads(void **state) {
    (void)state;
    static const struct {
        double value;
        const char *part;
    } bad[] = {{NAN, "nan in step 1, layer 0, expert 3"},
               {INFINITY, "inf in step 1, layer 0, expert 3"},
               {-INFINITY, "-inf"},
               {-1, "load is -1"},
               {-1e-300, "0 or more"},
               {1e39, "loads of layer 0 add up to"},
               {1.7e308, "loads of layer 0 add up to"}};
    struct call call;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
        make(&call);
        call.params.steps = 2;
        call.load[layers * experts + 3] = bad[i].value;
        refused(&call, bad[i].part);
    }
    /* Each is fine, the sum is not, even where it overflows double. */
    make(&call);
    for (int e = 0; e < experts; ++e) call.load[experts + e] = 3e38;
    refused(&call, "loads of layer 1 add up to");
    for (int e = 0; e < experts; ++e) call.load[experts + e] = 1.7e308;
    refused(&call, "loads of layer 1 add up to inf");
    make(&call);
    call.params.load = NULL;
    refused(&call, "load is NULL");

    /* The parts of the published algorithm refuse the same. */
    int32_t out[3][slots], untouched[3][slots];
    memset(out, 0x55, sizeof out);
    memset(untouched, 0x55, sizeof out);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
        double load[experts] = {1, 2, 3, 4, 5, 6};
        load[3] = bad[i].value;
        moelink_eplb_shape shape = eplb_shape(1, experts, slots, ranks, 1, 1);
        assert_int_equal(moelink_eplb_replicate(load, 1, experts, slots, out[0], out[1], out[2]), MOELINK_ERR_INVALID_ARGUMENT);
        assert_int_equal(moelink_eplb_pack(load, 1, experts, 3, out[0], out[1]), MOELINK_ERR_INVALID_ARGUMENT);
        assert_int_equal(moelink_eplb_rebalance(&shape, load, out[0], NULL, 0, out[1]), MOELINK_ERR_INVALID_ARGUMENT);
        assert_memory_equal(out, untouched, sizeof out);
    }
}

static void test_shapes(void **state) {
    (void)state;
    struct call call;
#define BAD_SHAPE(field, value, part) make(&call), call.shape.field = (value), refused(&call, part)
    BAD_SHAPE(struct_size, 0, "struct_size is 0");
    BAD_SHAPE(layers, 0, "shape.layers is 0");
    BAD_SHAPE(layers, MOELINK_EPLB_MAX_LAYERS + 1, "shape.layers is 4097");
    BAD_SHAPE(experts, -3, "shape.experts is -3");
    BAD_SHAPE(slots, INT32_MAX, "shape.slots is 2147483647");
    BAD_SHAPE(slots, 9, "9 slots are no multiple of 4 ranks");
    BAD_SHAPE(ranks, 0, "shape.ranks is 0");
    BAD_SHAPE(ranks, 2048, "shape.ranks is 2048");
    BAD_SHAPE(nodes, 3, "4 ranks are no multiple of 3 nodes");
    BAD_SHAPE(groups, 4, "6 experts are no multiple of 4 groups");
    BAD_SHAPE(threads, -1, "shape.threads is -1");
    BAD_SHAPE(slots, 4, "4 slots, fewer than 6 experts");
#undef BAD_SHAPE
    int32_t map[slots] = {0};
    double load[experts] = {0};
    moelink_eplb_shape shape = eplb_shape(1, experts, 4, 4, 1, 1);
    assert_int_equal(moelink_eplb_rebalance(&shape, load, map, NULL, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_rebalance(NULL, load, map, NULL, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_replicate(load, 1, experts, 5, map, NULL, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_replicate(load, 1, experts, slots, NULL, NULL, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_pack(load, 1, experts, 4, map, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_pack(load, 1, experts, 0, map, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_pack(NULL, 1, experts, 2, map, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    shape = eplb_shape(1, experts, slots, ranks, 1, 1);
    map[7] = experts;
    assert_int_equal(moelink_eplb_invert(&shape, map, NULL, 0, map), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(moelink_last_error(), "6 in layer 0, slot 7"));
    assert_int_equal(moelink_eplb_preserve(&shape, map, map, map), MOELINK_ERR_INVALID_ARGUMENT);
    map[7] = -2;
    assert_int_equal(moelink_eplb_preserve(&shape, map, map, map), MOELINK_ERR_INVALID_ARGUMENT);
    /* A log2phy that is too narrow leaves all outputs alone. */
    int32_t phy2log[slots], log2phy[experts], counts[experts] = {9, 9, 9, 9, 9, 9};
    memset(phy2log, 0x55, sizeof phy2log);
    assert_int_equal(moelink_eplb_rebalance(&shape, load, phy2log, log2phy, 1, counts), MOELINK_ERR_TOO_SMALL);
    assert_int_equal(phy2log[0], 0x55555555);
    assert_int_equal(counts[0], 9);
}

static void test_params(void **state) {
    (void)state;
    struct call call;
#define BAD(statement, part) make(&call), statement, refused(&call, part)
    BAD(call.params.struct_size = 0, "struct_size is 0");
    BAD(call.params.flags = 1u << 9, "params.flags has 0x200");
    BAD(call.params.target = 0.99, "params.target is 0.99");
    BAD(call.params.target = NAN, "params.target is nan");
    BAD(call.params.move_cost = -1, "params.move_cost is -1");
    BAD(call.params.min_gain = INFINITY, "params.min_gain is inf");
    BAD(call.params.node_distance = 0.5, "params.node_distance is 0.5");
    BAD(call.params.max_copies = -1, "params.max_copies is -1");
    BAD(call.params.max_pair_copies = -2, "params.max_pair_copies is -2");
    BAD(call.params.max_bytes = 5, "expert_bytes is 0");
    BAD(call.params.steps = 0, "params.steps is 0");
    BAD(call.speed[2] = 0, "params.rank_speed of rank 2 is 0");
    BAD(call.speed[1] = NAN, "params.rank_speed of rank 1 is nan");
    BAD(call.distance[6] = -1, "params.distance from rank 1 to 2 is -1");
    BAD(call.previous[9] = 6, "params.previous has 6 in layer 1, slot 1");
    BAD(call.params.previous = NULL, "previous is NULL");
    BAD(memset(call.active, 0, ranks), "none of 4 ranks is active");
    BAD(memset(call.active, 0, 2), "2 active ranks have 4 slots, fewer than 6 experts");
    BAD((call.previous[1] = 0, call.pinned[0] = call.pinned[1] = 1), "layer 0 has expert 0 pinned twice on rank 0");
    /* Pinned copies of expert 0 everywhere leave three slots for five experts. */
    make(&call);
    for (int s = 0; s < slots; ++s) call.previous[s] = s % 2 == 0 ? 0 : s == 7 ? 5 : -1, call.pinned[s] = s % 2 == 0 || s == 7;
    refused(&call, "layer 0: pins leave no slot for expert");
    /* In every layer, on several threads: the first is named. */
    memcpy(call.previous + slots, call.previous, sizeof call.previous / 2);
    memcpy(call.pinned + slots, call.pinned, sizeof call.pinned / 2);
    call.shape.threads = 2;
    for (int i = 0; i < 50; ++i) refused(&call, "layer 0: ");
    /* A node that lost a rank has no room for its groups. */
    make(&call);
    call.shape.nodes = 2;
    call.shape.groups = 2;
    for (int s = 0; s < slots; ++s) call.previous[s] = s < 4 ? s % 3 : 3 + s % 3;
    call.previous[slots + 4] = call.previous[slots + 6] = 4, call.previous[slots + 5] = 5, call.previous[slots + 7] = 3;
    for (int s = 0; s < 4; ++s) call.previous[slots + s] = s % 3;
    call.active[1] = 0;
    refused(&call, "layer 0: pins or inactive ranks leave no slot of its group's node");
#undef BAD
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    make(&call);
    assert_int_equal(moelink_eplb_plan(&call.shape, &call.params, NULL, &result), MOELINK_ERR_INVALID_ARGUMENT);
    int32_t map[layers * slots];
    memset(map, 0x55, sizeof map);
    result.struct_size = 0;
    assert_int_equal(moelink_eplb_plan(&call.shape, &call.params, map, &result), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(map[0], 0x55555555);
    assert_int_equal(moelink_eplb_plan(&call.shape, NULL, map, NULL), MOELINK_ERR_INVALID_ARGUMENT);
}

static void test_rate(void **state) {
    (void)state;
    struct call call;
    make(&call);
    moelink_eplb_plan_result result = MOELINK_EPLB_PLAN_RESULT_INIT;
    int32_t map[layers * slots];
    memcpy(map, call.previous, sizeof map);
    assert_int_equal(moelink_eplb_rate(&call.shape, &call.params, map, &result), MOELINK_OK);
    assert_int_equal(result.copies, 0);
    assert_int_equal(moelink_eplb_rate(&call.shape, &call.params, map, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_rate(&call.shape, &call.params, NULL, &result), MOELINK_ERR_INVALID_ARGUMENT);
    map[slots + 2] = -1;
    result.copies = 77;
    assert_int_equal(moelink_eplb_rate(&call.shape, &call.params, map, &result), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(moelink_last_error(), "layer 1"));
    assert_int_equal(result.copies, 77);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),   cmocka_unit_test(test_loads), cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_params), cmocka_unit_test(test_rate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
