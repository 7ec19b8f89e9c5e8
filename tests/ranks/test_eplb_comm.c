/* Communicators that move experts: exact bytes in every slot, both kinds of the host device, weights that peers can read and weights
 * that they cannot. */
#include "exchange.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifndef TEST_DEVICE
#define TEST_DEVICE MOELINK_DEVICE_HOST
#endif

static const int32_t kinds[] = {MOELINK_EPLB_COMM_STAGED, MOELINK_EPLB_COMM_READ};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]), LAYERS = 2 };

struct shape {
    int ranks, slots, experts;
    int32_t kind;
    int place;
    uint32_t flags;
    uint64_t scale;
    int rounds;
};

static void run(const struct shape *shape, int threads, const char *name, rank_function function) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = shape->ranks;
    options.threads = threads;
    options.device = TEST_DEVICE;
    options.user = (void *)shape;
    options.name = name;
    options.seed = 7;
    assert_int_equal(ranks_run(&options, function), 0);
}

/* --- exact bytes --- */

static void moves(rank_context *ctx) {
    const struct shape *shape = ctx->user;
    const int slots = shape->slots;
    int32_t maps[2][EXCHANGE_MAX_SLOTS];
    exchange_layer layers[LAYERS];
    moelink_eplb_comm *comm = exchange_comm(ctx, shape->kind, slots, shape->flags);
    for (int layer = 0; layer < LAYERS; ++layer) {
        layers[layer] = exchange_make(ctx, 3 + layer, slots, shape->scale, shape->place);
        exchange_register(ctx, comm, &layers[layer]);
    }
    for (int round = 0; round < shape->rounds; ++round) {
        for (int layer = 0; layer < LAYERS; ++layer) {
            rank_scene(ctx, "round %d, layer %d", round, layer);
            for (int i = 0; i < 2; ++i) {
                exchange_map(ctx->seed + (uint64_t)(2 * round + i) * 100 + (uint64_t)layer, ctx->size, slots, shape->experts, maps[i]);
            }
            exchange_fill(ctx, &layers[layer], maps[0] + ctx->rank * slots);
            exchange_run(ctx, comm, &layers[layer], maps[0], maps[1]);
        }
    }
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    char reasons[4096];
    RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, reasons, sizeof(reasons)));
    RANK_OK(ctx, moelink_eplb_comm_stats_of(comm, &stats));
    RANK_EQUAL(ctx, info.kind, shape->kind);
    RANK_EQUAL(ctx, info.state, MOELINK_EPLB_COMM_READY);
    RANK_EQUAL(ctx, info.layers, LAYERS);
    RANK_EQUAL(ctx, info.generation, shape->rounds * LAYERS);
    RANK_EQUAL(ctx, stats.rounds, shape->rounds * LAYERS);
    RANK_EQUAL(ctx, stats.failed_rounds, 0);
    const int reads = shape->kind == MOELINK_EPLB_COMM_READ && (shape->place == EXCHANGE_MEMORY || ctx->threads || TEST_DEVICE == MOELINK_DEVICE_CUDA);
    RANK_EQUAL(ctx, info.read_peers, reads ? ctx->size - 1 : 0);
    RANK_EQUAL(ctx, info.staged_peers, reads ? 0 : ctx->size - 1);
    if (shape->kind == MOELINK_EPLB_COMM_READ && !reads && ctx->size > 1) RANK_TEXT(ctx, reasons, "tensor 0 of layer 3: it lies in no moelink_memory");
    RANK_EQUAL(ctx, stats.received_bytes[MOELINK_EPLB_LINK_LOCAL], 0);
    RANK_EQUAL(ctx, stats.received_bytes[reads ? MOELINK_EPLB_LINK_HOST : MOELINK_EPLB_LINK_PEER], 0);
    RANK_EQUAL(ctx, stats.received_bytes[reads ? MOELINK_EPLB_LINK_PEER : MOELINK_EPLB_LINK_HOST],
               stats.experts_received * exchange_expert_bytes(&layers[0]));
    const uint64_t staged = (shape->flags & MOELINK_EPLB_COMM_F_DIRECT) != 0 ? 0 : (uint64_t)slots;
    RANK_EQUAL(ctx, info.staging_bytes, staged * exchange_staged_bytes(&layers[0]));
    const int checks = (shape->flags & MOELINK_EPLB_COMM_F_CHECKSUM) != 0;
    RANK_EQUAL(ctx, stats.checked_experts, checks ? (long long)stats.experts_received : 0);
    uint64_t all[RANKS_MAX][2], mine[2] = {stats.experts_sent, stats.experts_received}, sums[2] = {0, 0};
    RANK_OK(ctx, moelink_group_allgather(ctx->group, mine, all, sizeof(mine)));
    for (int rank = 0; rank < ctx->size; ++rank) {
        for (int i = 0; i < 2; ++i) sums[i] += all[rank][i];
    }
    RANK_EQUAL(ctx, sums[0], sums[1]);
    RANK_CHECK(ctx, sums[0] > 0 || ctx->size == 1);
    moelink_eplb_comm_destroy(comm);
    RANK_OK(ctx, moelink_group_barrier(ctx->group)); /* peers may read this rank's rows until they too are done */
    for (int layer = 0; layer < LAYERS; ++layer) exchange_free(ctx, &layers[layer]);
}

