/* The ways into a group beside the rank runner's own: the caller's allgather, and many groups in one process; and that nothing
 * stays behind. */
#include "leftovers.h"
#include "ranks.h"

#include <dirent.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { sanitized = 1 }; /* freed memory is kept a while; leaks are seen by the sanitizer itself */
#else
enum { sanitized = 0 };
#endif

/* --- the caller's allgather --- */

struct transport {
    rank_context *ctx;
    moelink_status answer; /* instead of working */
    int garble;            /* 1: what comes is not what was given; 2: in another order */
    int calls;
    int releases;
};

enum { card_most = 1024 };

static moelink_status gather(void *user, const void *mine, void *all, uint64_t bytes, uint64_t timeout_ns) {
    struct transport *transport = user;
    rank_context *ctx = transport->ctx;
    ++transport->calls;
    if (transport->answer != MOELINK_OK) return transport->answer;
    if (bytes > card_most || timeout_ns == 0) return MOELINK_ERR_INTERNAL;
    memcpy(ctx->shared + (size_t)ctx->rank * card_most, mine, bytes);
    if (!rank_meet(ctx, 20000)) return MOELINK_ERR_TIMEOUT;
    for (int rank = 0; rank < ctx->size; ++rank) {
        int from = transport->garble == 2 ? ctx->size - 1 - rank : rank;
        memcpy((char *)all + (uint64_t)rank * bytes, ctx->shared + (size_t)from * card_most, bytes);
    }
    if (transport->garble == 1) memset((char *)all + bytes, 0, bytes);
    return MOELINK_OK;
}

static void release(void *user) { ++((struct transport *)user)->releases; }

static moelink_status create(struct transport *transport, moelink_group_params *params, moelink_group **group) {
    moelink_bootstrap boot = MOELINK_BOOTSTRAP_INIT;
    boot.user = transport;
    boot.allgather = gather;
    boot.release = release;
    return moelink_group_create_with(&boot, params, group);
}

static moelink_group_params params_of(const rank_context *ctx) {
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.rank = ctx->rank;
    params.size = ctx->size;
    params.device = MOELINK_DEVICE_HOST;
    params.timeout_ns = (uint64_t)ranks_scaled_ms(20000) * 1000000u;
    return params;
}

static void expect_works(rank_context *ctx, moelink_group *group) {
    int mine = ctx->rank;
    int all[64];
    RANK_OK(ctx, moelink_group_allgather(group, &mine, all, sizeof(mine)));
    for (int rank = 0; rank < ctx->size; ++rank) RANK_EQUAL(ctx, all[rank], rank);
    RANK_OK(ctx, moelink_group_finalize(group));
    moelink_group_destroy(group);
}

static void over_own_allgather(rank_context *ctx) {
    struct transport transport = {ctx, MOELINK_OK, 0, 0, 0};
    moelink_group_params params = params_of(ctx);
    moelink_group *group = NULL;
    RANK_OK(ctx, create(&transport, &params, &group));
    RANK_EQUAL(ctx, transport.releases, 1);
    expect_works(ctx, group);
    RANK_EQUAL(ctx, transport.releases, 1);
    RANK_EQUAL(ctx, transport.calls, ctx->size == 1 ? 0 : 1);
}

