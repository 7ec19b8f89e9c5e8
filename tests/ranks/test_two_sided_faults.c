/* Rounds of a two-sided manager that are lost and repaired, a rank that is killed while rows travel, and what is refused. */
#include "plan.h"
#include "two_sided_round.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { MEET_MS = 30000 };

/* --- rounds that are lost, and abandon that repairs them --------------------------------------------------------------------- */

static void repaired(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    moelink_manager *manager = NULL;
    moe_geometry geometry;
    moe_geometry_plain(ctx->size, 40, 3, 4 * ctx->size, 600, MOELINK_DTYPE_F32, &geometry);
    geometry.slots = 2;
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    /* Ranks that share a GPU take turns on it, with the smallest FIFOs at each tile. */
    config.timeout_ns = (uint64_t)ranks_scaled_ms(ctx->device == MOELINK_DEVICE_CUDA ? 4000 : 400) * 1000000u;
    config.fifo_bytes = 4096;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_TWO_SIDED, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    int last = ctx->size - 1;
    for (int step = 0; step < 3; ++step) { /* lost in prepare, in alltoallv, in combine */
        two_sided_round round, other;
        int lost = (step + 1) % 2;
        two_sided_start(ctx, &round, manager, &geometry, 100 + (uint64_t)step, stream);
        two_sided_start(ctx, &other, manager, &geometry, 200 + (uint64_t)step, stream);
        round.shape.slot = lost;
        other.shape.slot = 1 - lost;
        two_sided_prepare(ctx, &other); /* in flight when the other slot's round is lost */
        two_sided_check_prepared(ctx, &other);
        if (step > 0) {
            two_sided_prepare(ctx, &round);
            two_sided_check_prepared(ctx, &round);
        }
        RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
        if (ctx->rank != last) {
            moelink_status status = MOELINK_OK;
            uint64_t bytes = 2400, rows = (uint64_t)(round.capacity * ctx->size);
            void *from = device_alloc(ctx, bytes * rows), *to = device_alloc(ctx, bytes * rows);
            moelink_rows tensor = {from, bytes, 0, MOELINK_DTYPE_F32, 0}, output = {to, bytes, 0, MOELINK_DTYPE_F32, 0};
            device_set(ctx, from, 0, bytes * rows);
            if (step == 0) {
                moelink_prepare_args args = MOELINK_PREPARE_ARGS_INIT;
                args.slot = lost;
                moelink_prepared_init(&round.prepared);
                status = moelink_prepare(manager, &args, stream, &round.prepared);
            } else if (step == 1) {
                if (round.tokens == 0) tensor.data = NULL;
                status = moelink_alltoallv(manager, lost, &tensor, 1, &output, stream);
            } else {
                moelink_combine_args args = MOELINK_COMBINE_ARGS_INIT;
                args.slot = lost;
                args.input = tensor;
                args.output = output;
                status = moelink_combine(manager, &args, stream);
            }
            RANK_STATUS(ctx, status, ctx->device == MOELINK_DEVICE_CUDA ? MOELINK_OK : MOELINK_ERR_TIMEOUT);
            device_sync(ctx, stream);
            RANK_STATUS(ctx, moelink_manager_fault(manager), MOELINK_ERR_TIMEOUT);
            MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_FAULTED, 1);
            device_free(ctx, from);
            device_free(ctx, to);
        }
        RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
        RANK_OK(ctx, moelink_manager_abandon(manager, 1 - lost)); /* repairs all slots */
        RANK_OK(ctx, moelink_manager_fault(manager));
        MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
        two_sided_end(ctx, &round);
        two_sided_end(ctx, &other);
        for (uint64_t i = 0; i < 3; ++i) two_sided_whole_round(ctx, manager, &geometry, 300 + 10u * (uint64_t)step + i, stream);
    }
    moelink_manager_destroy(manager);
    device_stream_destroy(ctx, stream);
}

static void test_abandon_repairs(void **state) {
    (void)state;
    for (int ranks = 2; ranks <= 3; ++ranks) {
        rank_options options = plan_options(TEST_DEVICE, "repaired", ranks, 0);
        PLAN_RUN(&options, repaired);
    }
}

/* --- a rank that is killed while rows travel --------------------------------------------------------------------------------- */

static void kill_soon(void) {
    struct sigevent event;
    struct itimerspec when;
    timer_t timer;
    memset(&event, 0, sizeof(event));
    memset(&when, 0, sizeof(when));
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGKILL;
    when.it_value.tv_nsec = 50 * 1000000;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &when, NULL) != 0) raise(SIGKILL);
}

