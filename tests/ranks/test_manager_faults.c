/* Peers that come late, never, die, abort or contradict, and graphs that outlive their workspace: a clear error that names the
 * peer, no hang, and a manager that can be used again. */
#include "moe_case.h"
#include "plan.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { MEET_MS = 30000 };

static moe_geometry geometry_of(int ranks) {
    moe_geometry geometry;
    moe_geometry_plain(ranks, 24, 3, 4 * ranks + 3, 40, MOELINK_DTYPE_F32, &geometry);
    return geometry;
}

static moelink_manager_config config_of(const rank_context *ctx, const moe_geometry *geometry, int timeout_ms) {
    moelink_manager_config config = moe_config(geometry, ctx->rank);
    config.timeout_ns = (uint64_t)ranks_scaled_ms(timeout_ms) * 1000000u;
    return config;
}

static void prepare(rank_context *ctx, moe_flight *flight, moelink_manager *manager, int32_t kind, const moe_geometry *geometry,
                    moelink_stream stream) {
    moe_round round;
    moe_round_plain(8, ctx->size, 12, 40, MOELINK_DTYPE_F32, &round);
    moe_flight_prepare(ctx, flight, manager, kind, geometry, &round, stream);
}

static void expect_rank(rank_context *ctx, const char *text, int rank) {
    char name[32], listed[32];
    snprintf(name, sizeof(name), "rank %d", rank);
    snprintf(listed, sizeof(listed), "did not come: %d", rank);
    if (strstr(text, listed) == NULL) RANK_TEXT(ctx, text, name);
}

/* A lost round: where the call blocks it says so itself, else the manager does once the stream is done. */
static void expect_lost(rank_context *ctx, moelink_manager *manager, int32_t kind, moelink_status status, moelink_stream stream,
                        moelink_status expected, int peer) {
    int32_t state = -1;
    if (ctx->device == MOELINK_DEVICE_CUDA && kind != MOELINK_MANAGER_REFERENCE) {
        RANK_STATUS(ctx, status, MOELINK_OK);
        device_sync(ctx, stream);
    } else {
        RANK_STATUS(ctx, status, expected);
        expect_rank(ctx, moelink_last_error(), peer);
    }
    RANK_STATUS(ctx, moelink_manager_fault(manager), expected);
    RANK_STATUS(ctx, moelink_manager_fault(manager), expected); /* it sticks */
    expect_rank(ctx, moelink_manager_error(manager), peer);
    RANK_OK(ctx, moelink_manager_state_of(manager, &state, NULL));
    RANK_EQUAL(ctx, state, MOELINK_STATE_FAULTED);
}

static void expect_refusals(rank_context *ctx, moelink_manager *manager, moe_flight *flight,
                            const moelink_manager_config *config) {
    RANK_STATUS(ctx, moelink_dispatch(manager, &flight->args, flight->stream, &flight->dispatched), MOELINK_ERR_INVALID_STATE);
    size_t length = strlen(moelink_last_error());
    RANK_STATUS(ctx, moelink_dispatch(manager, &flight->args, flight->stream, &flight->dispatched), MOELINK_ERR_INVALID_STATE);
    RANK_EQUAL(ctx, strlen(moelink_last_error()), length); /* the reason is told again, not wrapped in itself */
    RANK_STATUS(ctx, moelink_combine(manager, &flight->combine, flight->stream), MOELINK_ERR_INVALID_STATE);
    if (flight->kind != MOELINK_MANAGER_TWO_SIDED) { /* which abandon repairs, with all ranks */
        RANK_STATUS(ctx, moelink_manager_abandon(manager, 0), MOELINK_ERR_INVALID_STATE);
    }
    RANK_STATUS(ctx, moelink_manager_ensure(manager, config), MOELINK_ERR_INVALID_STATE);
}

/* --- a peer that does not come to a round -------------------------------------------------------------------------------- */

/* The reference manager's rounds go through the group's own connections, whose collectives a late rank leaves out of step: it
 * says so and is then only good for being dropped. */
static int survives(int32_t kind) {
    return kind != MOELINK_MANAGER_REFERENCE;
}

