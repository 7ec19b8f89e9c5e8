/* How expert-parallel ranks are made of data-parallel, prefill-context-parallel and tensor-parallel ones. */
#include <moelink/group.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static moelink_mapping mapping_of(int32_t dp, int32_t pcp, int32_t tp, int32_t rank) {
    moelink_mapping mapping = MOELINK_MAPPING_INIT;
    mapping.dp = dp;
    mapping.pcp = pcp;
    mapping.tp = tp;
    mapping.rank = rank;
    return mapping;
}

static void test_coordinates(void **state) {
    (void)state;
    static const int32_t shapes[][3] = {{1, 1, 1}, {4, 1, 2}, {2, 1, 2}, {1, 1, 8}, {8, 1, 1}, {2, 3, 4}, {3, 2, 1}, {16, 2, 8}};
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); ++s) {
        int32_t dp = shapes[s][0], pcp = shapes[s][1], tp = shapes[s][2];
        for (int32_t d = 0; d < dp; ++d) {
            for (int32_t p = 0; p < pcp; ++p) {
                for (int32_t t = 0; t < tp; ++t) {
                    moelink_mapping mapping = mapping_of(dp, pcp, tp, (d * pcp + p) * tp + t);
                    moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
                    assert_int_equal(moelink_mapping_describe(&mapping, dp * pcp * tp, &info), MOELINK_OK);
                    assert_int_equal(info.ep_size, dp * pcp * tp);
                    assert_int_equal(info.dp_rank, d);
                    assert_int_equal(info.pcp_rank, p);
                    assert_int_equal(info.tp_rank, t);
                }
            }
        }
    }
}

/* Ranks of one color differ in one coordinate only, and all ranks that do have that color. */
static void test_colors(void **state) {
    (void)state;
    enum { dp = 3, pcp = 2, tp = 4, all = dp * pcp * tp };
    moelink_mapping_info info[all];
    for (int rank = 0; rank < all; ++rank) {
        moelink_mapping mapping = mapping_of(dp, pcp, tp, rank);
        moelink_mapping_info_init(&info[rank]);
        assert_int_equal(moelink_mapping_describe(&mapping, 0, &info[rank]), MOELINK_OK);
        assert_true(info[rank].dp_color >= 0 && info[rank].pcp_color >= 0 && info[rank].tp_color >= 0);
    }
    for (int a = 0; a < all; ++a) {
        for (int b = 0; b < all; ++b) {
            int same_dp = info[a].dp_rank == info[b].dp_rank;
            int same_pcp = info[a].pcp_rank == info[b].pcp_rank;
            int same_tp = info[a].tp_rank == info[b].tp_rank;
            assert_int_equal(info[a].dp_color == info[b].dp_color, same_pcp && same_tp);
            assert_int_equal(info[a].pcp_color == info[b].pcp_color, same_dp && same_tp);
            assert_int_equal(info[a].tp_color == info[b].tp_color, same_dp && same_pcp);
        }
    }
}

static void expect_refused(moelink_mapping mapping, int32_t ep_size, const char *part, const char *other_part) {
    moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
    info.dp_rank = 99;
    assert_int_equal(moelink_mapping_describe(&mapping, ep_size, &info), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(info.dp_rank, 99);
    assert_non_null(strstr(moelink_last_error(), part));
    assert_non_null(strstr(moelink_last_error(), other_part));
}

static void test_refusals(void **state) {
    (void)state;
    /* TP 2, DP 4: the group must span 8 ranks; the data-parallel group of 4 is the classic mistake. */
    expect_refused(mapping_of(4, 1, 2, 0), 4, " 8,", "has 4 ranks");
    expect_refused(mapping_of(2, 2, 2, 0), 7, " 8,", "has 7 ranks");
    expect_refused(mapping_of(0, 1, 1, 0), 0, "dp 0", "1 or more");
    expect_refused(mapping_of(1, -3, 1, 0), 0, "pcp -3", "1 or more");
    expect_refused(mapping_of(1, 1, 0, 0), 0, "tp 0", "1 or more");
    expect_refused(mapping_of(2, 1, 2, 4), 0, "rank 4", "0 .. 3");
    expect_refused(mapping_of(2, 1, 2, -1), 4, "rank -1", "0 .. 3");
    expect_refused(mapping_of(1, 1, 1, 0), -1, "ep_size", "-1");
    expect_refused(mapping_of(65536, 65536, 1, 0), 0, "65536", "more than any group");
    expect_refused(mapping_of(65536, 32768, 65536, 0), 0, "65536", "more than any group");
    expect_refused(mapping_of(INT32_MAX, INT32_MAX, INT32_MAX, 0), 8, "2147483647", "8");
}

static void test_null(void **state) {
    (void)state;
    moelink_mapping mapping = MOELINK_MAPPING_INIT;
    moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
    assert_int_equal(moelink_mapping_describe(NULL, 0, &info), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_mapping_describe(&mapping, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    mapping.struct_size = 0;
    assert_int_equal(moelink_mapping_describe(&mapping, 0, &info), MOELINK_ERR_INVALID_ARGUMENT);
    moelink_mapping_init(&mapping);
    info.struct_size = 0;
    assert_int_equal(moelink_mapping_describe(&mapping, 0, &info), MOELINK_ERR_INVALID_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coordinates),
        cmocka_unit_test(test_colors),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
