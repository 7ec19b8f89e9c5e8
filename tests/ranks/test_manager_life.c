/* Life cycle of every kind of manager: init, ensure, reinit, cleanup, destroy, what failure leaves behind, and what is left after
 * a hundred of them. */
#include "moe_case.h"
#include "plan.h"

#include <dirent.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static moelink_manager *create(rank_context *ctx, moelink_group *group, int32_t kind) {
    moelink_manager *manager = NULL;
    RANK_OK(ctx, moelink_manager_create(group, kind, NULL, &manager));
    return manager;
}

static moe_geometry geometry_of(const rank_context *ctx, int tokens, int top_k) {
    moe_geometry geometry;
    moe_geometry_plain(ctx->size, tokens, top_k, 5 * ctx->size + 1, 48, MOELINK_DTYPE_F32, &geometry);
    geometry.payload_count = 2;
    geometry.row_bytes[1] = 7;
    geometry.slots = 2;
    return geometry;
}

/* Runs a function for every kind that this group can have. */
static void for_each_kind(rank_context *ctx, void (*body)(rank_context *ctx, int32_t kind, moelink_stream stream)) {
    moelink_stream stream = device_stream_create(ctx);
    for (int i = 0; i < PLAN_KINDS; ++i) {
        rank_scene(ctx, "%s", moelink_manager_kind_name(plan_kinds[i]));
        body(ctx, plan_kinds[i], stream);
        rank_scene(ctx, "%s", "");
    }
    device_stream_destroy(ctx, stream);
}

static void run(const char *name, rank_function function, int ranks) {
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = plan_options(TEST_DEVICE, name, ranks, threads);
        PLAN_RUN(&options, function);
    }
}

/* --- the whole way --------------------------------------------------------------------------------------------------- */

static void expect_no_sizes(rank_context *ctx, const moelink_manager *manager) {
    moelink_manager_sizes sizes;
    memset(&sizes, 0xA5, sizeof(sizes));
    sizes.struct_size = sizeof(sizes);
    RANK_OK(ctx, moelink_manager_sizes_of(manager, &sizes));
    RANK_EQUAL(ctx, sizes.slots_per_rank, 0);
    RANK_CHECK(ctx,
               sizes.workspace_bytes == 0 && sizes.dispatch_bytes == 0 && sizes.combine_bytes == 0 && sizes.control_bytes == 0);
}

static void life(rank_context *ctx, int32_t kind, moelink_stream stream) {
    moe_geometry small = geometry_of(ctx, 20, 3), large = geometry_of(ctx, 50, 4);
    moelink_manager_config small_config = moe_config(&small, ctx->rank), large_config = moe_config(&large, ctx->rank);
    moelink_manager_sizes query = MOELINK_MANAGER_SIZES_INIT, have = MOELINK_MANAGER_SIZES_INIT;
    moelink_dispatch_args dispatch = MOELINK_DISPATCH_ARGS_INIT;
    moelink_dispatched dispatched = MOELINK_DISPATCHED_INIT;
    moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT;
    small_config.timeout_ns = UINT64_MAX; /* for ever, not "already over" */
    moelink_manager *manager = create(ctx, ctx->group, kind);
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_CREATED, 0);
    expect_no_sizes(ctx, manager);
    RANK_STATUS(ctx, moelink_dispatch(manager, &dispatch, stream, &dispatched), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_combine(manager, &combine, stream), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_manager_abandon(manager, 0), MOELINK_ERR_INVALID_STATE);
    RANK_OK(ctx, moelink_manager_cleanup(manager));
    RANK_OK(ctx, moelink_manager_fault(manager));

    RANK_OK(ctx, moelink_manager_query(ctx->group, kind, &small_config, &query));
    RANK_OK(ctx, moelink_manager_init(manager, &small_config));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
    RANK_OK(ctx, moelink_manager_sizes_of(manager, &have));
    RANK_EQUAL(ctx, have.slots_per_rank, 20);
    RANK_EQUAL(ctx, have.slots_per_rank, query.slots_per_rank);
    RANK_EQUAL(ctx, have.dispatch_bytes, query.dispatch_bytes);
    RANK_EQUAL(ctx, have.combine_bytes, query.combine_bytes);
    RANK_EQUAL(ctx, have.control_bytes, query.control_bytes);
    RANK_CHECK(ctx, have.workspace_bytes >= have.dispatch_bytes + have.combine_bytes + have.control_bytes);
    RANK_CHECK(ctx, have.dispatch_bytes >= 2u * 20u * (uint64_t)ctx->size * (48u * 4u + 7u));
    moe_work(ctx, manager, kind, &small, 1, stream);

    RANK_STATUS(ctx, moelink_manager_init(manager, &large_config), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_manager_error(manager), "initialised");
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
    RANK_OK(ctx, moelink_manager_ensure(manager, &small_config));
    RANK_OK(ctx, moelink_manager_ensure(manager, &small_config));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
    moe_work(ctx, manager, kind, &small, 2, stream);

    RANK_OK(ctx, moelink_manager_reinit(manager, &large_config));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 2);
    RANK_OK(ctx, moelink_manager_sizes_of(manager, &have));
    RANK_EQUAL(ctx, have.slots_per_rank, 50);
    moe_work(ctx, manager, kind, &large, 3, stream);
    RANK_OK(ctx, moelink_manager_reinit(manager, &small_config));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 3);
    RANK_OK(ctx, moelink_manager_sizes_of(manager, &have));
    RANK_EQUAL(ctx, have.slots_per_rank, 20);
    RANK_EQUAL(ctx, have.dispatch_bytes, query.dispatch_bytes);
    moe_work(ctx, manager, kind, &small, 4, stream);

    RANK_OK(ctx, moelink_manager_cleanup(manager));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_CREATED, 3);
    expect_no_sizes(ctx, manager);
    RANK_OK(ctx, moelink_manager_cleanup(manager));
    RANK_STATUS(ctx, moelink_dispatch(manager, &dispatch, stream, &dispatched), MOELINK_ERR_INVALID_STATE);
    RANK_OK(ctx, moelink_manager_init(manager, &large_config));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 4);
    moe_work(ctx, manager, kind, &large, 5, stream);
    RANK_OK(ctx, moelink_manager_cleanup(manager));
    RANK_OK(ctx, moelink_manager_ensure(manager, &small_config));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 5);
    moe_work(ctx, manager, kind, &small, 6, stream);
    moelink_manager_destroy(manager);
    moelink_manager_destroy(NULL);
}