static void late(rank_context *ctx, int32_t kind, int in_combine, moelink_stream stream) {
    moe_geometry geometry = geometry_of(ctx->size);
    moelink_manager_config config = config_of(ctx, &geometry, 400);
    moelink_group *group = NULL;
    moelink_manager *manager = NULL;
    int last = ctx->size - 1;
    moe_flight flight;
    RANK_OK(ctx, moelink_group_split(ctx->group, 0, ctx->rank, &group));
    RANK_OK(ctx, moelink_manager_create(group, kind, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    prepare(ctx, &flight, manager, kind, &geometry, stream);
    if (in_combine) {
        moe_flight_dispatch(ctx, &flight, manager);
        moe_flight_check_dispatch(ctx, &flight);
        moe_flight_experts(ctx, &flight);
    }
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    if (ctx->rank != last) {
        moelink_status status = in_combine ? moelink_combine(manager, &flight.combine, stream)
                                           : moelink_dispatch(manager, &flight.args, stream, &flight.dispatched);
        expect_lost(ctx, manager, kind, status, stream, MOELINK_ERR_TIMEOUT, last);
        expect_refusals(ctx, manager, &flight, &config);
    }
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    moe_flight_free(ctx, &flight);
    if (survives(kind)) {
        config.timeout_ns = 0;
        if (in_combine) {
            RANK_OK(ctx, moelink_manager_cleanup(manager));
            RANK_OK(ctx, moelink_manager_fault(manager));
            RANK_OK(ctx, moelink_manager_init(manager, &config));
        } else {
            RANK_OK(ctx, moelink_manager_reinit(manager, &config));
        }
        RANK_OK(ctx, moelink_manager_fault(manager));
        moe_work(ctx, manager, kind, &geometry, 1, stream);
    }
    moelink_manager_destroy(manager);
    moelink_group_destroy(group);
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
}

static void all_late(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    for (int i = 0; i < 2 * PLAN_KINDS; ++i) {
        int32_t kind = plan_kinds[i / 2];
        rank_scene(ctx, "%s, late in %s", moelink_manager_kind_name(kind), i % 2 ? "combine" : "dispatch");
        late(ctx, kind, i % 2, stream);
    }
    device_stream_destroy(ctx, stream);
}

static void test_late_peer_is_named(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = plan_options(TEST_DEVICE, "late peer", 3 - threads, threads);
        if (TEST_DEVICE == MOELINK_DEVICE_CUDA) options.size = 2;
        PLAN_RUN(&options, all_late);
    }
}

/* --- a peer that does not come to init, reinit or abandon ----------------------------------------------------------------- */

static void absent(rank_context *ctx) {
    moe_geometry geometry = geometry_of(ctx->size);
    moelink_manager_config config = config_of(ctx, &geometry, 0);
    moelink_manager *manager = NULL;
    const int *step = ctx->user;
    int last = ctx->size - 1;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_ONE_SIDED, NULL, &manager));
    if (*step > 0) RANK_OK(ctx, moelink_manager_init(manager, &config));
    if (ctx->rank != last) {
        moelink_status status = *step == 0   ? moelink_manager_init(manager, &config)
                                : *step == 1 ? moelink_manager_reinit(manager, &config)
                                             : moelink_manager_abandon(manager, 0);
        RANK_STATUS(ctx, status, MOELINK_ERR_TIMEOUT);
        expect_rank(ctx, moelink_last_error(), last);
        expect_rank(ctx, moelink_manager_error(manager), last);
        int32_t state = -1;
        uint64_t generation = 99;
        RANK_OK(ctx, moelink_manager_state_of(manager, &state, &generation));
        RANK_EQUAL(ctx, generation, *step > 0);
        if (*step < 2) RANK_EQUAL(ctx, state, *step == 0 ? MOELINK_STATE_CREATED : MOELINK_STATE_READY);
    }
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    moelink_manager_destroy(manager);
}

static void test_absent_peer_is_named(void **state) {
    (void)state;
    for (int step = 0; step < 3; ++step) {
        rank_options options = plan_options(TEST_DEVICE, "absent peer", step == 1 ? 2 : 3, step == 2);
        if (TEST_DEVICE == MOELINK_DEVICE_CUDA) options.size = 2;
        options.user = &step;
        options.timeout_ns = (uint64_t)ranks_scaled_ms(1500) * 1000000u;
        options.no_finalize = 1;
        PLAN_RUN(&options, absent);
    }
}

/* --- a peer that is killed ------------------------------------------------------------------------------------------------- */

struct murder {
    int victim;
    int phase; /* 0: before init, 1: before dispatch, 2: before combine */
    int32_t kind;
};

static void die(void) {
    raise(SIGKILL);
}

