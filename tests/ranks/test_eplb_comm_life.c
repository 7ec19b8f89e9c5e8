/* Communicators that move experts: states, names, what is refused and how it is said, rounds that contradict, reinit. */
#include "exchange.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const int32_t kinds[] = {MOELINK_EPLB_COMM_STAGED, MOELINK_EPLB_COMM_READ};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

static void run(int size, int threads, int32_t kind, rank_function function) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.user = &kind;
    options.name = moelink_eplb_comm_kind_name(kind);
    assert_int_equal(ranks_run(&options, function), 0);
}

static void run_kinds(int size, rank_function function) {
    for (int kind = 0; kind < KINDS; ++kind) {
        for (int threads = 0; threads < 2; ++threads) run(size, threads, kinds[kind], function);
    }
}

/* --- names --- */

static void test_names(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int32_t kind;
    } names[] = {{"auto", MOELINK_EPLB_COMM_AUTO}, {"staged", MOELINK_EPLB_COMM_STAGED},   {"torch_gloo", MOELINK_EPLB_COMM_STAGED},
                 {"gloo", MOELINK_EPLB_COMM_STAGED}, {"read", MOELINK_EPLB_COMM_READ}, {"nixl", MOELINK_EPLB_COMM_READ}};
    int32_t kind = -1;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); ++i) {
        assert_int_equal(moelink_eplb_comm_kind_of(names[i].name, &kind), MOELINK_OK);
        assert_int_equal(kind, names[i].kind);
    }
    kind = -5;
    static const char *const none[] = {"", " ", "torch_gloo gloo", "glo", "READ"};
    for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); ++i) {
        assert_int_equal(moelink_eplb_comm_kind_of(none[i], &kind), MOELINK_ERR_INVALID_ARGUMENT);
        assert_int_equal(kind, -5);
    }
    assert_non_null(strstr(moelink_last_error(), "nixl"));
    assert_string_equal(moelink_eplb_comm_kind_name(MOELINK_EPLB_COMM_READ), "read");
    assert_string_equal(moelink_eplb_comm_kind_name(99), "unknown");
    char text[512];
    for (int i = 0; i < KINDS; ++i) {
        assert_int_equal(moelink_eplb_comm_kind_describe(kinds[i], MOELINK_DEVICE_HOST, text, sizeof(text)), MOELINK_OK);
        assert_true(strlen(text) > 20);
    }
    assert_int_equal(moelink_eplb_comm_kind_describe(MOELINK_EPLB_COMM_READ, MOELINK_DEVICE_HOST, text, 3), MOELINK_ERR_TOO_SMALL);
    assert_int_equal(moelink_eplb_comm_kind_describe(77, MOELINK_DEVICE_HOST, text, sizeof(text)), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_comm_kind_describe(MOELINK_EPLB_COMM_READ, 0, text, sizeof(text)), MOELINK_ERR_INVALID_ARGUMENT);
}

/* --- states --- */

