/* The published load balancer, whole and in parts, against a plain version of it and against its own example. */
#include <moelink/eplb.h>

#include "eplb_case.h"
#include "values.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Two layers of twelve experts; from the README of deepseek-ai/EPLB. */
static void test_published_example(void **state) {
    (void)state;
    static const double load[2][12] = {{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86},
                                       {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}};
    static const int32_t expected[2][16] = {{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1},
                                            {7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}};
    static const int32_t twice[2][4] = {{1, 4, 5, 10}, {1, 5, 6, 8}}; /* experts with two copies */
    moelink_eplb_shape shape = eplb_shape(2, 12, 16, 8, 2, 4);
    int32_t map[2][16], log2phy[2][12][5], counts[2][12];
    assert_int_equal(moelink_eplb_rebalance(&shape, &load[0][0], &map[0][0], &log2phy[0][0][0], 5, &counts[0][0]), MOELINK_OK);
    assert_memory_equal(map, expected, sizeof map);
    for (int layer = 0; layer < 2; ++layer) {
        for (int e = 0, next = 0; e < 12; ++e) {
            int copies = next < 4 && twice[layer][next] == e ? 2 : 1;
            if (copies == 2) ++next;
            assert_int_equal(counts[layer][e], copies);
            for (int i = 0; i < 5; ++i) {
                if (i < copies) {
                    assert_int_equal(map[layer][log2phy[layer][e][i]], e);
                } else {
                    assert_int_equal(log2phy[layer][e][i], -1);
                }
            }
        }
    }
    /* A map alone gives the same tables, with slots ascending. */
    int32_t inverse[2][12][2], again[2][12];
    assert_int_equal(moelink_eplb_invert(&shape, &map[0][0], &inverse[0][0][0], 2, &again[0][0]), MOELINK_OK);
    assert_memory_equal(again, counts, sizeof counts);
    assert_int_equal(inverse[0][5][0], 0);
    assert_int_equal(inverse[0][5][1], 2);
    assert_int_equal(inverse[0][6][0], 1);
    assert_int_equal(inverse[0][6][1], -1);
}

static void compare_with_slow(moelink_eplb_shape shape, const double *load) {
    int width = shape.slots - shape.experts + 1;
    size_t slots = (size_t)shape.slots, experts = (size_t)shape.experts, layers = (size_t)shape.layers, cells = experts * (size_t)width;
    int32_t *map = malloc(4 * layers * slots), *log2phy = malloc(4 * layers * cells), *counts = malloc(4 * layers * experts);
    int32_t *slow_map = malloc(4 * slots), *slow_log2phy = malloc(4 * cells), *slow_counts = malloc(4 * experts);
    assert_int_equal(moelink_eplb_rebalance(&shape, load, map, log2phy, width, counts), MOELINK_OK);
    for (size_t layer = 0; layer < layers; ++layer) {
        slow_rebalance(&shape, load + layer * experts, slow_map, slow_log2phy, width, slow_counts);
        assert_memory_equal(map + layer * slots, slow_map, 4 * slots);
        assert_memory_equal(log2phy + layer * cells, slow_log2phy, 4 * cells);
        assert_memory_equal(counts + layer * experts, slow_counts, 4 * experts);
    }
    free(map), free(log2phy), free(counts), free(slow_map), free(slow_log2phy), free(slow_counts);
}

static void test_equals_plain_version(void **state) {
    (void)state;
    /* experts, slots, ranks, nodes, groups: global, hierarchical, one slot a rank, one rank, many ranks, no replicas */
    static const int32_t shapes[][5] = {{256, 288, 32, 1, 1}, {256, 288, 32, 4, 8}, {256, 288, 24, 3, 8}, {64, 80, 8, 2, 4},
                                        {256, 320, 320, 1, 1}, {16, 16, 4, 1, 1},   {5, 9, 1, 1, 1},      {12, 48, 4, 2, 2},
                                        {8, 64, 4, 1, 1},      {1, 4, 2, 1, 1},     {64, 72, 8, 1, 8}};
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; ++i) {
        const int32_t *s = shapes[i];
        moelink_eplb_shape shape = eplb_shape(3, s[0], s[1], s[2], s[3], s[4]);
        double load[3 * 256];
        for (int distinct = 0; distinct < 2; ++distinct) {
            random_loads(&seed, 1.0, distinct, load, 3 * (int64_t)shape.experts);
            compare_with_slow(shape, load);
        }
        /* The tie rule: no load at all, equal loads, one hot expert. */
        for (int e = 0; e < shape.experts; ++e) {
            load[e] = 0;
            load[shape.experts + e] = 7;
            load[2 * shape.experts + e] = e == 2 ? 1e6 : 0;
        }
        compare_with_slow(shape, load);
    }
    double topic[384];
    for (int row = 0; row < 6; ++row) {
        assert_true(real_loads(row, topic, NULL));
        compare_with_slow(eplb_shape(1, 384, 448, 64, 1, 1), topic);
        compare_with_slow(eplb_shape(1, 384, 448, 32, 4, 8), topic);
    }
}

