/* Groups that are well: collectives, splits and the orderly end, for processes and for threads. */
#include "ranks.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static void run(int size, int threads, rank_function function) {
    char name[64];
    snprintf(name, sizeof(name), "%d %s", size, threads ? "threads" : "processes");
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.name = name;
    assert_int_equal(ranks_run(&options, function), 0);
}

static void run_sizes(rank_function function) {
    static const int sizes[] = {1, 2, 3, 8, 17};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
        for (int threads = 0; threads < 2; ++threads) run(sizes[i], threads, function);
    }
}

static unsigned char value(int rank, uint64_t i, uint64_t salt) {
    return (unsigned char)((uint64_t)rank * 131 + i * 7 + (i >> 8) * 13 + salt);
}

static const uint64_t lengths[] = {0, 1, 3, 8, 4096, 16384, 65537, 1 << 20};
enum { length_count = sizeof(lengths) / sizeof(lengths[0]) };

static void allgathers(rank_context *ctx) {
    uint64_t most = lengths[length_count - 1];
    unsigned char *mine = malloc(most);
    unsigned char *all = malloc(most * (uint64_t)ctx->size + 1);
    for (int l = 0; l < length_count; ++l) {
        uint64_t bytes = lengths[l];
        rank_scene(ctx, "allgather of %llu bytes", (unsigned long long)bytes);
        for (uint64_t i = 0; i < bytes; ++i) mine[i] = value(ctx->rank, i, bytes);
        all[bytes * (uint64_t)ctx->size] = 0x5a;
        RANK_OK(ctx, moelink_group_allgather(ctx->group, mine, all, bytes));
        for (int rank = 0; rank < ctx->size; ++rank) {
            for (uint64_t i = 0; i < bytes; ++i) {
                if (all[(uint64_t)rank * bytes + i] != value(rank, i, bytes)) RANK_FAIL(ctx, "rank %d, byte %llu", rank,
                                                                                        (unsigned long long)i);
            }
        }
        RANK_EQUAL(ctx, all[bytes * (uint64_t)ctx->size], 0x5a);
    }
    free(mine);
    free(all);
}

static void broadcasts(rank_context *ctx) {
    uint64_t most = lengths[length_count - 1];
    unsigned char *data = malloc(most + 1);
    for (int l = 0; l < length_count; ++l) {
        uint64_t bytes = lengths[l];
        int root = (l * 5 + 1) % ctx->size;
        rank_scene(ctx, "broadcast of %llu bytes from rank %d", (unsigned long long)bytes, root);
        for (uint64_t i = 0; i < bytes; ++i) data[i] = value(ctx->rank, i, bytes);
        data[bytes] = 0x5a;
        RANK_OK(ctx, moelink_group_broadcast(ctx->group, data, bytes, root));
        for (uint64_t i = 0; i < bytes; ++i) {
            if (data[i] != value(root, i, bytes)) RANK_FAIL(ctx, "byte %llu", (unsigned long long)i);
        }
        RANK_EQUAL(ctx, data[bytes], 0x5a);
    }
    free(data);
}

/* No rank leaves a barrier before the last has come to it. */
static void barriers(rank_context *ctx) {
    for (int round = 0; round < 50; ++round) {
        __atomic_store_n(&ctx->shared[ctx->rank], (unsigned char)(round + 1), __ATOMIC_RELEASE);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
        for (int rank = 0; rank < ctx->size; ++rank) {
            int seen = __atomic_load_n(&ctx->shared[rank], __ATOMIC_ACQUIRE);
            if (seen < round + 1 || seen > round + 2) RANK_FAIL(ctx, "rank %d is in round %d, this one in %d", rank, seen,
                                                                round + 1);
        }
    }
}

static void describes_itself(rank_context *ctx) {
    RANK_EQUAL(ctx, moelink_group_rank(ctx->group), ctx->rank);
    RANK_EQUAL(ctx, moelink_group_size(ctx->group), ctx->size);
    RANK_EQUAL(ctx, moelink_group_device(ctx->group), MOELINK_DEVICE_HOST);
    RANK_EQUAL(ctx, moelink_group_device_ordinal(ctx->group), -1);
    RANK_EQUAL(ctx, moelink_group_strangers(ctx->group), 0);
    RANK_OK(ctx, moelink_group_fault(ctx->group));
    RANK_CHECK(ctx, strcmp(moelink_group_error(ctx->group), "") == 0);
}

static void test_collectives(void **state) {
    (void)state;
    run_sizes(describes_itself);
    run_sizes(allgathers);
    run_sizes(broadcasts);
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options;
        memset(&options, 0, sizeof(options));
        options.size = 8;
        options.threads = threads;
        options.shared_bytes = 8;
        assert_int_equal(ranks_run(&options, barriers), 0);
    }
}

/* Checks that the members of a group are the given world ranks, in this order. */
static void expect_members(rank_context *ctx, moelink_group *group, const int *world, int count) {
    int all[64];
    int mine = ctx->rank;
    RANK_EQUAL(ctx, moelink_group_size(group), count);
    RANK_OK(ctx, moelink_group_allgather(group, &mine, all, sizeof mine));
    for (int i = 0; i < count; ++i) RANK_EQUAL(ctx, all[i], world[i]);
    RANK_EQUAL(ctx, all[moelink_group_rank(group)], ctx->rank);
}