static void bereaved(rank_context *ctx) {
    moelink_manager *manager = NULL;
    moe_geometry geometry;
    moe_geometry_plain(ctx->size, 60, 3, 4 * ctx->size, 600, MOELINK_DTYPE_F32, &geometry);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    config.timeout_ns = (uint64_t)ranks_scaled_ms(5000) * 1000000u;
    config.fifo_bytes = 1;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_TWO_SIDED, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    two_sided_round round;
    two_sided_start(ctx, &round, manager, &geometry, 12, NULL);
    two_sided_prepare(ctx, &round);
    uint64_t bytes = 3000, rows = (uint64_t)(round.capacity * ctx->size);
    void *from = device_alloc(ctx, bytes * rows), *to = device_alloc(ctx, bytes * rows);
    moelink_rows tensor = {from, bytes, 0, 0, 0}, output = {to, bytes, 0, 0, 0};
    device_set(ctx, from, 1, bytes * rows);
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    if (ctx->rank == 1) kill_soon();
    moelink_status status = MOELINK_OK;
    while (status == MOELINK_OK) status = moelink_alltoallv(manager, 0, &tensor, 1, &output, NULL);
    if (status != MOELINK_ERR_TIMEOUT) RANK_STATUS(ctx, status, MOELINK_ERR_PEER_EXITED);
    RANK_TEXT(ctx, moelink_last_error(), "rank 1");
    status = moelink_manager_abandon(manager, 0); /* the group is not whole */
    RANK_CHECK(ctx, status == MOELINK_ERR_PEER_EXITED || status == MOELINK_ERR_TIMEOUT);
    RANK_OK(ctx, moelink_manager_cleanup(manager));
    device_free(ctx, from);
    device_free(ctx, to);
    two_sided_end(ctx, &round);
    moelink_manager_destroy(manager);
}

static void test_killed_while_rows_travel(void **state) {
    (void)state;
    static const int victim = 1;
    rank_options options = plan_options(MOELINK_DEVICE_HOST, "killed while rows travel", 3, 0);
    options.dying = &victim;
    options.dying_count = 1;
    options.no_finalize = 1;
    PLAN_RUN(&options, bereaved);
}

/* --- refusals ---------------------------------------------------------------------------------------------------------------- */

/* A dispatch repeats the routing of the last dispatch, and none once another one was prepared. `memory` has room for 32 rows of the geometry's. */
static void routing_forgotten(rank_context *ctx, moelink_manager *manager, void *memory, moelink_stream stream) {
    moelink_rows rows = {memory, 160, 0, MOELINK_DTYPE_F32, 0}, received;
    moelink_dispatch_args dispatch = MOELINK_DISPATCH_ARGS_INIT;
    moelink_dispatched dispatched = MOELINK_DISPATCHED_INIT;
    moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT;
    moelink_prepare_args prepare = MOELINK_PREPARE_ARGS_INIT;
    moelink_prepared prepared = MOELINK_PREPARED_INIT;
    dispatch.payloads = &rows;
    dispatch.payload_count = 1;
    dispatched.payloads = &received;
    combine.input = combine.output = rows;
    for (int repeat = 0; repeat < 2; ++repeat) {
        RANK_OK(ctx, moelink_dispatch(manager, &dispatch, stream, &dispatched));
        RANK_OK(ctx, moelink_combine(manager, &combine, stream));
        dispatch.flags = MOELINK_DISPATCH_F_CACHED_ROUTING;
    }
    RANK_OK(ctx, moelink_prepare(manager, &prepare, stream, &prepared));
    RANK_OK(ctx, moelink_combine(manager, &combine, stream));
    RANK_STATUS(ctx, moelink_dispatch(manager, &dispatch, stream, &dispatched), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_last_error(), "no dispatch whose routing");
}

