/* Communicators that move experts when not all is well: peers that come late, go, die at each step of a round; data that change on
 * the way; many communicators one after the other; the model at work meanwhile. Whatever happens, a slot holds what it held before
 * the round or what it was to get, and never a mix. */
#include "countdown.h"
#include "exchange.h"
#include "leftovers.h"
#include "moe_case.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static const int32_t kinds[] = {MOELINK_EPLB_COMM_STAGED, MOELINK_EPLB_COMM_READ};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]), SLOTS = 3, EXPERTS = 9 };

struct plan {
    int32_t kind;
    int step; /* of the victim; -1: nobody dies */
};

static void queue_round(rank_context *ctx, moelink_eplb_comm *comm, const exchange_layer *layer, const int32_t *from, const int32_t *to) {
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, from, (int64_t)ctx->size * SLOTS, layer->number));
    exchange_queue(ctx, comm, layer, from, to);
}

static void nap_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* --- a peer that comes too late --- */

static void one_is_late(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    int32_t from[64], to[64];
    const int late = 2;
    moelink_eplb_comm *comm = NULL;
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    exchange_two_maps(ctx->size, SLOTS, from, to);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, 4, EXCHANGE_MEMORY);
    exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, plan->kind, &comm));
    params.timeout_ns = (uint64_t)ranks_scaled_ms(1000) * 1000000u;
    RANK_OK(ctx, moelink_eplb_comm_init(comm, &params));
    exchange_register(ctx, comm, &layer);
    queue_round(ctx, comm, &layer, from, to);
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    if (ctx->rank == late) RANK_CHECK(ctx, rank_meet(ctx, 20000)); /* the others have given up */
    RANK_STATUS(ctx, moelink_eplb_comm_execute(comm), MOELINK_ERR_TIMEOUT);
    RANK_TEXT(ctx, moelink_last_error(), "did not come: 2");
    if (ctx->rank != late) RANK_CHECK(ctx, rank_meet(ctx, 20000));
    exchange_check(ctx, &layer, from + ctx->rank * SLOTS);
    RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_READY);
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    /* The queues are empty, and the next round, another one, is a good one, whatever of the last one is still on its way. */
    for (int i = 0; i < ctx->size * SLOTS; ++i) to[i] = from[(i + 3 * SLOTS) % (ctx->size * SLOTS)];
    exchange_run(ctx, comm, &layer, from, to);
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    moelink_eplb_comm_destroy(comm);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    exchange_free(ctx, &layer);
}

static void run(int size, int threads, struct plan plan, const char *name, rank_function function) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.user = &plan;
    options.name = name;
    assert_int_equal(ranks_run(&options, function), 0);
}

static void test_late(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        for (int threads = 0; threads < 2; ++threads) run(4, threads, (struct plan){kinds[kind], -1}, "late", one_is_late);
    }
}

/* --- a peer that gives its communicator up --- */

static void one_goes(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    int32_t from[64], to[64];
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    exchange_two_maps(ctx->size, SLOTS, from, to);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, 4, EXCHANGE_MEMORY);
    exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
    moelink_eplb_comm *comm = exchange_comm(ctx, plan->kind, SLOTS, 0);
    exchange_register(ctx, comm, &layer);
    if (ctx->rank == 1) {
        RANK_OK(ctx, moelink_eplb_comm_cleanup(comm));
    } else {
        moelink_status status = MOELINK_OK;
        /* The news may come before the round, or in it. */
        if (moelink_eplb_comm_set_transfer_context(comm, from, (int64_t)ctx->size * SLOTS, 0) == MOELINK_OK) {
            const int32_t mine = from[ctx->rank * SLOTS];
            status = moelink_eplb_comm_add_send(comm, NULL, 0, 1, mine);
            if (status == MOELINK_OK) status = moelink_eplb_comm_execute(comm);
            RANK_CHECK(ctx, status == MOELINK_ERR_PEER_EXITED || status == MOELINK_ERR_INVALID_STATE);
        }
        RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_POISONED);
        RANK_STATUS(ctx, moelink_eplb_comm_execute(comm), MOELINK_ERR_INVALID_STATE);
        RANK_TEXT(ctx, moelink_last_error(), "poisoned");
        RANK_STATUS(ctx, moelink_eplb_comm_ensure(comm, &params), MOELINK_ERR_INVALID_STATE);
    }
    exchange_check(ctx, &layer, from + ctx->rank * SLOTS);
    RANK_OK(ctx, moelink_group_barrier(ctx->group)); /* the group itself is well */
    RANK_OK(ctx, moelink_eplb_comm_reinit(comm, &params));
    exchange_register(ctx, comm, &layer);
    exchange_run(ctx, comm, &layer, from, to);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_eplb_comm_destroy(comm);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    exchange_free(ctx, &layer);
}