static void lives(rank_context *ctx) {
    const int32_t kind = *(const int32_t *)ctx->user;
    moelink_eplb_comm *comm = NULL;
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT, others = MOELINK_EPLB_COMM_PARAMS_INIT;
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    char reasons[1024] = "";
    others.staging_experts = 9;
    RANK_OK(ctx, moelink_eplb_comm_query(ctx->group, kind, &others, 1000, &info, reasons, sizeof(reasons)));
    RANK_EQUAL(ctx, info.staging_bytes, 9000);
    RANK_EQUAL(ctx, info.kind, kind);
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, kind, &comm));
    RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_CREATED);
    RANK_STATUS(ctx, moelink_eplb_comm_execute(comm), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_eplb_comm_set_transfer_context(comm, NULL, 0, 0), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, 0, 0), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_eplb_comm_error(comm), "needs an initialised communicator");
    RANK_OK(ctx, moelink_eplb_comm_cleanup(comm));

    /* Params that are bad on one rank, and params that contradict: no rank is initialised. */
    if (ctx->size > 1) {
        moelink_eplb_comm_params bad = MOELINK_EPLB_COMM_PARAMS_INIT;
        if (ctx->rank == 1) bad.chunk_bytes = 1;
        RANK_STATUS(ctx, moelink_eplb_comm_init(comm, &bad), MOELINK_ERR_INVALID_ARGUMENT);
        RANK_TEXT(ctx, moelink_last_error(), "rank 1: params.chunk_bytes is 1");
        RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_CREATED);
        bad.chunk_bytes = ctx->rank == 0 ? 8192 : 4096;
        RANK_STATUS(ctx, moelink_eplb_comm_init(comm, &bad), MOELINK_ERR_MISMATCH);
        RANK_TEXT(ctx, moelink_last_error(), "params.chunk_bytes is 8192 on rank 0 and 4096 on rank 1");
        RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_CREATED);
    }
    RANK_OK(ctx, moelink_eplb_comm_ensure(comm, &params));
    RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_READY);
    RANK_OK(ctx, moelink_eplb_comm_ensure(comm, &params));
    RANK_STATUS(ctx, moelink_eplb_comm_ensure(comm, &others), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_eplb_comm_init(comm, &params), MOELINK_ERR_INVALID_STATE);
    RANK_EQUAL(ctx, moelink_eplb_comm_needs_reservation(comm), 0);
    RANK_OK(ctx, moelink_eplb_comm_execute(comm)); /* a round of nothing */

    exchange_layer layer = exchange_make(ctx, 2, 2, 3, EXCHANGE_PLAIN);
    int32_t map[64], next[64];
    exchange_map(1, ctx->size, 2, 2 * ctx->size, map);
    for (int i = 0; i < 2 * ctx->size; ++i) next[i] = map[(i + 2) % (2 * ctx->size)]; /* to the rank before */
    for (int round = 0; round < 3; ++round) {
        rank_scene(ctx, "round %d", round);
        exchange_register(ctx, comm, &layer);
        exchange_fill(ctx, &layer, map + 2 * ctx->rank);
        exchange_run(ctx, comm, &layer, map, next);
        if (ctx->size > 1) {
            RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, map, 2 * ctx->size, 2));
            RANK_OK(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, (ctx->rank + 1) % ctx->size, map[2 * ctx->rank]));
            RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_QUEUED);
        }
        RANK_OK(ctx, moelink_group_barrier(ctx->group)); /* a rank that is early would poison the others' */
        /* What is queued is dropped. */
        RANK_OK(ctx, round == 0 ? moelink_eplb_comm_reinit(comm, &others) : moelink_eplb_comm_cleanup(comm));
        if (round != 0) RANK_OK(ctx, moelink_eplb_comm_init(comm, &params));
        RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_READY);
        RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, NULL, 0));
        RANK_EQUAL(ctx, info.layers, 0);
        RANK_EQUAL(ctx, info.staging_bytes, 0);
        RANK_EQUAL(ctx, info.staging_experts, round == 0 ? 9 : 4);
        RANK_EQUAL(ctx, info.generation, round + 2);
    }
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_eplb_comm_destroy(comm);
    moelink_eplb_comm_destroy(NULL);
    exchange_free(ctx, &layer);
}

static void test_life(void **state) {
    (void)state;
    run_kinds(1, lives);
    run_kinds(3, lives);
}

