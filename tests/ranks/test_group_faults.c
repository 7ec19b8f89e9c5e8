/* Groups that are not well: peers that die, stop, come late, go away, give up, or call something else. */
#include "ranks.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static rank_options options_of(int size, int threads) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.no_finalize = 1;
    return options;
}

static void run(int size, int threads, rank_function function) {
    rank_options options = options_of(size, threads);
    options.name = threads ? "threads" : "processes";
    assert_int_equal(ranks_run(&options, function), 0);
}

/* A text about one rank, such as "rank 3 aborted". */
static void expect_rank_text(rank_context *ctx, const char *format, int rank) {
    char wanted[64];
    snprintf(wanted, sizeof(wanted), format, rank);
    RANK_TEXT(ctx, moelink_last_error(), wanted);
    RANK_TEXT(ctx, moelink_group_error(ctx->group), wanted);
}

static void nap_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* --- abort --- */

static void one_aborts(rank_context *ctx) {
    int aborter = ctx->size / 2;
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    if (ctx->rank == aborter) {
        nap_ms(50); /* the others wait by now, mostly; both orders must do */
        RANK_OK(ctx, moelink_group_abort(ctx->group));
    }
    RANK_STATUS(ctx, moelink_group_barrier(ctx->group), MOELINK_ERR_ABORTED);
    expect_rank_text(ctx, "rank %d aborted", aborter);
    RANK_STATUS(ctx, moelink_group_fault(ctx->group), MOELINK_ERR_ABORTED);
    RANK_STATUS(ctx, moelink_group_barrier(ctx->group), MOELINK_ERR_ABORTED); /* and so it stays */
    RANK_OK(ctx, moelink_group_abort(ctx->group));
    RANK_CHECK(ctx, rank_meet(ctx, 10000));
}

static void test_abort(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 3, 8, 23};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
        for (int threads = 0; threads < 2; ++threads) run(sizes[i], threads, one_aborts);
    }
}

/* --- death --- */

static void one_dies(rank_context *ctx) {
    int victim = *(const int *)ctx->user;
    int mine = ctx->rank;
    int all[64];
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    if (ctx->rank == victim) raise(SIGKILL);
    moelink_status status = moelink_group_allgather(ctx->group, &mine, all, sizeof(mine));
    rank_expect_status(ctx, __FILE__, __LINE__, "allgather with a dead rank", status, MOELINK_ERR_PEER_EXITED);
    expect_rank_text(ctx, "rank %d exited", victim);
    RANK_STATUS(ctx, moelink_group_fault(ctx->group), MOELINK_ERR_PEER_EXITED);
    RANK_STATUS(ctx, moelink_group_finalize(ctx->group), MOELINK_ERR_PEER_EXITED);
}

static void test_killed_process(void **state) {
    (void)state;
    /* First, inner and last ranks of the tree. */
    static const struct { int size, victim; } cases[] = {{2, 0}, {2, 1}, {3, 2}, {8, 0}, {8, 1}, {8, 7}, {23, 4}, {23, 20}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
        int victim = cases[i].victim;
        rank_options options = options_of(cases[i].size, 0);
        options.user = &victim;
        options.dying = &victim;
        options.dying_count = 1;
        options.name = "one dies";
        assert_int_equal(ranks_run(&options, one_dies), 0);
    }
}

/* Without a wait of its own a rank learns of a death too. */
static void idle_ranks_notice(rank_context *ctx) {
    int victim = *(const int *)ctx->user;
    if (ctx->rank == victim) raise(SIGKILL);
    for (int i = 0; i < 2000 && moelink_group_fault(ctx->group) == MOELINK_OK; ++i) nap_ms(5);
    RANK_STATUS(ctx, moelink_group_fault(ctx->group), MOELINK_ERR_PEER_EXITED);
    char wanted[64];
    snprintf(wanted, sizeof(wanted), "rank %d exited", victim);
    RANK_TEXT(ctx, moelink_group_error(ctx->group), wanted);
    RANK_CHECK(ctx, ctx->rank != victim);
}