static void own_allgather_fails(rank_context *ctx) {
    moelink_group_params params = params_of(ctx);
    moelink_group *group = (moelink_group *)1;
    struct transport transport = {ctx, MOELINK_ERR_PEER_UNREACHABLE, 0, 0, 0};
    RANK_STATUS(ctx, create(&transport, &params, &group), MOELINK_ERR_PEER_UNREACHABLE);
    RANK_CHECK(ctx, group == NULL);
    RANK_EQUAL(ctx, transport.releases, 1);
    RANK_TEXT(ctx, moelink_last_error(), "caller's allgather failed");
    transport.answer = 3;
    RANK_STATUS(ctx, create(&transport, &params, &group), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_EQUAL(ctx, transport.releases, 2);
    params.rank = params.size;
    RANK_STATUS(ctx, create(&transport, &params, &group), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_EQUAL(ctx, transport.releases, 3);
    RANK_EQUAL(ctx, transport.calls, 2);
}

static void own_allgather_lies(rank_context *ctx) {
    moelink_group_params params = params_of(ctx);
    moelink_group *group = NULL;
    struct transport transport = {ctx, MOELINK_OK, 1, 0, 0};
    rank_scene(ctx, "garbled");
    RANK_STATUS(ctx, create(&transport, &params, &group), MOELINK_ERR_PROTOCOL);
    RANK_TEXT(ctx, moelink_last_error(), "what rank 1 gave");
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    rank_scene(ctx, "out of order");
    transport.garble = 2;
    RANK_STATUS(ctx, create(&transport, &params, &group), MOELINK_ERR_MISMATCH);
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    rank_scene(ctx, "two ranks of one number");
    transport.garble = 0;
    if (ctx->rank == 2) params.rank = 1;
    RANK_STATUS(ctx, create(&transport, &params, &group), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "delivered rank 1 at place 2");
    params.rank = ctx->rank;
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    rank_scene(ctx, "different sizes");
    if (ctx->rank == 1) params.size = ctx->size + 1;
    char spare[8192];
    (void)spare;
    if (ctx->rank != 1) {
        RANK_STATUS(ctx, create(&transport, &params, &group), MOELINK_ERR_MISMATCH);
        RANK_TEXT(ctx, moelink_last_error(), "rank 0 says that the group has 3 ranks, rank 1 says 4");
    } else {
        create(&transport, &params, &group); /* its own allgather fills one card less than it expects */
        RANK_CHECK(ctx, group == NULL);
    }
    RANK_EQUAL(ctx, transport.releases, 4);
}

/* Rank 1 may open no more than a few files, too few for its connections; the others hear of it. */
static void preparations_fail(rank_context *ctx) {
    moelink_group_params params = params_of(ctx);
    for (rlim_t spare = 0; spare < 2; ++spare) {
        struct transport transport = {ctx, MOELINK_OK, 0, 0, 0};
        moelink_group *group = NULL;
        struct rlimit before, few;
        int lowest = dup(STDERR_FILENO);
        close(lowest);
        RANK_EQUAL(ctx, getrlimit(RLIMIT_NOFILE, &before), 0);
        few = before;
        few.rlim_cur = (rlim_t)lowest + spare;
        if (ctx->rank == 1) RANK_EQUAL(ctx, setrlimit(RLIMIT_NOFILE, &few), 0);
        moelink_status status = create(&transport, &params, &group);
        RANK_EQUAL(ctx, setrlimit(RLIMIT_NOFILE, &before), 0);
        RANK_EQUAL(ctx, transport.calls, 1);
        RANK_EQUAL(ctx, status, MOELINK_ERR_INTERNAL);
        RANK_TEXT(ctx, moelink_last_error(), "rank 1: ");
        RANK_CHECK(ctx, rank_meet(ctx, 20000));
    }
}

static void run_create(int size, int threads, rank_function function, const char *name) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.no_group = 1;
    options.shared_bytes = (size_t)size * card_most;
    options.name = name;
    assert_int_equal(ranks_run(&options, function), 0);
}

static void test_own_allgather(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 3, 17};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
        run_create(sizes[i], 0, over_own_allgather, "over the caller's allgather");
        run_create(sizes[i], 1, over_own_allgather, "over the caller's allgather, threads");
    }
    run_create(2, 0, own_allgather_fails, "the caller's allgather fails");
    run_create(3, 0, own_allgather_lies, "the caller's allgather lies");
    run_create(3, 0, preparations_fail, "preparations fail");
}

/* --- threads --- */