static void test_gone(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        for (int threads = 0; threads < 2; ++threads) run(3, threads, (struct plan){kinds[kind], -1}, "gone", one_goes);
    }
}

/* --- killed at each step --- */

/* begins, offers out, 2 offers in, 3 experts, votes, agreed, done */
enum { VICTIM = 1, STEPS = 10 };

static void dies(rank_context *ctx) {
    static countdown steps;
    const struct plan *plan = ctx->user;
    int32_t from[64], to[64];
    exchange_two_maps(ctx->size, SLOTS, from, to);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, 4, EXCHANGE_MEMORY);
    moelink_eplb_comm *comm = exchange_comm(ctx, plan->kind, SLOTS, 0);
    exchange_register(ctx, comm, &layer);
    exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
    exchange_run(ctx, comm, &layer, from, to);
    exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
    queue_round(ctx, comm, &layer, from, to);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    countdown_start(ctx, &steps, 2, VICTIM, plan->step);
    const moelink_status status = moelink_eplb_comm_execute(comm);
    countdown_stop(ctx);
    const int news = exchange_which(ctx, &layer, from + ctx->rank * SLOTS, to + ctx->rank * SLOTS);
    if (news < 0) RANK_FAIL(ctx, "slot %d holds neither what it held nor what it was to get", -2 - news);
    RANK_EQUAL(ctx, news, status == MOELINK_OK ? SLOTS : 0);
    if (plan->step >= 0) {
        RANK_CHECK(ctx, ctx->rank != VICTIM);
        if (status != MOELINK_OK) {
            RANK_CHECK(ctx, status == MOELINK_ERR_PEER_EXITED || status == MOELINK_ERR_INVALID_STATE); /* the latter: it knew before */
            RANK_TEXT(ctx, moelink_last_error(), "rank 1 ");
            RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_POISONED);
        }
    } else {
        RANK_OK(ctx, status);
        RANK_EQUAL(ctx, steps.total, STEPS);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
    }
    moelink_eplb_comm_destroy(comm);
    exchange_free(ctx, &layer);
}

static int run_deadly(int32_t kind, int size, int step) {
    static const int victim = VICTIM;
    static char report[1 << 16];
    const struct plan plan = {kind, step};
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.user = (void *)&plan;
    options.name = moelink_eplb_comm_kind_name(kind);
    options.no_finalize = 1;
    options.report = report;
    options.report_bytes = sizeof(report);
    if (step >= 0) {
        options.dying = &victim;
        options.dying_count = 1;
    }
    const int failed = ranks_run(&options, dies);
    if (failed != 0) print_message("step %d: %s\n", step, report);
    return failed;
}

static void test_killed(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        assert_int_equal(run_deadly(kinds[kind], 3, -1), 0);
        for (int step = 0; step < STEPS; ++step) assert_int_equal(run_deadly(kinds[kind], 3, step), 0);
    }
}

/* --- data that change on the way --- */

struct vandal {
    char mark[48];
    unsigned char *at;
};

static void spoil(void *user, int32_t level, const char *text) {
    struct vandal *vandal = user;
    (void)level;
    if (strncmp(text, vandal->mark, strlen(vandal->mark)) == 0) *vandal->at ^= 1;
}