static void test_idle_ranks_notice(void **state) {
    (void)state;
    int victim = 6;
    rank_options options = options_of(9, 0);
    options.user = &victim;
    options.dying = &victim;
    options.dying_count = 1;
    assert_int_equal(ranks_run(&options, idle_ranks_notice), 0);
}

static void one_leaves(rank_context *ctx) {
    int leaver = ctx->size - 1;
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    if (ctx->rank == leaver) {
        moelink_group_destroy(ctx->group);
        ctx->group = NULL;
    } else {
        RANK_STATUS(ctx, moelink_group_barrier(ctx->group), MOELINK_ERR_PEER_EXITED);
        expect_rank_text(ctx, ctx->threads ? "rank %d destroyed" : "rank %d exited", leaver);
    }
    RANK_CHECK(ctx, rank_meet(ctx, 10000));
}

static void test_destroy_without_finalize(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        run(2, threads, one_leaves);
        run(7, threads, one_leaves);
    }
}

/* --- the end of a group while a part of it is being made --- */

enum ending { by_abort, by_own_abort, by_exit };

struct split_end {
    enum ending ending;
    int victim;
};

static void *abort_soon(void *group) {
    nap_ms(50);
    moelink_group_abort(group);
    return NULL;
}

/* The victim takes part in the agreement on the split only, and the others wait for it in the new group. */
static void ends_while_splitting(rank_context *ctx) {
    const struct split_end *how = ctx->user;
    pthread_t thread;
    moelink_group *part = NULL;
    int wish[2] = {0, 0};
    int all[2 * 8];
    int aborter = how->ending == by_own_abort ? (how->victim + 1) % ctx->size : how->victim;
    if (ctx->rank == how->victim) {
        RANK_OK(ctx, moelink_group_allgather(ctx->group, wish, all, sizeof(wish)));
        if (how->ending == by_abort) abort_soon(ctx->group);
        if (how->ending == by_exit && !ctx->threads) raise(SIGKILL);
        if (how->ending == by_exit) {
            nap_ms(50);
            moelink_group_destroy(ctx->group);
            ctx->group = NULL;
        }
    } else {
        if (how->ending == by_own_abort && ctx->rank == aborter) {
            RANK_EQUAL(ctx, pthread_create(&thread, NULL, abort_soon, ctx->group), 0);
        }
        moelink_status status = moelink_group_split(ctx->group, 0, 0, &part);
        if (how->ending == by_own_abort && ctx->rank == aborter) pthread_join(thread, NULL);
        rank_expect_status(ctx, __FILE__, __LINE__, "split", status,
                           how->ending == by_exit ? MOELINK_ERR_PEER_EXITED : MOELINK_ERR_ABORTED);
        const char *format = how->ending != by_exit ? "rank %d aborted" : ctx->threads ? "rank %d destroyed" : "rank %d exited";
        expect_rank_text(ctx, format, aborter);
        RANK_CHECK(ctx, part == NULL);
    }
    if (how->ending != by_exit || ctx->threads) RANK_CHECK(ctx, rank_meet(ctx, 20000));
}

static void test_end_while_splitting(void **state) {
    (void)state;
    static const struct split_end cases[] = {{by_abort, 0},     {by_abort, 6}, {by_own_abort, 0},
                                             {by_own_abort, 6}, {by_exit, 0},  {by_exit, 6}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
        for (int threads = 0; threads < 2; ++threads) {
            struct split_end how = cases[i];
            rank_options options = options_of(7, threads);
            options.timeout_ns = 600000000000u; /* nobody waits for that */
            options.user = &how;
            options.name = threads ? "a split of threads ends" : "a split ends";
            options.dying = &how.victim;
            options.dying_count = how.ending == by_exit && !threads;
            assert_int_equal(ranks_run(&options, ends_while_splitting), 0);
        }
    }
}

/* A rank that has its part may give up the whole, with the others still on their way out of the split. */
static void leaves_after_split(rank_context *ctx) {
    moelink_group *part = NULL;
    RANK_OK(ctx, moelink_group_split(ctx->group, 0, -ctx->rank, &part));
    moelink_group_destroy(ctx->group);
    ctx->group = NULL;
    RANK_OK(ctx, moelink_group_barrier(part));
    RANK_OK(ctx, moelink_group_finalize(part));
    moelink_group_destroy(part);
}