static void lives(rank_context *ctx) {
    for_each_kind(ctx, life);
}

static void test_life(void **state) {
    (void)state;
    run("life", lives, 2);
    run("life", lives, 1);
}

/* --- any order of destruction ------------------------------------------------------------------------------------------ */

static void orders(rank_context *ctx, int32_t kind, moelink_stream stream) {
    moe_geometry geometry = geometry_of(ctx, 9, 2);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    for (int order = 0; order < 5; ++order) {
        moelink_group *group = NULL, *child = NULL;
        RANK_OK(ctx, moelink_group_split(ctx->group, 0, ctx->rank, &group));
        if (order == 4) { /* the parent goes before what was split from it */
            RANK_OK(ctx, moelink_group_split(group, 0, ctx->rank, &child));
            moelink_group_destroy(group);
            group = child;
        }
        moelink_manager *manager = create(ctx, group, kind);
        if (order == 0) moelink_group_destroy(group); /* before init: the manager keeps it */
        RANK_OK(ctx, moelink_manager_init(manager, &config));
        if (order == 1) moelink_group_destroy(group);
        moe_work(ctx, manager, kind, &geometry, (uint64_t)order, stream);
        if (order == 2) { /* with a round in flight */
            moe_flight flight;
            moe_round round;
            moe_round_plain(5, ctx->size, 4, 48, MOELINK_DTYPE_F32, &round);
            moe_flight_prepare(ctx, &flight, manager, kind, &geometry, &round, stream);
            moe_flight_dispatch(ctx, &flight, manager);
            moe_flight_check_dispatch(ctx, &flight);
            MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_DISPATCHED, 1);
            moelink_manager_destroy(manager);
            moe_flight_free(ctx, &flight);
        } else {
            moelink_manager_destroy(manager);
        }
        if (order >= 2) moelink_group_destroy(group);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
    }
}

static void all_orders(rank_context *ctx) {
    for_each_kind(ctx, orders);
}

static void test_any_order_of_destruction(void **state) {
    (void)state;
    run("order of destruction", all_orders, 2);
}

/* --- a failed init or reinit ------------------------------------------------------------------------------------------ */