static void makes_threads(rank_context *ctx) {
    moelink_group *groups[5];
    moelink_group_params params[5];
    for (int i = 0; i < 5; ++i) {
        moelink_group_params defaults = MOELINK_GROUP_PARAMS_INIT;
        params[i] = defaults;
        params[i].rank = 77; /* ignored */
        params[i].size = -1;
        params[i].device = MOELINK_DEVICE_HOST;
    }
    RANK_OK(ctx, moelink_group_create_threads(5, params, groups));
    for (int i = 0; i < 5; ++i) {
        RANK_EQUAL(ctx, moelink_group_rank(groups[i]), i);
        RANK_EQUAL(ctx, moelink_group_size(groups[i]), 5);
    }
    for (int i = 0; i < 5; ++i) moelink_group_destroy(groups[i]);
    RANK_OK(ctx, moelink_group_create_threads(1, NULL, groups));
    RANK_OK(ctx, moelink_group_barrier(groups[0]));
    moelink_group_destroy(groups[0]);

    params[3].device = 9;
    groups[0] = (moelink_group *)1;
    RANK_STATUS(ctx, moelink_group_create_threads(5, params, groups), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "params_each[3].device 9");
    RANK_CHECK(ctx, groups[0] == NULL);
    RANK_STATUS(ctx, moelink_group_create_threads(0, NULL, groups), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_group_create_threads(MOELINK_GROUP_MAX_RANKS + 1, NULL, groups), MOELINK_ERR_INVALID_ARGUMENT);
}

static void test_threads(void **state) {
    (void)state;
    run_create(1, 0, makes_threads, "create_threads");
}

/* --- nothing stays behind --- */

static int entries_of(const char *folder) {
    DIR *dir = opendir(folder);
    int count = 0;
    if (dir == NULL) return -1;
    while (readdir(dir) != NULL) ++count;
    closedir(dir);
    return count;
}

struct member {
    moelink_unique_id id;
    int rank;
    int orderly;
    int good;
};

/* One rank of a short life: a group, a part of it, some use, both ends. */
static void *live(void *argument) {
    struct member *member = argument;
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.rank = member->rank;
    params.size = 3;
    params.device = MOELINK_DEVICE_HOST;
    params.timeout_ns = (uint64_t)ranks_scaled_ms(20000) * 1000000u;
    moelink_group *group = NULL;
    moelink_group *part = NULL;
    char all[3 * 100];
    char mine[100] = {0};
    member->good = moelink_group_create(&member->id, &params, &group) == MOELINK_OK &&
                   moelink_group_split(group, member->rank / 2, 0, &part) == MOELINK_OK &&
                   moelink_group_allgather(group, mine, all, sizeof(mine)) == MOELINK_OK &&
                   moelink_group_barrier(part) == MOELINK_OK;
    if (member->orderly) {
        member->good = member->good && moelink_group_finalize(part) == MOELINK_OK && moelink_group_finalize(group) == MOELINK_OK;
    }
    moelink_group_destroy(group);
    moelink_group_destroy(part);
    return NULL;
}

static void one_life(rank_context *ctx, int orderly) {
    struct member members[3];
    pthread_t threads[3];
    moelink_rendezvous *server = NULL;
    moelink_unique_id id;
    RANK_OK(ctx, moelink_rendezvous_create(NULL, 3, &server, &id));
    for (int i = 0; i < 3; ++i) {
        members[i].id = id;
        members[i].rank = i;
        members[i].orderly = orderly;
        RANK_EQUAL(ctx, pthread_create(&threads[i], NULL, live, &members[i]), 0);
    }
    for (int i = 0; i < 3; ++i) pthread_join(threads[i], NULL);
    for (int i = 0; i < 3; ++i) RANK_CHECK(ctx, members[i].good);
    moelink_rendezvous_destroy(server);

    moelink_group *groups[4];
    RANK_OK(ctx, moelink_group_create_threads(4, NULL, groups));
    for (int i = 0; i < 4; ++i) moelink_group_destroy(groups[i]);
}

static void lives_many_times(rank_context *ctx) {
    for (int i = 0; i < 30; ++i) one_life(ctx, 1);
    int files = entries_of("/proc/self/fd");
    int tasks = entries_of("/proc/self/task");
    long memory = resident_kib();
    for (int i = 0; i < 100; ++i) one_life(ctx, 1);
    RANK_EQUAL(ctx, entries_of("/proc/self/fd"), files);
    RANK_EQUAL(ctx, entries_of("/proc/self/task"), tasks);
    long growth = resident_kib() - memory;
    if (!sanitized && growth > 2048) RANK_FAIL(ctx, "100 rounds left %ld KiB behind", growth);
}

static void test_nothing_stays(void **state) {
    (void)state;
    run_create(1, 0, lives_many_times, "100 lives");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_allgather),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_nothing_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