/* Rank 0's rows change after it has said what they are: the receiver must find out, and all ranks keep what they have. */
static void changes(rank_context *ctx) {
    static struct vandal vandal;
    const struct plan *plan = ctx->user;
    int32_t from[64], to[64];
    exchange_two_maps(ctx->size, SLOTS, from, to);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, 4, EXCHANGE_MEMORY);
    moelink_eplb_comm *comm = exchange_comm(ctx, plan->kind, SLOTS, MOELINK_EPLB_COMM_F_CHECKSUM);
    exchange_register(ctx, comm, &layer);
    exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
    queue_round(ctx, comm, &layer, from, to);
    snprintf(vandal.mark, sizeof(vandal.mark), "round 1: rank %d has sent its offers", ctx->rank);
    vandal.at = (unsigned char *)layer.tensors[2].base + 3;
    /* The receiver, rank 2, comes when the damage is done. */
    if (ctx->rank == 0) moelink_log_set_callback(spoil, &vandal);
    if (ctx->rank == 0) RANK_OK(ctx, moelink_log_set_level(MOELINK_LOG_DEBUG));
    if (ctx->rank == 2) nap_ms(200);
    RANK_STATUS(ctx, moelink_eplb_comm_execute(comm), MOELINK_ERR_INTERNAL);
    RANK_TEXT(ctx, moelink_last_error(), "rank 2: layer 0: expert 0 of rank 0 arrived with another code than it was sent with");
    RANK_OK(ctx, moelink_log_set_level(MOELINK_LOG_WARN));
    moelink_log_set_callback(NULL, NULL);
    if (ctx->rank == 0) *vandal.at ^= 1;
    exchange_check(ctx, &layer, from + ctx->rank * SLOTS);
    exchange_run(ctx, comm, &layer, from, to);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_eplb_comm_destroy(comm);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    exchange_free(ctx, &layer);
}

static void test_changed_data(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) run(3, 0, (struct plan){kinds[kind], -1}, "changes", changes);
}

/* --- nothing is left behind --- */

static int count_maps(const char *part) {
    FILE *file = fopen("/proc/self/maps", "re");
    char line[512];
    int count = 0;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) count += strstr(line, part) != NULL;
    if (file != NULL) fclose(file);
    return count;
}

static void many(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    enum { TIMES = 100 };
    int32_t from[64], to[64];
    int files = 0, mappings = 0, tasks = 0;
    long memory = 0;
    exchange_two_maps(ctx->size, SLOTS, from, to);
    for (int i = 0; i < TIMES; ++i) {
        rank_scene(ctx, "communicator %d", i);
        exchange_layer layer = exchange_make(ctx, 0, SLOTS, 4, EXCHANGE_MEMORY);
        moelink_eplb_comm *comm = exchange_comm(ctx, plan->kind, SLOTS, 0);
        exchange_register(ctx, comm, &layer);
        exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
        exchange_run(ctx, comm, &layer, from, to);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
        moelink_eplb_comm_destroy(comm);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
        exchange_free(ctx, &layer);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
        if (i == 9) {
            files = settled_entries("/proc/self/fd", 0);
            mappings = count_maps("memfd");
            tasks = count_entries("/proc/self/task");
            memory = resident_kib();
        }
    }
    RANK_EQUAL(ctx, settled_entries("/proc/self/fd", files), files);
    RANK_EQUAL(ctx, count_maps("memfd"), mappings);
    RANK_EQUAL(ctx, count_entries("/proc/self/task"), tasks);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)memory; /* sanitizers hold freed memory back, and find leaks themselves */
#else
    RANK_CHECK(ctx, resident_kib() < memory + 8192); /* one ring a communicator would be far more */
#endif
}

static void test_many(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) run(2, 0, (struct plan){kinds[kind], -1}, "many", many);
}

/* --- the model works meanwhile --- */

struct mover {
    rank_context *ctx;
    moelink_eplb_comm *comm;
    const exchange_layer *layer;
    int32_t from[64], to[64];
    int rounds;
    moelink_status status;
    char text[512];
};