/* One field on the last rank contradicts the others'. Returns the two numbers that the text must name. */
static int contradict(int step, int last, moelink_manager_config *config, uint64_t *rows, const char **one, const char **other) {
    rows[0] = 192;
    rows[1] = 7;
    config->payload_row_bytes = rows;
    static const char *const names[][2] = {{"3", "5"},     {"11", "12"}, {"2", "1"}, {"7", "8"},
                                           {"192", "160"}, {"2", "4"},   {"0", "4"}};
    if (step >= 7) return 0;
    *one = names[step][0];
    *other = names[step][1];
    if (!last) return 1;
    if (step == 0) config->top_k = 5;
    if (step == 1) config->num_experts = 12;
    if (step == 2) config->payload_count = 1;
    if (step == 3) rows[1] = 8;
    if (step == 4) config->combine_row_bytes = 160;
    if (step == 5) config->slots = 4;
    if (step == 6) config->provider = MOELINK_MEMORY_HOST_SHM;
    return 1;
}

static void failures(rank_context *ctx, int32_t kind, moelink_stream stream) {
    moe_geometry geometry = geometry_of(ctx, 12, 3);
    geometry.experts = 11;
    moelink_manager_config good = moe_config(&geometry, ctx->rank);
    moelink_manager *manager = create(ctx, ctx->group, kind);
    int last = ctx->rank == ctx->size - 1;
    for (int ready = 0; ready < 2; ++ready) { /* init on CREATED, then reinit on READY */
        int32_t state = ready ? MOELINK_STATE_READY : MOELINK_STATE_CREATED;
        moelink_status (*call)(moelink_manager *, const moelink_manager_config *) =
            ready ? moelink_manager_reinit : moelink_manager_init;
        const char *one, *other;
        uint64_t rows[2];
        moelink_manager_config config = good;
        for (int step = 0; contradict(step, last, &config, rows, &one, &other); ++step, config = good) {
            if (step == 6 && ctx->device == MOELINK_DEVICE_CUDA) continue; /* no such provider there */
            RANK_STATUS(ctx, call(manager, &config), MOELINK_ERR_MISMATCH);
            RANK_TEXT(ctx, moelink_last_error(), one);
            RANK_TEXT(ctx, moelink_last_error(), other);
            RANK_TEXT(ctx, moelink_manager_error(manager), other);
            MOE_EXPECT_STATE(ctx, manager, state, (uint64_t)ready);
        }
        if (last) config.max_tokens = -3; /* a bad value on one rank is every rank's error */
        RANK_STATUS(ctx, call(manager, &config), MOELINK_ERR_INVALID_ARGUMENT);
        RANK_TEXT(ctx, moelink_last_error(), "-3");
        if (!last) RANK_TEXT(ctx, moelink_last_error(), "rank");
        MOE_EXPECT_STATE(ctx, manager, state, (uint64_t)ready);

        uint64_t huge[2] = {1u << 30, 1u << 30};
        config = good;
        config.payload_row_bytes = huge;
        config.max_tokens = 1 << 24;
        RANK_STATUS(ctx, call(manager, &config), MOELINK_ERR_OUT_OF_MEMORY);
        MOE_EXPECT_STATE(ctx, manager, state, (uint64_t)ready);
        config.slots = MOELINK_MAX_SLOTS; /* beyond 64 bits */
        config.max_tokens = 1 << 24;
        config.top_k = MOELINK_MAX_TOP_K;
        config.combine_row_bytes = 1u << 30;
        RANK_STATUS(ctx, call(manager, &config), MOELINK_ERR_OUT_OF_MEMORY);
        MOE_EXPECT_STATE(ctx, manager, state, (uint64_t)ready);
        if (!ready) RANK_OK(ctx, moelink_manager_init(manager, &good));
        moe_work(ctx, manager, kind, &geometry, 1, stream);
        MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
    }
    moelink_manager_destroy(manager);
}

static void all_failures(rank_context *ctx) {
    for_each_kind(ctx, failures);
}

static void test_failed_init_changes_nothing(void **state) {
    (void)state;
    run("failed init", all_failures, 2);
}

/* --- ensure ------------------------------------------------------------------------------------------------------------ */