static void chooses(rank_context *ctx) {
    moelink_eplb_comm *comm = NULL;
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    char reasons[1024] = "";
    RANK_OK(ctx, moelink_eplb_comm_query(ctx->group, MOELINK_EPLB_COMM_AUTO, &params, 1000, &info, reasons, sizeof(reasons)));
    RANK_EQUAL(ctx, info.kind, MOELINK_EPLB_COMM_READ);
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, MOELINK_EPLB_COMM_AUTO, &comm));
    RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, NULL, 0));
    RANK_EQUAL(ctx, info.kind, MOELINK_EPLB_COMM_AUTO);
    RANK_OK(ctx, moelink_eplb_comm_init(comm, &params));
    RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, reasons, sizeof(reasons)));
    RANK_EQUAL(ctx, info.kind, MOELINK_EPLB_COMM_READ);
    RANK_TEXT(ctx, reasons, "read: all ranks are on one host");
    moelink_eplb_comm_destroy(comm);
    RANK_STATUS(ctx, moelink_eplb_comm_create(ctx->group, 42, &comm), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_CHECK(ctx, comm == NULL);
}

static void test_auto(void **state) {
    (void)state;
    run(2, 0, MOELINK_EPLB_COMM_AUTO, chooses);
}

/* --- what one rank is refused --- */

static void refuses(rank_context *ctx) {
    moelink_eplb_comm *comm = exchange_comm(ctx, *(const int32_t *)ctx->user, 1, 0);
    exchange_layer layer = exchange_make(ctx, 0, 2, 3, EXCHANGE_PLAIN);
    const int32_t map[] = {0, 1, 2, -1};
    moelink_rows rows[EXCHANGE_TENSORS];
    exchange_register(ctx, comm, &layer);
    exchange_rows(&layer, 1, rows);
    RANK_STATUS(ctx, moelink_eplb_comm_add_send(comm, rows, EXCHANGE_TENSORS, 0, 0), MOELINK_ERR_INVALID_STATE); /* no context */
    RANK_STATUS(ctx, moelink_eplb_comm_set_transfer_context(comm, map, 4, 1), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "layer 1 is not registered");
    RANK_STATUS(ctx, moelink_eplb_comm_set_transfer_context(comm, map, 3, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "old_indices has 3 elements and layer 0 has 4 slots");
    RANK_STATUS(ctx, moelink_eplb_comm_set_transfer_context(comm, NULL, 4, 0), MOELINK_ERR_INVALID_ARGUMENT);
    const int32_t wrong[] = {0, 1, -2, 3};
    RANK_STATUS(ctx, moelink_eplb_comm_set_transfer_context(comm, wrong, 4, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "old_indices[2] is -2");
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, NULL, 0, 0));
    RANK_STATUS(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, 0, 0), MOELINK_ERR_INVALID_ARGUMENT); /* no old_indices */
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, map, 4, 0));
    RANK_STATUS(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, 0, 7), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "expert 7 in none of the slots");
    RANK_STATUS(ctx, moelink_eplb_comm_add_send(comm, rows, EXCHANGE_TENSORS, 2, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_comm_add_send(comm, rows, EXCHANGE_TENSORS, -1, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_comm_add_send(comm, rows, EXCHANGE_TENSORS, 0, -1), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_comm_add_recv(comm, rows, 2, 0, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "count is 2, and layer 0 has 4 tensors");
    RANK_STATUS(ctx, moelink_eplb_comm_add_recv(comm, NULL, 0, 0, 0), MOELINK_ERR_INVALID_ARGUMENT);
    moelink_rows other[EXCHANGE_TENSORS];
    memcpy(other, rows, sizeof(rows));
    other[2].row_bytes = 8;
    RANK_STATUS(ctx, moelink_eplb_comm_add_recv(comm, other, EXCHANGE_TENSORS, 0, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "tensors[2].row_bytes is 8, and layer 0 was registered with 7");
    other[2].row_bytes = 7;
    other[3].row_stride = 1;
    RANK_STATUS(ctx, moelink_eplb_comm_add_recv(comm, other, EXCHANGE_TENSORS, 0, 0), MOELINK_ERR_INVALID_ARGUMENT);
    other[3].data = NULL;
    RANK_STATUS(ctx, moelink_eplb_comm_add_recv(comm, other, EXCHANGE_TENSORS, 0, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_READY);

    const int32_t mine = map[2 * ctx->rank], theirs = map[2 - 2 * ctx->rank];
    RANK_OK(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, 1 - ctx->rank, mine));
    RANK_STATUS(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, 1 - ctx->rank, mine), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "is queued for rank");
    RANK_OK(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, 1 - ctx->rank, theirs));
    RANK_STATUS(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, ctx->rank, theirs), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "a rank receives an expert once");
    RANK_STATUS(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, 1 - ctx->rank, 9), MOELINK_ERR_TOO_SMALL);
    RANK_TEXT(ctx, moelink_last_error(), "the staging holds 1 experts");
    RANK_STATUS(ctx, moelink_eplb_comm_set_transfer_context(comm, map, 4, 0), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, layer.tensors, EXCHANGE_TENSORS, 2), MOELINK_ERR_INVALID_STATE);
    exchange_fill(ctx, &layer, map + 2 * ctx->rank);
    RANK_OK(ctx, moelink_eplb_comm_execute(comm)); /* the refusals changed nothing */
    const int32_t after[] = {mine, theirs};
    exchange_check(ctx, &layer, after);

    uint64_t waits[2];
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    stats.wait_ns = waits;
    stats.wait_count = 1;
    RANK_STATUS(ctx, moelink_eplb_comm_stats_of(comm, &stats), MOELINK_ERR_TOO_SMALL);
    moelink_eplb_comm_destroy(comm);
    exchange_free(ctx, &layer);
}