static void test_leaving_after_split(void **state) {
    (void)state;
    for (int i = 0; i < 10; ++i) run(23, i % 2, leaves_after_split);
}

/* --- lateness --- */

/* Ranks 2 and 5-7 of 8 do not come in time. Nobody hangs, the text names them, and the group goes on. */
static void some_are_late(rank_context *ctx) {
    int late = ctx->rank == 2 || ctx->rank >= 5;
    int mine = ctx->rank;
    int all[8];
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    if (late) {
        RANK_CHECK(ctx, rank_meet(ctx, 20000));
        RANK_STATUS(ctx, moelink_group_barrier(ctx->group), MOELINK_ERR_TIMEOUT);
    } else {
        RANK_STATUS(ctx, moelink_group_barrier(ctx->group), MOELINK_ERR_TIMEOUT);
        RANK_CHECK(ctx, rank_meet(ctx, 20000));
    }
    RANK_TEXT(ctx, moelink_last_error(), "4 of 8 ranks did not come: 2, 5-7");
    RANK_TEXT(ctx, moelink_group_error(ctx->group), "2, 5-7");
    RANK_OK(ctx, moelink_group_fault(ctx->group));
    RANK_OK(ctx, moelink_group_allgather(ctx->group, &mine, all, sizeof(mine)));
    for (int rank = 0; rank < 8; ++rank) RANK_EQUAL(ctx, all[rank], rank);
    RANK_OK(ctx, moelink_group_finalize(ctx->group));
}

/* The one that decides is the late one. */
static void rank_0_is_late(rank_context *ctx) {
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    if (ctx->rank == 0) RANK_CHECK(ctx, rank_meet(ctx, 20000));
    RANK_STATUS(ctx, moelink_group_barrier(ctx->group), MOELINK_ERR_TIMEOUT);
    RANK_TEXT(ctx, moelink_last_error(), "1 of 3 ranks did not come: 0");
    if (ctx->rank != 0) RANK_CHECK(ctx, rank_meet(ctx, 20000));
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    RANK_OK(ctx, moelink_group_finalize(ctx->group));
}

static void test_timeout_names_the_missing(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = options_of(8, threads);
        options.timeout_ns = (uint64_t)ranks_scaled_ms(1000) * 1000000u;
        options.name = "some are late";
        assert_int_equal(ranks_run(&options, some_are_late), 0);
        options.size = 3;
        options.name = "rank 0 is late";
        assert_int_equal(ranks_run(&options, rank_0_is_late), 0);
    }
}

/* A process that is stopped, as by a debugger: not even its I/O thread answers. */
static void one_is_stopped(rank_context *ctx) {
    int victim = *(const int *)ctx->user;
    volatile pid_t *stopped = (volatile pid_t *)ctx->shared;
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    if (ctx->rank == victim) {
        *stopped = getpid();
        RANK_CHECK(ctx, rank_meet(ctx, 20000));
        raise(SIGSTOP);
        return;
    }
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    nap_ms(50);
    moelink_status status = moelink_group_barrier(ctx->group);
    char text[1024];
    snprintf(text, sizeof(text), "%s", moelink_last_error());
    __atomic_add_fetch(&ctx->shared[8], 1, __ATOMIC_ACQ_REL);
    for (int i = 0; i < 4000 && __atomic_load_n(&ctx->shared[8], __ATOMIC_ACQUIRE) < ctx->size - 1; ++i) nap_ms(5);
    if (ctx->rank == (victim + 1) % ctx->size) kill(*stopped, SIGCONT);
    rank_expect_status(ctx, __FILE__, __LINE__, "barrier with a stopped rank", status, MOELINK_ERR_TIMEOUT);
    char wanted[32];
    snprintf(wanted, sizeof(wanted), victim == 0 ? "missing is rank %d" : "did not come: %d", victim);
    RANK_TEXT(ctx, text, wanted);
}