/* Layers of a model ask one after the other; the workspace becomes the union of what they ask. */
static void layers(rank_context *ctx, int32_t kind, moelink_stream stream) {
    moe_geometry first = geometry_of(ctx, 16, 3), second = first, both;
    first.row_bytes[0] = 256;
    first.row_bytes[1] = 16;
    first.combine_row_bytes = 512;
    first.slots = 1;
    second = first;
    for (int rank = 0; rank < ctx->size; ++rank) second.max_tokens[rank] = 32;
    second.capacity = 32;
    second.row_bytes[0] = 128;
    second.row_bytes[1] = 33;
    second.combine_row_bytes = 256;
    second.slots = 2;
    both = second;
    both.row_bytes[0] = 256;
    both.combine_row_bytes = 512;
    moelink_manager_config a = moe_config(&first, ctx->rank), b = moe_config(&second, ctx->rank),
                           c = moe_config(&both, ctx->rank);
    moelink_manager *manager = create(ctx, ctx->group, kind);
    a.flags = MOELINK_MANAGER_F_NO_GROW; /* the first workspace is no growth */
    RANK_OK(ctx, moelink_manager_ensure(manager, &a));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
    b.flags = MOELINK_MANAGER_F_NO_GROW;
    RANK_STATUS(ctx, moelink_manager_ensure(manager, &b), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_last_error(), "16");
    RANK_TEXT(ctx, moelink_last_error(), "32");
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
    RANK_OK(ctx, moelink_manager_ensure(manager, &a));
    b.flags = 0;
    RANK_OK(ctx, moelink_manager_ensure(manager, &b));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 2);
    RANK_OK(ctx, moelink_manager_ensure(manager, &a));
    b.flags = MOELINK_MANAGER_F_NO_GROW;
    RANK_OK(ctx, moelink_manager_ensure(manager, &b));
    RANK_OK(ctx, moelink_manager_ensure(manager, &c));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 2);
    moe_work(ctx, manager, kind, &first, 1, stream);
    moe_work(ctx, manager, kind, &second, 2, stream);
    moe_work(ctx, manager, kind, &both, 3, stream);
    moelink_manager_sizes have = MOELINK_MANAGER_SIZES_INIT, query = MOELINK_MANAGER_SIZES_INIT;
    RANK_OK(ctx, moelink_manager_sizes_of(manager, &have));
    RANK_OK(ctx, moelink_manager_query(ctx->group, kind, &c, &query));
    RANK_EQUAL(ctx, have.dispatch_bytes, query.dispatch_bytes);
    RANK_EQUAL(ctx, have.combine_bytes, query.combine_bytes);

    moelink_manager_config wrong = c;
    wrong.top_k = 4;
    RANK_STATUS(ctx, moelink_manager_ensure(manager, &wrong), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "top_k is 4");
    RANK_TEXT(ctx, moelink_last_error(), "3");
    wrong = c;
    wrong.num_experts = 77;
    RANK_STATUS(ctx, moelink_manager_ensure(manager, &wrong), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "77");
    wrong = c;
    wrong.payload_count = 0;
    RANK_STATUS(ctx, moelink_manager_ensure(manager, &wrong), MOELINK_ERR_INVALID_ARGUMENT);
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 2);

    moe_flight flight; /* growth must not pull the workspace from under a round */
    moe_round round;
    moe_round_random(&both, 9, &round);
    round.combine = 1;
    moe_flight_prepare(ctx, &flight, manager, kind, &both, &round, stream);
    moe_flight_dispatch(ctx, &flight, manager);
    moelink_manager_config larger = c;
    larger.max_tokens = 40;
    RANK_STATUS(ctx, moelink_manager_ensure(manager, &larger), MOELINK_ERR_INVALID_STATE);
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_DISPATCHED, 2);
    moe_flight_check_dispatch(ctx, &flight);
    moe_flight_experts(ctx, &flight);
    moe_flight_combine(ctx, &flight, manager);
    moe_flight_check_combine(ctx, &flight);
    moe_flight_free(ctx, &flight);
    RANK_OK(ctx, moelink_manager_ensure(manager, &larger));
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 3);
    moe_work(ctx, manager, kind, &both, 4, stream);
    moelink_manager_destroy(manager);
}

/* Ranks may ask for different numbers of tokens; the largest counts. */
static void uneven(rank_context *ctx, int32_t kind, moelink_stream stream) {
    moe_geometry geometry = geometry_of(ctx, 10, 2);
    for (int rank = 0; rank < ctx->size; ++rank) geometry.max_tokens[rank] = 5 + 7 * rank;
    geometry.capacity = 5 + 7 * (ctx->size - 1);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    moelink_manager *manager = create(ctx, ctx->group, kind);
    RANK_OK(ctx, moelink_manager_ensure(manager, &config));
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    RANK_OK(ctx, moelink_manager_sizes_of(manager, &sizes));
    RANK_EQUAL(ctx, sizes.slots_per_rank, geometry.capacity);
    moe_work(ctx, manager, kind, &geometry, 1, stream);
    moelink_manager_destroy(manager);
}