static void test_refusals(void **state) {
    (void)state;
    run_kinds(2, refuses);
}

/* --- layers that contradict --- */

static void registers(rank_context *ctx) {
    moelink_eplb_comm *comm = exchange_comm(ctx, *(const int32_t *)ctx->user, 1, 0);
    exchange_layer layer = exchange_make(ctx, 0, 2, 3, EXCHANGE_PLAIN);
    moelink_eplb_tensor tensors[EXCHANGE_TENSORS];
    const int odd = ctx->rank == 2;
    memcpy(tensors, layer.tensors, sizeof(tensors));
    if (odd) tensors[1].row_bytes = 20;
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, tensors, EXCHANGE_TENSORS, 2), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "tensor 1 of layer 0 has 5 rows of 24 bytes an expert on rank 0 and 5 of 20 on rank 2");
    if (odd) tensors[1] = layer.tensors[1];
    if (odd) tensors[3].rows = 8;
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, tensors, EXCHANGE_TENSORS, 2), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "tensor 3 of layer 0 has 9 rows of 2 bytes an expert on rank 0 and 8 of 2 on rank 2");
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, layer.tensors, odd ? 3 : 4, 2), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "layer 0 has 4 tensors on rank 0 and 3 on rank 2");
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, odd, layer.tensors, 4, 2), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "rank 0 registers layer 0 and rank 2 layer 1");
    /* What is wrong on one rank fails on all. */
    memcpy(tensors, layer.tensors, sizeof(tensors));
    if (odd) tensors[0].row_stride = 95;
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, tensors, 4, 2), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "rank 2: tensor 0 of layer 0: its row_stride 95 is below its row_bytes 96");
    if (odd) tensors[0] = (moelink_eplb_tensor){NULL, 0, UINT64_MAX / 2, 96, 0};
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, tensors, 4, 2), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, odd ? NULL : layer.tensors, 4, 2), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, layer.tensors, odd ? 0 : 4, 2), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, odd ? -1 : 0, layer.tensors, 4, 2), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_comm_register(comm, 0, layer.tensors, 4, odd ? -1 : 2), MOELINK_ERR_INVALID_ARGUMENT);
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, NULL, 0));
    RANK_EQUAL(ctx, info.layers, 0);
    exchange_register(ctx, comm, &layer);
    moelink_eplb_comm_destroy(comm);
    exchange_free(ctx, &layer);
}

static void test_layers_that_contradict(void **state) {
    (void)state;
    run_kinds(3, registers);
}

/* --- rounds that contradict --- */

