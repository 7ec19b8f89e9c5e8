/* The rank runner itself: what fails must be seen, from every rank, by name. */
#include "ranks.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char text[1 << 16];

static rank_options quiet(int size, int threads) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.no_group = 1;
    options.report = text;
    options.report_bytes = sizeof(text);
    return options;
}

static void meets(rank_context *ctx) {
    for (int i = 0; i < 20; ++i) {
        ctx->shared[ctx->rank] = (unsigned char)i;
        RANK_CHECK(ctx, rank_meet(ctx, 10000));
        for (int rank = 0; rank < ctx->size; ++rank) RANK_EQUAL(ctx, ctx->shared[rank], i);
        RANK_CHECK(ctx, rank_meet(ctx, 10000));
    }
}

static void test_all_well(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = quiet(4, threads);
        options.shared_bytes = 4;
        assert_int_equal(ranks_run(&options, meets), 0);
        assert_string_equal(text, "");
    }
}

static void deep(rank_context *ctx) {
    RANK_STATUS(ctx, moelink_log_set_level(99), MOELINK_OK);
}

static void two_fail(rank_context *ctx) {
    rank_note(ctx, "seen by %d", ctx->rank);
    if (ctx->rank == 1) deep(ctx);
    if (ctx->rank == 2) RANK_CHECK(ctx, ctx->rank == 7);
}

static void test_failures_of_all_ranks(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = quiet(4, threads);
        assert_int_equal(ranks_run(&options, two_fail), 2);
        assert_non_null(strstr(text, "rank 1: "));
        assert_non_null(strstr(text, "moelink_log_set_level(99): MOELINK_ERR_INVALID_ARGUMENT, expected MOELINK_OK"));
        assert_non_null(strstr(text, "last error: \""));
        assert_non_null(strstr(text, "rank 2: "));
        assert_non_null(strstr(text, "test_ranks_runner.c:"));
        assert_non_null(strstr(text, "check failed: ctx->rank == 7"));
        assert_non_null(strstr(text, "rank 3 notes: seen by 3"));
    }
}

static void one_dies(rank_context *ctx) {
    if (ctx->rank == 1) raise(SIGKILL);
}

static void test_death(void **state) {
    (void)state;
    static const int dying[] = {1};
    static const int wrong[] = {0};
    rank_options options = quiet(3, 0);
    assert_int_equal(ranks_run(&options, one_dies), 1);
    assert_non_null(strstr(text, "rank 1 died by signal 9"));
    options.dying = dying;
    options.dying_count = 1;
    assert_int_equal(ranks_run(&options, one_dies), 0);
    options.dying = wrong;
    assert_int_equal(ranks_run(&options, one_dies), 2);
    assert_non_null(strstr(text, "rank 0 should have died"));
    options = quiet(3, 1);
    assert_true(ranks_run(&options, one_dies) > 0);
    assert_non_null(strstr(text, "died by signal 9"));
}

static void one_hangs(rank_context *ctx) {
    while (ctx->rank == 2) pause();
}

static void test_hang(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = quiet(3, threads);
        options.deadline_ms = 300;
        assert_int_equal(ranks_run(&options, one_hangs), 1);
        assert_non_null(strstr(text, "rank 2"));
        assert_non_null(strstr(text, "hung"));
    }
}

static void early_exit(rank_context *ctx) {
    if (ctx->rank == 0) _exit(0);
}

static void test_early_exit(void **state) {
    (void)state;
    rank_options options = quiet(2, 0);
    assert_int_equal(ranks_run(&options, early_exit), 1);
    assert_non_null(strstr(text, "rank 0 exited with 0"));
}

/* More than a pipe holds, from all ranks at once: must neither block nor mix. */
static void floods(rank_context *ctx) {
    char line[3000];
    memset(line, 'a' + ctx->rank, sizeof(line) - 1);
    line[sizeof(line) - 1] = '\0';
    for (int i = 0; i < 100; ++i) rank_note(ctx, "%s", line);
    RANK_FAIL(ctx, "flooded");
}

static void test_flood(void **state) {
    (void)state;
    static char all[2 << 20];
    rank_options options = quiet(4, 0);
    options.report = all;
    options.report_bytes = sizeof(all);
    assert_int_equal(ranks_run(&options, floods), 4);
    for (int rank = 0; rank < 4; ++rank) {
        char head[32];
        snprintf(head, sizeof(head), "rank %d notes: %c", rank, 'a' + rank);
        int lines = 0;
        for (const char *at = all; (at = strstr(at, head)) != NULL; ++at) {
            ++lines;
            assert_int_equal(strspn(at + strlen(head) - 1, head + strlen(head) - 1), 2999);
        }
        assert_int_equal(lines, 100);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_well), cmocka_unit_test(test_failures_of_all_ranks), cmocka_unit_test(test_death),
        cmocka_unit_test(test_hang),     cmocka_unit_test(test_early_exit),            cmocka_unit_test(test_flood),
    };
    return cmocka_run_group_tests_name("rank runner", tests, NULL, NULL);
}