static void test_stopped_process(void **state) {
    (void)state;
    for (int victim = 0; victim < 4; victim += 3) {
        rank_options options = options_of(4, 0);
        options.timeout_ns = (uint64_t)ranks_scaled_ms(1000) * 1000000u;
        options.user = &victim;
        options.shared_bytes = 16;
        options.name = "one is stopped";
        assert_int_equal(ranks_run(&options, one_is_stopped), 0);
    }
}

/* --- contradictions --- */

static void contradicts(rank_context *ctx) {
    unsigned char mine[16] = {0};
    unsigned char all[16 * 8];
    int odd = ctx->rank == 1;
    memset(all, 0x5a, sizeof(all));

    rank_scene(ctx, "different sizes");
    RANK_STATUS(ctx, moelink_group_allgather(ctx->group, mine, all, odd ? 16 : 8), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "allgather of 8 bytes");
    RANK_TEXT(ctx, moelink_last_error(), "rank 1 allgather of 16 bytes");
    RANK_EQUAL(ctx, all[0], 0x5a);

    rank_scene(ctx, "different calls");
    if (odd) {
        RANK_STATUS(ctx, moelink_group_broadcast(ctx->group, mine, 8, 0), MOELINK_ERR_MISMATCH);
    } else {
        RANK_STATUS(ctx, moelink_group_allgather(ctx->group, mine, all, 8), MOELINK_ERR_MISMATCH);
    }
    RANK_TEXT(ctx, moelink_last_error(), "rank 1 broadcast of 8 bytes from rank 0");

    rank_scene(ctx, "different roots");
    RANK_STATUS(ctx, moelink_group_broadcast(ctx->group, mine, 4, odd), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "from rank 1");

    rank_scene(ctx, "one finalizes alone");
    if (odd) {
        RANK_STATUS(ctx, moelink_group_finalize(ctx->group), MOELINK_ERR_MISMATCH);
    } else {
        RANK_STATUS(ctx, moelink_group_barrier(ctx->group), MOELINK_ERR_MISMATCH);
    }
    RANK_TEXT(ctx, moelink_last_error(), "rank 1 finalize");

    rank_scene(ctx, "after all that");
    mine[0] = (unsigned char)ctx->rank;
    RANK_OK(ctx, moelink_group_fault(ctx->group));
    RANK_OK(ctx, moelink_group_allgather(ctx->group, mine, all, 1));
    for (int rank = 0; rank < ctx->size; ++rank) RANK_EQUAL(ctx, all[rank], rank);
    RANK_OK(ctx, moelink_group_finalize(ctx->group));
}

static void test_contradictions(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        run(2, threads, contradicts);
        run(8, threads, contradicts);
    }
}

/* A refused argument fails here only, before any peer hears of it. */
static void refuses(rank_context *ctx) {
    int value = ctx->rank;
    int all[8];
    RANK_STATUS(ctx, moelink_group_allgather(ctx->group, NULL, all, 4), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_group_allgather(ctx->group, &value, NULL, 4), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_group_allgather(ctx->group, &value, all, UINT64_MAX), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_group_broadcast(ctx->group, NULL, 4, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_group_broadcast(ctx->group, &value, 4, -1), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_group_broadcast(ctx->group, &value, 4, ctx->size), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_group_error(ctx->group), "root");
    RANK_STATUS(ctx, moelink_group_split(ctx->group, 0, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_OK(ctx, moelink_group_allgather(ctx->group, &value, all, 4));
    RANK_OK(ctx, moelink_group_finalize(ctx->group));
}

static void test_arguments(void **state) {
    (void)state;
    run(3, 0, refuses);
    run(3, 1, refuses);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_killed_process),
        cmocka_unit_test(test_idle_ranks_notice),
        cmocka_unit_test(test_destroy_without_finalize),
        cmocka_unit_test(test_end_while_splitting),
        cmocka_unit_test(test_leaving_after_split),
        cmocka_unit_test(test_timeout_names_the_missing),
        cmocka_unit_test(test_stopped_process),
        cmocka_unit_test(test_contradictions),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