struct step {
    int sends, receives, layer, expert;
    int32_t indices; /* added to old_indices[0] */
};

/* Rank 1 is to get an expert of rank 0; rank 2 looks on, and must fail too. */
static void one_round(rank_context *ctx, moelink_eplb_comm *comm, exchange_layer *layers, const struct step *step, const char *wrong) {
    int32_t map[] = {5, 6, 7};
    moelink_rows rows[EXCHANGE_TENSORS];
    rank_scene(ctx, "%s", wrong != NULL ? wrong : "a good round");
    exchange_fill(ctx, &layers[0], map + ctx->rank);
    exchange_fill(ctx, &layers[1], map + ctx->rank);
    const int number = ctx->rank == 1 ? step->layer : 0;
    map[0] += ctx->rank == 1 ? step->indices : 0;
    if (ctx->rank != 2) RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, map, 3, number));
    exchange_rows(&layers[number], 0, rows);
    if (ctx->rank == 0 && step->sends) RANK_OK(ctx, moelink_eplb_comm_add_send(comm, rows, EXCHANGE_TENSORS, 1, 5));
    if (ctx->rank == 1 && step->receives) RANK_OK(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, 0, step->expert));
    map[0] = 5;
    if (wrong != NULL) {
        RANK_STATUS(ctx, moelink_eplb_comm_execute(comm), MOELINK_ERR_MISMATCH);
        RANK_TEXT(ctx, moelink_last_error(), wrong);
        RANK_TEXT(ctx, moelink_eplb_comm_error(comm), wrong);
    } else {
        RANK_OK(ctx, moelink_eplb_comm_execute(comm));
        if (ctx->rank == 1) map[1] = 5;
    }
    RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_READY);
    exchange_check(ctx, &layers[0], map + ctx->rank);
}

static void contradicts(rank_context *ctx) {
    moelink_eplb_comm *comm = exchange_comm(ctx, *(const int32_t *)ctx->user, 1, 0);
    exchange_layer layers[2];
    for (int i = 0; i < 2; ++i) {
        layers[i] = exchange_make(ctx, i, 1, 3, EXCHANGE_PLAIN);
        exchange_register(ctx, comm, &layers[i]);
    }
    static const struct {
        struct step step;
        const char *wrong;
    } rounds[] = {
        {{1, 1, 0, 5, 0}, NULL},
        {{1, 0, 0, 5, 0}, "expert 5 is to go from rank 0 to rank 1, and rank 1 has queued no receive"},
        {{0, 1, 0, 5, 0}, "expert 5 is to go from rank 0 to rank 1, and rank 0 has queued no send"},
        {{1, 1, 0, 6, 0}, "is to go from rank 0 to rank 1, and rank"},
        {{1, 1, 1, 5, 0}, "moves layer"},
        {{1, 1, 0, 5, 3}, "old_indices or the layer's shape are not the same"},
        {{0, 0, 0, 5, 3}, "layers or old_indices of rank 0 and rank 1 differ"}, /* found though nothing moves */
        {{1, 1, 0, 5, 0}, NULL},
    };
    for (size_t i = 0; i < sizeof(rounds) / sizeof(rounds[0]); ++i) one_round(ctx, comm, layers, &rounds[i].step, rounds[i].wrong);
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    RANK_OK(ctx, moelink_eplb_comm_stats_of(comm, &stats));
    RANK_EQUAL(ctx, stats.rounds, 2);
    RANK_EQUAL(ctx, stats.failed_rounds, 6);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_eplb_comm_destroy(comm);
    for (int i = 0; i < 2; ++i) exchange_free(ctx, &layers[i]);
}

static void test_rounds_that_contradict(void **state) {
    (void)state;
    run_kinds(3, contradicts);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_auto),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_layers_that_contradict),
        cmocka_unit_test(test_rounds_that_contradict),
    };
    return cmocka_run_group_tests_name("life of exchange communicators", tests, NULL, NULL);
}