static void test_maps(void **state) {
    (void)state;
    /* ranks, slots and experts of vLLM's test matrix, and others */
    static const int sizes[][3] = {{2, 2, 3}, {2, 8, 16}, {4, 2, 6}, {4, 2, 5}, {4, 8, 16}, {1, 4, 3}, {8, 3, 10}};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
        for (int kind = 0; kind < KINDS; ++kind) {
            for (int place = 0; place < EXCHANGE_PLACES; ++place) {
                const struct shape shape = {sizes[i][0], sizes[i][1], sizes[i][2], kinds[kind], place, 0, 5, 3};
                for (int threads = 0; threads < 2; ++threads) run(&shape, threads, "maps", moves);
            }
        }
    }
}

static void test_checksum(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        const struct shape shape = {4, 4, 9, kinds[kind], EXCHANGE_MEMORY, MOELINK_EPLB_COMM_F_CHECKSUM, 5, 2};
        run(&shape, 0, "checksum", moves);
    }
}

/* --- straight into memory that is not live; one expert for all --- */

static void all_to_all(rank_context *ctx) {
    const struct shape *shape = ctx->user;
    exchange_layer layer = exchange_make(ctx, 0, 1, shape->scale, shape->place);
    exchange_layer landing = exchange_make(ctx, 0, ctx->size, shape->scale, EXCHANGE_PLAIN);
    moelink_eplb_comm *comm = exchange_comm(ctx, shape->kind, 0, shape->flags);
    exchange_register(ctx, comm, &layer);
    for (int round = 0; round < shape->rounds; ++round) exchange_direct(ctx, comm, &layer, &landing);
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    uint64_t waits[RANKS_MAX];
    stats.wait_ns = waits;
    stats.wait_count = ctx->size;
    RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, NULL, 0));
    RANK_OK(ctx, moelink_eplb_comm_stats_of(comm, &stats));
    RANK_EQUAL(ctx, info.staging_bytes, 0);
    RANK_EQUAL(ctx, stats.wait_count, ctx->size);
    RANK_EQUAL(ctx, waits[ctx->rank], 0);
    for (int rank = 0; rank < ctx->size; ++rank) RANK_CHECK(ctx, rank == ctx->rank || waits[rank] > 0);
    RANK_EQUAL(ctx, stats.received_bytes[MOELINK_EPLB_LINK_LOCAL], (uint64_t)shape->rounds * exchange_expert_bytes(&layer));
    moelink_eplb_comm_destroy(comm);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    exchange_free(ctx, &layer);
    exchange_free(ctx, &landing);
}

static void test_direct(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        for (int place = 0; place < EXCHANGE_PLACES; ++place) {
            const struct shape shape = {5, 1, 5, kinds[kind], place, MOELINK_EPLB_COMM_F_DIRECT, 40, 3};
            for (int threads = 0; threads < 2; ++threads) run(&shape, threads, "direct", all_to_all);
        }
    }
}

/* --- new tensors for a layer, ranks with unequal slots, rows that are no slot's --- */

static void uneven(rank_context *ctx) {
    const struct shape *shape = ctx->user;
    const int slots = ctx->rank == 1 ? 0 : 1 + ctx->rank; /* 1, 0, 3 */
    static const int32_t before[] = {4, 1, 2, 3}, after[] = {4, 4, 2, 3};
    const int first = ctx->rank == 2 ? 1 : 0;
    moelink_rows rows[EXCHANGE_TENSORS];
    moelink_eplb_comm *comm = exchange_comm(ctx, shape->kind, 2, shape->flags);
    exchange_layer old = exchange_make(ctx, 5, slots, shape->scale, EXCHANGE_PLAIN);
    exchange_register(ctx, comm, &old);
    exchange_layer layer = exchange_make(ctx, 5, slots, shape->scale, shape->place);
    exchange_register(ctx, comm, &layer); /* replaces the one before */
    exchange_free(ctx, &old);
    exchange_fill(ctx, &layer, before + first);
    RANK_STATUS(ctx, moelink_eplb_comm_set_transfer_context(comm, before, 3, 5), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "3 elements and layer 5 has 4 slots");
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, before, 4, 5));
    exchange_layer aside = exchange_make(ctx, 5, 1, shape->scale, EXCHANGE_PLAIN);
    const int32_t wanted = 4;
    exchange_fill(ctx, &aside, &wanted);
    if (ctx->rank == 0) {
        exchange_rows(&aside, 0, rows); /* a copy of expert 4 that is no slot's: it is staged */
        RANK_OK(ctx, moelink_eplb_comm_add_send(comm, rows, EXCHANGE_TENSORS, 2, 4));
    } else if (ctx->rank == 2) {
        exchange_rows(&layer, 0, rows);
        RANK_OK(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, 0, 4));
    }
    RANK_OK(ctx, moelink_eplb_comm_execute(comm));
    exchange_check(ctx, &layer, after + first);
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    RANK_OK(ctx, moelink_eplb_comm_stats_of(comm, &stats));
    RANK_EQUAL(ctx, stats.received_bytes[MOELINK_EPLB_LINK_HOST], ctx->rank == 2 ? exchange_expert_bytes(&layer) : 0);
    moelink_eplb_comm_destroy(comm);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    exchange_free(ctx, &layer);
    exchange_free(ctx, &aside);
}

static void test_uneven(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        const struct shape shape = {3, 0, 0, kinds[kind], EXCHANGE_MEMORY, 0, 5, 1};
        run(&shape, 0, "uneven", uneven);
    }
}

/* Experts of more than many chunks. */
static void test_large(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        const struct shape shape = {3, 3, 7, kinds[kind], EXCHANGE_PLAIN, 0, 3000, 1};
        for (int threads = 0; threads < 2; ++threads) run(&shape, threads, "large", moves);
    }
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_checksum),
        cmocka_unit_test(test_direct),
        cmocka_unit_test(test_uneven),
        cmocka_unit_test(test_large),
    };
    return cmocka_run_group_tests_name("expert exchange", tests, NULL, NULL);
}