static void test_parts(void **state) {
    (void)state;
    uint64_t seed = 2;
    enum { layers = 4, experts = 40, slots = 56 };
    double load[layers * experts];
    random_loads(&seed, 1.0, 1, load, layers * experts);
    int32_t map[layers][slots], replica[layers][slots], counts[layers][experts], pack[layers][experts], place[layers][experts];
    assert_int_equal(moelink_eplb_replicate(load, layers, experts, slots, &map[0][0], &replica[0][0], &counts[0][0]), MOELINK_OK);
    assert_int_equal(moelink_eplb_pack(load, layers, experts, 8, &pack[0][0], &place[0][0]), MOELINK_OK);
    for (int layer = 0; layer < layers; ++layer) {
        float rounded[experts];
        int32_t m[slots], r[slots], c[experts], p[experts], q[experts];
        for (int e = 0; e < experts; ++e) rounded[e] = (float)load[layer * experts + e];
        slow_replicate(rounded, experts, slots, m, r, c);
        slow_pack(rounded, experts, 8, p, q);
        assert_memory_equal(map[layer], m, sizeof m);
        assert_memory_equal(replica[layer], r, sizeof r);
        assert_memory_equal(counts[layer], c, sizeof c);
        assert_memory_equal(pack[layer], p, sizeof p);
        assert_memory_equal(place[layer], q, sizeof q);
    }
    /* Outputs that nobody wants. */
    int32_t only[layers][slots];
    assert_int_equal(moelink_eplb_replicate(load, layers, experts, slots, &only[0][0], NULL, NULL), MOELINK_OK);
    assert_memory_equal(only, map, sizeof map);
    assert_int_equal(moelink_eplb_pack(load, layers, experts, 8, &only[0][0], NULL), MOELINK_OK);
    assert_memory_equal(only, pack, sizeof pack);
}

/* Slots 0 .. 3 are rank 0, 4 .. 7 rank 1. */
static void test_preserve(void **state) {
    (void)state;
    moelink_eplb_shape shape = eplb_shape(2, 9, 8, 2, 1, 1);
    static const int32_t before[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 0, 1, -1, 4, 4, 5, 5}};
    static const int32_t fresh[2][8] = {{3, 8, 1, 4, 5, 0, 7, 2}, {-1, 0, 2, 0, 5, 3, 4, 6}};
    static const int32_t expected[2][8] = {{8, 1, 4, 3, 0, 5, 2, 7}, {0, 0, 2, -1, 4, 3, 5, 6}};
    int32_t out[2][8];
    assert_int_equal(moelink_eplb_preserve(&shape, &before[0][0], &fresh[0][0], &out[0][0]), MOELINK_OK);
    assert_memory_equal(out, expected, sizeof out);
    memcpy(out, fresh, sizeof out);
    assert_int_equal(moelink_eplb_preserve(&shape, &before[0][0], &out[0][0], &out[0][0]), MOELINK_OK);
    assert_memory_equal(out, expected, sizeof out);
}

static void test_invert_with_gaps(void **state) {
    (void)state;
    moelink_eplb_shape shape = eplb_shape(1, 4, 8, 2, 1, 1);
    static const int32_t map[8] = {3, -1, 0, 3, -1, 3, 1, -1};
    static const int32_t expected[4][3] = {{2, -1, -1}, {6, -1, -1}, {-1, -1, -1}, {0, 3, 5}};
    static const int32_t expected_counts[4] = {1, 1, 0, 3};
    int32_t log2phy[4][3], counts[4];
    assert_int_equal(moelink_eplb_invert(&shape, map, &log2phy[0][0], 3, counts), MOELINK_OK);
    assert_memory_equal(log2phy, expected, sizeof log2phy);
    assert_memory_equal(counts, expected_counts, sizeof counts);
    /* Too narrow: the text says what would do, and nothing is written. */
    memset(log2phy, 0x55, sizeof log2phy);
    memset(counts, 0x55, sizeof counts);
    int32_t untouched[4];
    memset(untouched, 0x55, sizeof untouched);
    assert_int_equal(moelink_eplb_invert(&shape, map, &log2phy[0][0], 2, counts), MOELINK_ERR_TOO_SMALL);
    assert_non_null(strstr(moelink_last_error(), "expert 3 has 3 copies"));
    assert_memory_equal(log2phy, untouched, sizeof untouched);
    assert_memory_equal(counts, untouched, sizeof untouched);
    /* Counts alone say how wide. */
    assert_int_equal(moelink_eplb_invert(&shape, map, NULL, 0, counts), MOELINK_OK);
    assert_memory_equal(counts, expected_counts, sizeof counts);
}

static void test_threads_do_not_matter(void **state) {
    (void)state;
    uint64_t seed = 3;
    enum { layers = 23, experts = 64, slots = 80 };
    static double load[layers * experts];
    static int32_t one[layers * slots], many[layers * slots];
    random_loads(&seed, 1.0, 0, load, layers * experts);
    moelink_eplb_shape shape = eplb_shape(layers, experts, slots, 8, 1, 1);
    shape.threads = 1;
    assert_int_equal(moelink_eplb_rebalance(&shape, load, one, NULL, 0, NULL), MOELINK_OK);
    for (int threads = 0; threads < 6; ++threads) {
        shape.threads = threads == 5 ? 100 : threads;
        assert_int_equal(moelink_eplb_rebalance(&shape, load, many, NULL, 0, NULL), MOELINK_OK);
        assert_memory_equal(one, many, sizeof one);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_example), cmocka_unit_test(test_equals_plain_version),  cmocka_unit_test(test_parts),
        cmocka_unit_test(test_preserve),          cmocka_unit_test(test_invert_with_gaps), cmocka_unit_test(test_threads_do_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