static void bereaved(rank_context *ctx) {
    const struct murder *murder = ctx->user;
    moe_geometry geometry = geometry_of(ctx->size);
    moelink_manager_config config = config_of(ctx, &geometry, 5000);
    moelink_stream stream = device_stream_create(ctx);
    moelink_manager *manager = NULL;
    moe_flight flight;
    moelink_status status = MOELINK_OK;
    rank_scene(ctx, "%s, rank %d killed in phase %d", moelink_manager_kind_name(murder->kind), murder->victim, murder->phase);
    RANK_OK(ctx, moelink_manager_create(ctx->group, murder->kind, NULL, &manager));
    if (ctx->rank == murder->victim && murder->phase == 0) die();
    if (murder->phase == 0) {
        status = moelink_manager_init(manager, &config);
    } else {
        RANK_OK(ctx, moelink_manager_init(manager, &config));
        prepare(ctx, &flight, manager, murder->kind, &geometry, stream);
        if (ctx->rank == murder->victim && murder->phase == 1) die();
        if (murder->phase == 1) {
            status = moelink_dispatch(manager, &flight.args, stream, &flight.dispatched);
        } else {
            moe_flight_dispatch(ctx, &flight, manager);
            moe_flight_check_dispatch(ctx, &flight);
            moe_flight_experts(ctx, &flight);
            if (ctx->rank == murder->victim) die();
            status = moelink_combine(manager, &flight.combine, stream);
        }
    }
    if (status != MOELINK_ERR_TIMEOUT) RANK_STATUS(ctx, status, MOELINK_ERR_PEER_EXITED);
    expect_rank(ctx, moelink_last_error(), murder->victim);
    expect_rank(ctx, moelink_manager_error(manager), murder->victim);
    RANK_CHECK(ctx, moelink_group_fault(ctx->group) == MOELINK_ERR_PEER_EXITED || status == MOELINK_ERR_TIMEOUT);
    if (murder->phase > 0) {
        RANK_STATUS(ctx, moelink_manager_fault(manager), status);
        moe_flight_free(ctx, &flight);
    }
    RANK_OK(ctx, moelink_manager_cleanup(manager));
    moelink_manager_destroy(manager);
    device_stream_destroy(ctx, stream);
}

static void test_killed_peer_is_named(void **state) {
    (void)state;
    for (int i = 0; i < 3 * PLAN_KINDS; ++i) {
        struct murder murder = {i % 2, i % 3, plan_kinds[i / 3]};
        rank_options options = plan_options(MOELINK_DEVICE_HOST, "killed peer", 3, 0);
        options.user = &murder;
        options.dying = &murder.victim;
        options.dying_count = 1;
        options.no_finalize = 1;
        PLAN_RUN(&options, bereaved);
    }
}

/* --- a peer that aborts ------------------------------------------------------------------------------------------------------
 */

static void aborting(rank_context *ctx) {
    moe_geometry geometry = geometry_of(ctx->size);
    moelink_manager_config config = config_of(ctx, &geometry, 20000);
    moelink_manager *manager = NULL;
    moe_flight flight;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_ONE_SIDED, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    prepare(ctx, &flight, manager, MOELINK_MANAGER_ONE_SIDED, &geometry, NULL);
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    if (ctx->rank == 0) {
        RANK_OK(ctx, moelink_group_abort(ctx->group));
    } else {
        RANK_STATUS(ctx, moelink_dispatch(manager, &flight.args, NULL, &flight.dispatched), MOELINK_ERR_ABORTED);
        expect_rank(ctx, moelink_last_error(), 0);
        RANK_STATUS(ctx, moelink_group_fault(ctx->group), MOELINK_ERR_ABORTED);
    }
    RANK_STATUS(ctx, moelink_manager_reinit(manager, &config), MOELINK_ERR_ABORTED);
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    moe_flight_free(ctx, &flight);
    moelink_manager_destroy(manager);
}

static void test_abort_unblocks_peers(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = plan_options(MOELINK_DEVICE_HOST, "abort", 3, threads);
        options.no_finalize = 1;
        PLAN_RUN(&options, aborting);
    }
}

/* --- ranks that contradict each other in a round
 * -------------------------------------------------------------------------------- */

static void contradicting(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    for (int i = 0; i < PLAN_KINDS; ++i) {
        int32_t kind = plan_kinds[i];
        if (!survives(kind)) continue;
        rank_scene(ctx, "%s", moelink_manager_kind_name(kind));
        moe_geometry geometry = geometry_of(ctx->size);
        moelink_manager_config config = config_of(ctx, &geometry, 2000);
        moelink_manager *manager = NULL;
        moe_flight flight;
        RANK_OK(ctx, moelink_manager_create(ctx->group, kind, NULL, &manager));
        RANK_OK(ctx, moelink_manager_init(manager, &config));
        for (int in_combine = 0; in_combine < 2; ++in_combine) {
            prepare(ctx, &flight, manager, kind, &geometry, stream);
            moelink_status status;
            if (in_combine) {
                moe_flight_dispatch(ctx, &flight, manager);
                moe_flight_check_dispatch(ctx, &flight);
                moe_flight_experts(ctx, &flight);
                if (ctx->rank == 1) flight.combine.input.row_bytes = flight.combine.output.row_bytes = 80;
                status = moelink_combine(manager, &flight.combine, stream);
            } else {
                if (ctx->rank == 1) flight.payloads[0].row_bytes = 96;
                status = moelink_dispatch(manager, &flight.args, stream, &flight.dispatched);
            }
            expect_lost(ctx, manager, kind, status, stream, MOELINK_ERR_MISMATCH, 1 - ctx->rank);
            RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
            moe_flight_free(ctx, &flight);
            RANK_OK(ctx, moelink_manager_reinit(manager, &config));
            moe_work(ctx, manager, kind, &geometry, 2, stream);
        }
        moelink_manager_destroy(manager);
    }
    device_stream_destroy(ctx, stream);
}