static void all_layers(rank_context *ctx) {
    for_each_kind(ctx, layers);
    for_each_kind(ctx, uneven);
}

static void test_ensure_by_layers(void **state) {
    (void)state;
    run("ensure", all_layers, 2);
}

/* --- leaks --------------------------------------------------------------------------------------------------------------- */

struct held {
    int descriptors;
    int mappings;
    size_t heap;
    uint64_t device;
};

static struct held held_now(rank_context *ctx) {
    struct held held = {0, 0, 0, 0};
    DIR *folder = opendir("/proc/self/fd");
    while (folder != NULL && readdir(folder) != NULL) ++held.descriptors;
    if (folder != NULL) closedir(folder);
    FILE *maps = fopen("/proc/self/maps", "r");
    for (int byte; maps != NULL && (byte = fgetc(maps)) != EOF;) held.mappings += byte == '\n';
    if (maps != NULL) fclose(maps);
    held.heap = mallinfo2().uordblks;
    held.device = device_free_bytes(ctx);
    return held;
}

static void create_and_destroy(rank_context *ctx, int32_t kind, moelink_stream stream) {
    enum { WARM = 10, ROUNDS = 100 };
    moe_geometry geometry = geometry_of(ctx, 9, 2);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    struct held before = {0, 0, 0, 0}, after;
    for (int i = 0; i < WARM + ROUNDS; ++i) {
        moelink_group *group = NULL;
        RANK_OK(ctx, moelink_group_split(ctx->group, 0, ctx->rank, &group));
        moelink_manager *manager = create(ctx, group, kind);
        RANK_OK(ctx, moelink_manager_init(manager, &config));
        if (i % 10 == 0) moe_work(ctx, manager, kind, &geometry, (uint64_t)i, stream);
        if (i % 3 == 0) RANK_OK(ctx, moelink_manager_cleanup(manager));
        if (i % 3 == 1) RANK_OK(ctx, moelink_manager_reinit(manager, &config));
        moelink_manager_destroy(manager);
        moelink_group_destroy(group);
        if (i + 1 == WARM) {
            RANK_OK(ctx, moelink_group_barrier(ctx->group));
            before = held_now(ctx);
        }
    }
    RANK_OK(ctx, moelink_group_barrier(ctx->group)); /* peers on this GPU are done too */
    after = held_now(ctx);
    RANK_CHECK(ctx, before.descriptors > 3 && before.mappings > 5);
    /* a connection that a peer has just closed may still be held at either moment */
    if (after.descriptors > before.descriptors + 4) {
        RANK_FAIL(ctx, "%d descriptors, %d before", after.descriptors, before.descriptors);
    }
    if (after.mappings > before.mappings + 30) RANK_FAIL(ctx, "%d mappings, %d before", after.mappings, before.mappings);
    size_t slack = ctx->device == MOELINK_DEVICE_CUDA ? 64u << 10 : 4u << 10; /* the driver keeps things of its own */
    if (after.heap > before.heap + slack) RANK_FAIL(ctx, "heap of %zu bytes, %zu before", after.heap, before.heap);
    if (after.device + (32u << 20) < before.device) {
        RANK_FAIL(ctx, "%llu bytes of GPU memory free, %llu before", (unsigned long long)after.device,
                  (unsigned long long)before.device);
    }
}

static void all_leaks(rank_context *ctx) {
    for_each_kind(ctx, create_and_destroy);
}

static void test_no_leak_over_100_rounds(void **state) {
    (void)state;
    rank_options options = plan_options(TEST_DEVICE, "leaks", 2, 0);
    options.deadline_ms = 300000;
    PLAN_RUN(&options, all_leaks);
}

/* Starts this program once more without malloc's caches a thread: mallinfo2 takes what lies in them for used, and they fill for
 * hundreds of rounds. */
static void restart_without_caches(char **argv) {
    if (getenv("GLIBC_TUNABLES") != NULL) return;
    setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0", 1);
    execv("/proc/self/exe", argv);
}

int main(int argc, char **argv) {
    (void)argc;
    restart_without_caches(argv);
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_any_order_of_destruction),
        cmocka_unit_test(test_failed_init_changes_nothing),
        cmocka_unit_test(test_ensure_by_layers),
        cmocka_unit_test(test_no_leak_over_100_rounds),
    };
    return cmocka_run_group_tests_name("manager life", tests, NULL, NULL);
}