static void refusals(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    moe_geometry geometry;
    moe_geometry_plain(ctx->size, 8, 2, 9, 40, MOELINK_DTYPE_F32, &geometry);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    moelink_prepare_args args = MOELINK_PREPARE_ARGS_INIT;
    moelink_prepared prepared = MOELINK_PREPARED_INIT;
    moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT;
    int64_t *memory = device_alloc(ctx, 8192);
    moelink_rows tensor = {memory, 16, 0, 0, 0}, output = {memory, 16, 0, 0, 0};
    for (int i = 0; i < PLAN_KINDS; ++i) {
        moelink_manager *manager = NULL;
        RANK_OK(ctx, moelink_manager_create(ctx->group, plan_kinds[i], NULL, &manager));
        RANK_OK(ctx, moelink_manager_init(manager, &config));
        if (plan_kinds[i] != MOELINK_MANAGER_TWO_SIDED) {
            RANK_STATUS(ctx, moelink_prepare(manager, &args, stream, &prepared), MOELINK_ERR_UNSUPPORTED);
            RANK_TEXT(ctx, moelink_last_error(), "two-sided");
            RANK_STATUS(ctx, moelink_alltoallv(manager, 0, &tensor, 1, &output, stream), MOELINK_ERR_UNSUPPORTED);
            RANK_STATUS(ctx, moelink_alltoallv_combine(manager, &combine, stream), MOELINK_ERR_UNSUPPORTED);
            moelink_manager_destroy(manager);
            continue;
        }
#define REFUSE(field, value, status, part)                                                        \
    do {                                                                                          \
        moelink_prepare_args bad = args;                                                          \
        bad.field = (value);                                                                      \
        RANK_STATUS(ctx, moelink_prepare(manager, &bad, stream, &prepared), (status));            \
        RANK_TEXT(ctx, moelink_last_error(), (part));                                             \
    } while (0)
        REFUSE(slot, 1, MOELINK_ERR_INVALID_ARGUMENT, "slot");
        REFUSE(num_tokens, -1, MOELINK_ERR_INVALID_ARGUMENT, "num_tokens");
        REFUSE(num_tokens, 9, MOELINK_ERR_TOO_SMALL, "num_tokens");
        REFUSE(num_tokens, 1, MOELINK_ERR_INVALID_ARGUMENT, "topk_ids");
        REFUSE(topk_ids_dtype, MOELINK_DTYPE_F32, MOELINK_ERR_INVALID_ARGUMENT, "topk_ids_dtype");
        REFUSE(layout, MOELINK_LAYOUT_EXPERT_MAJOR, MOELINK_ERR_UNSUPPORTED, "layout");
        REFUSE(num_statistics, 2, MOELINK_ERR_INVALID_ARGUMENT, "statistics");
        REFUSE(num_statistics, 10, MOELINK_ERR_TOO_SMALL, "num_statistics");
        REFUSE(sm_budget, -1, MOELINK_ERR_INVALID_ARGUMENT, "sm_budget");
        REFUSE(flags, 1, MOELINK_ERR_UNSUPPORTED, "flags");
        REFUSE(reserved, 1, MOELINK_ERR_INVALID_ARGUMENT, "reserved");
#undef REFUSE
        RANK_STATUS(ctx, moelink_alltoallv(manager, 0, &tensor, 1, &output, stream), MOELINK_ERR_INVALID_STATE);
        RANK_STATUS(ctx, moelink_prepare(manager, NULL, stream, &prepared), MOELINK_ERR_INVALID_ARGUMENT);
        RANK_STATUS(ctx, moelink_prepare(manager, &args, stream, NULL), MOELINK_ERR_INVALID_ARGUMENT);
        MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
        RANK_OK(ctx, moelink_prepare(manager, &args, stream, &prepared)); /* no tokens anywhere */
        MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_DISPATCHED, 1);
        RANK_STATUS(ctx, moelink_prepare(manager, &args, stream, &prepared), MOELINK_ERR_INVALID_STATE);
        RANK_STATUS(ctx, moelink_alltoallv(manager, 0, NULL, 1, &output, stream), MOELINK_ERR_INVALID_ARGUMENT);
        RANK_STATUS(ctx, moelink_alltoallv(manager, 0, &tensor, 17, &output, stream), MOELINK_ERR_INVALID_ARGUMENT);
        moelink_rows nowhere = output;
        nowhere.data = NULL;
        RANK_STATUS(ctx, moelink_alltoallv(manager, 0, &tensor, 1, &nowhere, stream), MOELINK_ERR_INVALID_ARGUMENT);
        nowhere = output;
        nowhere.row_bytes = 8;
        RANK_STATUS(ctx, moelink_alltoallv(manager, 0, &tensor, 1, &nowhere, stream), MOELINK_ERR_TOO_SMALL);
        RANK_OK(ctx, moelink_alltoallv(manager, 0, &tensor, 1, &output, stream));
        RANK_OK(ctx, moelink_alltoallv(manager, 0, NULL, 0, NULL, stream));
        RANK_OK(ctx, moelink_manager_abandon(manager, 0));
        MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 1);
        routing_forgotten(ctx, manager, memory, stream);
        moelink_manager_destroy(manager);
    }
    device_free(ctx, memory);
    device_stream_destroy(ctx, stream);
}

static void test_refusals(void **state) {
    (void)state;
    rank_options options = plan_options(TEST_DEVICE, "refusals", 2, 0);
    PLAN_RUN(&options, refusals);
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_abandon_repairs),
        cmocka_unit_test(test_killed_while_rows_travel),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("two-sided faults", tests, NULL, NULL);
}