static void test_contradicting_rounds(void **state) {
    (void)state;
    rank_options options = plan_options(TEST_DEVICE, "contradicting rounds", 2, 0);
    PLAN_RUN(&options, contradicting);
}

/* --- a graph that outlives its workspace
 * ------------------------------------------------------------------------------------------ */

static void stale_in(rank_context *ctx, int32_t layout) {
    moelink_stream stream = device_stream_create(ctx);
    moe_geometry geometry = geometry_of(ctx->size);
    if (layout != MOELINK_LAYOUT_RANK_MAJOR) geometry.layouts = 1u << layout;
    moelink_manager_config config = config_of(ctx, &geometry, 5000);
    moelink_manager *manager = NULL;
    moe_flight flight;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_ONE_SIDED, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    moe_work(ctx, manager, MOELINK_MANAGER_ONE_SIDED, &geometry, 1, stream);
    prepare(ctx, &flight, manager, MOELINK_MANAGER_ONE_SIDED, &geometry, stream);
    flight.round.layout = flight.args.layout = layout;
    device_capture_begin(ctx, stream);
    moe_flight_dispatch(ctx, &flight, manager);
    moelink_combine_args combine = flight.combine; /* in place: identity experts */
    combine.input = flight.received[0];
    combine.input.dtype = MOELINK_DTYPE_F32;
    RANK_OK(ctx, moelink_combine(manager, &combine, stream));
    device_graph *graph = device_capture_end(ctx, stream);
    device_replay(ctx, graph, stream);
    moe_flight_check_combine(ctx, &flight);
    RANK_OK(ctx, moelink_manager_fault(manager));
    RANK_OK(ctx, moelink_group_barrier(ctx->group));

    for (int step = 0; step < 3; ++step) { /* growth, reinit, cleanup and init */
        config.max_tokens += 10;
        if (step == 0) RANK_OK(ctx, moelink_manager_ensure(manager, &config));
        if (step == 1) RANK_OK(ctx, moelink_manager_reinit(manager, &config));
        if (step == 2) {
            RANK_OK(ctx, moelink_manager_cleanup(manager));
            RANK_OK(ctx, moelink_manager_init(manager, &config));
        }
        device_replay(ctx, graph, stream);
        device_sync(ctx, stream);
        RANK_STATUS(ctx, moelink_manager_fault(manager), MOELINK_ERR_STALE);
        RANK_OK(ctx, moelink_manager_fault(manager)); /* reported once */
        moe_work(ctx, manager, MOELINK_MANAGER_ONE_SIDED, &geometry, (uint64_t)step, stream);
    }
    device_graph_destroy(ctx, graph);
    moe_flight_free(ctx, &flight);
    moelink_manager_destroy(manager);
    device_stream_destroy(ctx, stream);
}

static void stale(rank_context *ctx) {
    stale_in(ctx, MOELINK_LAYOUT_RANK_MAJOR);
    stale_in(ctx, MOELINK_LAYOUT_PACKED);
    stale_in(ctx, MOELINK_LAYOUT_EXPERT_MAJOR);
}

static void test_stale_graph(void **state) {
    (void)state;
    if (TEST_DEVICE != MOELINK_DEVICE_CUDA) skip(); /* the host device has no graphs */
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = plan_options(TEST_DEVICE, "stale graph", 2, threads);
        PLAN_RUN(&options, stale);
    }
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late_peer_is_named),   cmocka_unit_test(test_absent_peer_is_named),
        cmocka_unit_test(test_killed_peer_is_named), cmocka_unit_test(test_abort_unblocks_peers),
        cmocka_unit_test(test_contradicting_rounds), cmocka_unit_test(test_stale_graph),
    };
    return cmocka_run_group_tests_name("manager faults", tests, NULL, NULL);
}