static void splits(rank_context *ctx) {
    int members[64];
    for (int again = 0; again < 3; ++again) { /* the same colors again make new groups */
        rank_scene(ctx, "even and odd, backwards, split %d", again);
        moelink_group *part = NULL;
        RANK_OK(ctx, moelink_group_split(ctx->group, ctx->rank % 2, -ctx->rank, &part));
        int count = 0;
        for (int rank = ctx->size - 1; rank >= 0; --rank) {
            if (rank % 2 == ctx->rank % 2) members[count++] = rank;
        }
        expect_members(ctx, part, members, count);

        rank_scene(ctx, "a part of a part");
        moelink_group *inner = NULL;
        RANK_OK(ctx, moelink_group_split(part, moelink_group_rank(part) / 2, 0, &inner));
        int first = moelink_group_rank(part) / 2 * 2;
        expect_members(ctx, inner, &members[first], count - first < 2 ? count - first : 2);
        RANK_OK(ctx, moelink_group_finalize(part));
        moelink_group_destroy(part);
        expect_members(ctx, inner, &members[first], count - first < 2 ? count - first : 2);
        RANK_OK(ctx, moelink_group_finalize(inner));
        moelink_group_destroy(inner);
    }

    rank_scene(ctx, "equal keys keep the order, a negative color joins none");
    moelink_group *some = (moelink_group *)1;
    RANK_OK(ctx, moelink_group_split(ctx->group, ctx->rank == 0 ? -1 : 5, 3, &some));
    if (ctx->rank == 0) {
        RANK_CHECK(ctx, some == NULL);
    } else {
        for (int i = 1; i < ctx->size; ++i) members[i - 1] = i;
        expect_members(ctx, some, members, ctx->size - 1);
        RANK_OK(ctx, moelink_group_finalize(some));
    }
    moelink_group_destroy(some);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));

    rank_scene(ctx, "all join again after one did not");
    RANK_OK(ctx, moelink_group_split(ctx->group, 0, 0, &some));
    for (int i = 0; i < ctx->size; ++i) members[i] = i;
    expect_members(ctx, some, members, ctx->size);
    RANK_OK(ctx, moelink_group_finalize(some));
    moelink_group_destroy(some);
}

/* A child that a rank forks has the group's handle but not its connections: to drop it there neither waits nor harms the rank. */
static void forks(rank_context *ctx) {
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        moelink_group_destroy(ctx->group);
        _exit(7);
    }
    RANK_CHECK(ctx, child > 0);
    for (int i = 0; i < 200 && waitpid(child, &status, WNOHANG) == 0; ++i) usleep(50000);
    if (!WIFEXITED(status)) kill(child, SIGKILL);
    RANK_CHECK(ctx, WIFEXITED(status) && WEXITSTATUS(status) == 7);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
}

static void test_forked_child(void **state) {
    (void)state;
    run(3, 0, forks);
}

static void test_split(void **state) {
    (void)state;
    run_sizes(splits);
}

/* A group outlives the one that it was split from. */
static void orphan(rank_context *ctx) {
    moelink_group *all = NULL;
    RANK_OK(ctx, moelink_group_split(ctx->group, 0, 0, &all));
    RANK_OK(ctx, moelink_group_finalize(ctx->group));
    moelink_group_destroy(ctx->group);
    ctx->group = all;
    RANK_OK(ctx, moelink_group_barrier(all));
    moelink_group *part = NULL;
    RANK_OK(ctx, moelink_group_split(all, ctx->rank / 2, 0, &part));
    RANK_OK(ctx, moelink_group_barrier(part));
    RANK_OK(ctx, moelink_group_finalize(part));
    moelink_group_destroy(part);
}

static void test_split_outlives(void **state) {
    (void)state;
    run(5, 0, orphan);
    run(5, 1, orphan);
}

/* A fault of one part is none of the other's, nor of the whole. */
static void one_part_ends(rank_context *ctx) {
    moelink_group *part = NULL;
    RANK_OK(ctx, moelink_group_split(ctx->group, ctx->rank % 2, 0, &part));
    if (ctx->rank == 2) RANK_OK(ctx, moelink_group_abort(part));
    if (ctx->rank % 2 == 0) {
        RANK_STATUS(ctx, moelink_group_barrier(part), MOELINK_ERR_ABORTED);
        RANK_TEXT(ctx, moelink_group_error(part), "rank 1 aborted"); /* its number there */
    } else {
        RANK_OK(ctx, moelink_group_barrier(part));
        RANK_OK(ctx, moelink_group_finalize(part));
    }
    moelink_group_destroy(part);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
}

static void test_parts_are_apart(void **state) {
    (void)state;
    run(6, 0, one_part_ends);
    run(6, 1, one_part_ends);
}

static void finalizes(rank_context *ctx) {
    char byte = 0;
    char all[64];
    RANK_OK(ctx, moelink_group_finalize(ctx->group));
    RANK_STATUS(ctx, moelink_group_finalize(ctx->group), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_group_barrier(ctx->group), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_group_allgather(ctx->group, &byte, all, 1), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_group_broadcast(ctx->group, &byte, 1, 0), MOELINK_ERR_INVALID_STATE);
    moelink_group *part = NULL;
    RANK_STATUS(ctx, moelink_group_split(ctx->group, 0, 0, &part), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_group_error(ctx->group), "finalized");
    if (ctx->rank != ctx->size - 1) {
        moelink_group_destroy(ctx->group);
        ctx->group = NULL;
    }
    RANK_CHECK(ctx, rank_meet(ctx, 10000));
    if (ctx->group != NULL) {
        struct timespec moment = {0, 50000000};
        nanosleep(&moment, NULL); /* long enough for the news of the others' going, if it were news */
        RANK_OK(ctx, moelink_group_fault(ctx->group));
        moelink_group_destroy(ctx->group);
        ctx->group = NULL;
    }
}

static void test_finalize(void **state) {
    (void)state;
    run_sizes(finalizes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives),     cmocka_unit_test(test_split), cmocka_unit_test(test_forked_child),    cmocka_unit_test(test_split_outlives),
        cmocka_unit_test(test_parts_are_apart), cmocka_unit_test(test_finalize),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
