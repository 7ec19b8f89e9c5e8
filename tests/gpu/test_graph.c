/* CUDA graphs of dispatch, of combine and of the pair, replayed a thousand times over inputs that change in place, with eager
 * calls in between, and in bursts without the host waiting. */
#include "moe_case.h"
#include "plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS = 40, HIDDEN = 256, TOP_K = 4 };
enum { COUNT_ON_DEVICE = 1, HALVES = 2 };

struct graphs {
    device_graph *dispatch, *combine, *pair;
};

/* Experts are the identity: combine reads payload 0 where it arrived. */
static void combine_in_place(rank_context *ctx, moe_flight *flight, moelink_manager *manager) {
    flight->combine.input = flight->received[0];
    flight->combine.input.dtype = flight->round.dtype;
    moe_flight_combine(ctx, flight, manager);
}

static struct graphs capture(rank_context *ctx, moe_flight *flight, moelink_manager *manager) {
    struct graphs graphs;
    device_capture_begin(ctx, flight->stream);
    moe_flight_dispatch(ctx, flight, manager);
    graphs.dispatch = device_capture_end(ctx, flight->stream);
    device_capture_begin(ctx, flight->stream);
    combine_in_place(ctx, flight, manager);
    graphs.combine = device_capture_end(ctx, flight->stream);
    device_capture_begin(ctx, flight->stream);
    moe_flight_dispatch(ctx, flight, manager);
    combine_in_place(ctx, flight, manager);
    graphs.pair = device_capture_end(ctx, flight->stream);
    return graphs;
}

/* New inputs; where the device holds the count of tokens, another count as well. */
static void change(rank_context *ctx, moe_flight *flight, int32_t *count, uint64_t seed) {
    if (flight->tokens_device.base != NULL) {
        for (int rank = 0; rank < ctx->size; ++rank) {
            flight->round.tokens[rank] = (int)(random_mix(seed, (uint64_t)rank) % (TOKENS + 1));
        }
        flight->tokens = *count = flight->round.tokens[ctx->rank];
        device_copy_async(ctx, flight->tokens_device.data, count, 4, flight->stream);
    }
    moe_flight_refill(ctx, flight, seed);
}