/* Rounds there and back; no call that may fail the rank from this thread. */
static void *move_experts(void *user) {
    struct mover *mover = user;
    const int slots = SLOTS, ranks = mover->ctx->size;
    const int next = (mover->ctx->rank + 1) % ranks, before = (mover->ctx->rank + ranks - 1) % ranks;
    moelink_rows rows[EXCHANGE_TENSORS];
    for (int round = 0; round < mover->rounds && mover->status == MOELINK_OK; ++round) {
        const int32_t *from = round % 2 == 0 ? mover->from : mover->to, *to = round % 2 == 0 ? mover->to : mover->from;
        const int source = round % 2 == 0 ? next : before, target = round % 2 == 0 ? before : next;
        mover->status = moelink_eplb_comm_set_transfer_context(mover->comm, from, (int64_t)ranks * slots, mover->layer->number);
        for (int slot = 0; slot < slots && mover->status == MOELINK_OK; ++slot) {
            mover->status = moelink_eplb_comm_add_send(mover->comm, NULL, 0, target, from[mover->ctx->rank * slots + slot]);
            if (mover->status != MOELINK_OK) break;
            exchange_rows(mover->layer, slot, rows);
            mover->status = moelink_eplb_comm_add_recv(mover->comm, rows, EXCHANGE_TENSORS, source, to[mover->ctx->rank * slots + slot]);
        }
        if (mover->status == MOELINK_OK) mover->status = moelink_eplb_comm_execute(mover->comm);
    }
    if (mover->status != MOELINK_OK) snprintf(mover->text, sizeof(mover->text), "%s", moelink_last_error());
    return NULL;
}

static void works_meanwhile(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    moe_geometry geometry;
    moelink_manager *manager = NULL;
    struct mover mover;
    pthread_t thread;
    memset(&mover, 0, sizeof(mover));
    exchange_two_maps(ctx->size, SLOTS, mover.from, mover.to);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, 200, EXCHANGE_MEMORY);
    exchange_fill(ctx, &layer, mover.from + ctx->rank * SLOTS);
    mover.comm = exchange_comm(ctx, plan->kind, SLOTS, MOELINK_EPLB_COMM_F_ASYNC);
    exchange_register(ctx, mover.comm, &layer);
    mover.ctx = ctx;
    mover.layer = &layer;
    mover.rounds = 41;
    moe_geometry_random(5, ctx->size, 20000, &geometry);
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_ONE_SIDED, NULL, &manager));
    RANK_EQUAL(ctx, pthread_create(&thread, NULL, move_experts, &mover), 0);
    /* The model's group is in use too: init, barriers and what the reference kind does are collectives on its connections. */
    const moelink_manager_config config = moe_config(&geometry, ctx->rank);
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    for (int round = 0; round < 30; ++round) {
        moe_work(ctx, manager, MOELINK_MANAGER_ONE_SIDED, &geometry, (uint64_t)round, NULL);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
    }
    RANK_EQUAL(ctx, pthread_join(thread, NULL), 0);
    if (mover.status != MOELINK_OK) RANK_FAIL(ctx, "%s: %s", moelink_status_name(mover.status), mover.text);
    exchange_check(ctx, &layer, mover.to + ctx->rank * SLOTS);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_manager_destroy(manager);
    moelink_eplb_comm_destroy(mover.comm);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    exchange_free(ctx, &layer);
}

static void test_beside_the_model(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; ++kind) {
        for (int threads = 0; threads < 2; ++threads) run(3, threads, (struct plan){kinds[kind], -1}, "beside", works_meanwhile);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late),     cmocka_unit_test(test_gone), cmocka_unit_test(test_killed), cmocka_unit_test(test_changed_data),
        cmocka_unit_test(test_many),     cmocka_unit_test(test_beside_the_model),
    };
    return cmocka_run_group_tests_name("faults of exchange communicators", tests, NULL, NULL);
}