static void replay(rank_context *ctx, plan_variant variant, int32_t layout, int32_t dtype, int how) {
    const int32_t kind = variant.kind;
    moelink_stream stream = device_stream_create(ctx);
    moe_geometry geometry;
    moe_round round;
    moe_flight flight;
    moelink_manager *manager = NULL;
    moe_geometry_plain(ctx->size, TOKENS, TOP_K, 6 * ctx->size + 1, HIDDEN, MOELINK_DTYPE_F32, &geometry);
    geometry.flags = variant.flags;
    moe_round_plain(1, ctx->size, TOKENS, HIDDEN, dtype, &round);
    round.exact = dtype == MOELINK_DTYPE_F32;
    geometry.layouts = layout != MOELINK_LAYOUT_RANK_MAJOR ? 1u << layout : 0;
    geometry.alignment = round.alignment = 8;
    round.layout = layout;
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    RANK_OK(ctx, moelink_manager_create(ctx->group, kind, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    moe_flight_prepare(ctx, &flight, manager, kind, &geometry, &round, stream);
    flight.replayed = 1;
    flight.args.load_counts = NULL; /* counts of all replays together */
    guarded_free(ctx, &flight.loads);
    int32_t *count = device_alloc_pinned(ctx, 4);
    if ((how & COUNT_ON_DEVICE) != 0) {
        flight.tokens_device = guarded_make(ctx, 4, 0);
        flight.args.num_tokens_device = (const int32_t *)flight.tokens_device.data;
    }
    if ((how & HALVES) != 0) {
        flight.halves = 1;
        flight.args.flags |= MOELINK_DISPATCH_F_SEND_ONLY;
        flight.combine.flags |= MOELINK_COMBINE_F_SEND_ONLY;
    }
    struct graphs graphs = capture(ctx, &flight, manager);
    int replays = (int)test_number("MOELINK_TEST_REPLAYS", 1000);
    for (int i = 0; i < replays; ++i) {
        rank_scene(ctx, "%s, %s, dtype %d, replay %d%s", moelink_manager_kind_name(kind), moelink_layout_name(layout), dtype, i,
                   (how & COUNT_ON_DEVICE) != 0 ? ", count on device" : "");
        change(ctx, &flight, count, 100u + (uint64_t)i);
        if (i % 10 == 7) { /* eager */
            moe_flight_dispatch(ctx, &flight, manager);
            if (i % 20 == 7) moe_flight_check_dispatch(ctx, &flight);
            combine_in_place(ctx, &flight, manager);
        } else if (i % 3 == 0) { /* one by one */
            device_replay(ctx, graphs.dispatch, stream);
            if (i % 2 == 0) moe_flight_check_dispatch(ctx, &flight);
            device_replay(ctx, graphs.combine, stream);
        } else {
            for (int burst = i % 10 == 4 ? 20 : 1; burst > 0; --burst) device_replay(ctx, graphs.pair, stream);
        }
        moe_flight_check_combine(ctx, &flight);
        RANK_OK(ctx, moelink_manager_fault(manager));
    }
    device_graph_destroy(ctx, graphs.dispatch);
    device_graph_destroy(ctx, graphs.combine);
    device_graph_destroy(ctx, graphs.pair);
    device_free_pinned(ctx, count);
    moe_flight_free(ctx, &flight);
    moelink_manager_destroy(manager);
    device_stream_destroy(ctx, stream);
    rank_scene(ctx, "%s", "");
}

static void one_sided(rank_context *ctx) {
    const plan_variant variant = {MOELINK_MANAGER_ONE_SIDED, 0};
    replay(ctx, variant, MOELINK_LAYOUT_RANK_MAJOR, MOELINK_DTYPE_F32, 0);
    replay(ctx, variant, MOELINK_LAYOUT_RANK_MAJOR, MOELINK_DTYPE_BF16, COUNT_ON_DEVICE);
    replay(ctx, variant, MOELINK_LAYOUT_RANK_MAJOR, MOELINK_DTYPE_F32, HALVES);
    replay(ctx, variant, MOELINK_LAYOUT_PACKED, MOELINK_DTYPE_F32, COUNT_ON_DEVICE);
    replay(ctx, variant, MOELINK_LAYOUT_EXPERT_MAJOR, MOELINK_DTYPE_F32, HALVES);
}

static void two_sided(rank_context *ctx) {
    const plan_variant variant = {MOELINK_MANAGER_TWO_SIDED, 0};
    replay(ctx, variant, MOELINK_LAYOUT_RANK_MAJOR, MOELINK_DTYPE_F32, 0);
    replay(ctx, variant, MOELINK_LAYOUT_RANK_MAJOR, MOELINK_DTYPE_BF16, COUNT_ON_DEVICE);
}

static void gathering(rank_context *ctx) {
    for (int i = 0; i < PLAN_VARIANTS; ++i) {
        if (plan_variants[i].kind != MOELINK_MANAGER_ALLGATHER_REDUCESCATTER || !plan_has_variant(ctx, plan_variants[i])) continue;
        replay(ctx, plan_variants[i], MOELINK_LAYOUT_RANK_MAJOR, MOELINK_DTYPE_F32, 0);
        replay(ctx, plan_variants[i], MOELINK_LAYOUT_PACKED, MOELINK_DTYPE_F32, 0);
    }
}

static void run(const char *name, rank_function function, int ranks, int threads) {
    rank_options options = plan_options(MOELINK_DEVICE_CUDA, name, ranks, threads);
    options.deadline_ms = 400000;
    PLAN_RUN(&options, function);
}

static void test_one_sided(void **state) {
    (void)state;
    run("graphs, one-sided", one_sided, 2, 0);
    run("graphs, one-sided", one_sided, 1, 0);
    run("graphs, one-sided", one_sided, 4, 0);
    run("graphs, one-sided", one_sided, 2, 1);
}

static void test_two_sided(void **state) {
    (void)state;
    run("graphs, two-sided", two_sided, 2, 0);
    run("graphs, two-sided", two_sided, 1, 0);
    run("graphs, two-sided", two_sided, 4, 0);
}

static void test_gathering(void **state) {
    (void)state;
    run("graphs, gathering", gathering, 2, 0);
}

/* The reference manager works on the host: a capture of it is refused and leaves the manager and the stream usable. */
static void refused(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    moe_geometry geometry;
    moe_round round;
    moe_flight flight;
    moelink_manager *manager = NULL;
    moe_geometry_plain(ctx->size, TOKENS, TOP_K, 6 * ctx->size, HIDDEN, MOELINK_DTYPE_F32, &geometry);
    moe_round_plain(1, ctx->size, TOKENS, HIDDEN, MOELINK_DTYPE_F32, &round);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_REFERENCE, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    moe_flight_prepare(ctx, &flight, manager, MOELINK_MANAGER_REFERENCE, &geometry, &round, stream);
    device_capture_begin(ctx, stream);
    RANK_STATUS(ctx, moelink_dispatch(manager, &flight.args, stream, &flight.dispatched), MOELINK_ERR_INVALID_STATE);
    device_graph_destroy(ctx, device_capture_end(ctx, stream));
    moe_work(ctx, manager, MOELINK_MANAGER_REFERENCE, &geometry, 2, stream);
    moe_flight_free(ctx, &flight);
    moelink_manager_destroy(manager);
    device_stream_destroy(ctx, stream);
}

static void test_reference_refuses_capture(void **state) {
    (void)state;
    run("capture of the reference manager", refused, 2, 0);
}

/* What the host cannot see in a replay: a second combine, or a second dispatch, of one round. The manager says so and is usable
 * again after reinit. */
static void out_of_turn(rank_context *ctx, int32_t kind) {
    moelink_stream stream = device_stream_create(ctx);
    moe_geometry geometry;
    moe_round round;
    moelink_manager *manager = NULL;
    moe_geometry_plain(ctx->size, TOKENS, TOP_K, 6 * ctx->size, HIDDEN, MOELINK_DTYPE_F32, &geometry);
    moe_round_plain(1, ctx->size, TOKENS, HIDDEN, MOELINK_DTYPE_F32, &round);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    RANK_OK(ctx, moelink_manager_create(ctx->group, kind, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    for (int twice = 0; twice < 2; ++twice) {
        moe_flight flight;
        rank_scene(ctx, "a second %s", twice == 0 ? "combine" : "dispatch");
        moe_flight_prepare(ctx, &flight, manager, kind, &geometry, &round, stream);
        struct graphs graphs = capture(ctx, &flight, manager);
        device_replay(ctx, graphs.pair, stream);
        moe_flight_check_combine(ctx, &flight);
        device_replay(ctx, twice == 0 ? graphs.combine : graphs.dispatch, stream);
        if (twice == 1) {
            moe_flight_check_dispatch(ctx, &flight);
            device_replay(ctx, graphs.dispatch, stream);
        }
        device_sync(ctx, stream);
        RANK_STATUS(ctx, moelink_manager_fault(manager), MOELINK_ERR_INVALID_STATE);
        RANK_TEXT(ctx, moelink_manager_error(manager), "out of turn");
        device_graph_destroy(ctx, graphs.dispatch);
        device_graph_destroy(ctx, graphs.combine);
        device_graph_destroy(ctx, graphs.pair);
        moe_flight_free(ctx, &flight);
        RANK_OK(ctx, moelink_manager_reinit(manager, &config));
        moe_work(ctx, manager, kind, &geometry, 3, stream);
    }
    moelink_manager_destroy(manager);
    device_stream_destroy(ctx, stream);
}

static void all_out_of_turn(rank_context *ctx) {
    out_of_turn(ctx, MOELINK_MANAGER_ONE_SIDED);
    out_of_turn(ctx, MOELINK_MANAGER_TWO_SIDED);
}

static void test_out_of_turn(void **state) {
    (void)state;
    run("replays out of turn", all_out_of_turn, 2, 0);
}

int main(void) {
    int skipped = device_skip_main(MOELINK_DEVICE_CUDA, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_sided),
        cmocka_unit_test(test_two_sided),
        cmocka_unit_test(test_gathering),
        cmocka_unit_test(test_reference_refuses_capture),
        cmocka_unit_test(test_out_of_turn),
    };
    return cmocka_run_group_tests_name("graphs", tests, NULL, NULL);
}
