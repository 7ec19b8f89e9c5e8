/* Layouts of received rows, for every kind: random geometries and maps of experts, vLLM's shapes of a MoE layer, rows that do not fit,
 * counts on the host and arguments. MOELINK_TEST_SEED and MOELINK_TEST_CASES as in test_moe_matrix. */
#include "moe_case.h"
#include "plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ALL_LAYOUTS = 15 };

static void run(const char *name, rank_function function, int ranks, int threads, void *user) {
    rank_options options = plan_options(TEST_DEVICE, name, ranks, threads);
    options.user = user;
    options.seed = test_number("MOELINK_TEST_SEED", 1) * 1000u + (uint64_t)ranks;
    options.deadline_ms = 600000;
    PLAN_RUN(&options, function);
}

static void each_variant(rank_context *ctx, void (*body)(rank_context *ctx, plan_variant variant, moelink_stream stream)) {
    moelink_stream stream = device_stream_create(ctx);
    for (int i = 0; i < PLAN_VARIANTS; ++i) {
        if (plan_has_variant(ctx, plan_variants[i])) body(ctx, plan_variants[i], stream);
    }
    device_stream_destroy(ctx, stream);
}

static moelink_manager *make_manager(rank_context *ctx, plan_variant variant, moe_geometry *geometry) {
    moelink_manager *manager = NULL;
    geometry->flags = variant.flags;
    moelink_manager_config config = moe_config(geometry, ctx->rank);
    rank_scene(ctx, "%s, flags %u, geometry %llu", moelink_manager_kind_name(variant.kind), variant.flags, (unsigned long long)geometry->seed);
    RANK_OK(ctx, moelink_manager_create(ctx->group, variant.kind, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    return manager;
}

/* --- random geometries --------------------------------------------------------------------------------------------------------- */

static void random_layouts_of(rank_context *ctx, plan_variant variant, moelink_stream stream) {
    static const int alignments[] = {0, 1, 2, 3, 8, 16, 77, 128};
    int cases = (int)test_number("MOELINK_TEST_CASES", 4);
    for (int number = 0; number < cases; ++number) {
        moe_geometry geometry;
        moe_geometry_random(ctx->seed + 10000u * (uint64_t)number, ctx->size, 12000, &geometry);
        uint64_t state = random_mix(geometry.seed, 5);
        geometry.layouts = ALL_LAYOUTS;
        geometry.alignment = alignments[random_range(&state, 0, 7)];
        if (random_chance(&state, 30)) moe_geometry_map(geometry.seed, &geometry);
        moelink_manager *manager = make_manager(ctx, variant, &geometry);
        for (uint64_t i = 0; i < 8; ++i) {
            moe_round round;
            moe_round_random(&geometry, random_mix(geometry.seed, 500 + i), &round);
            moe_round_run(ctx, manager, variant.kind, &geometry, &round, stream);
        }
        moelink_manager_destroy(manager);
    }
}

static void random_layouts(rank_context *ctx) {
    each_variant(ctx, random_layouts_of);
}

static void test_random(void **state) {
    (void)state;
    run("random layouts", random_layouts, 1, 0, NULL);
    run("random layouts", random_layouts, 2, 0, NULL);
    run("random layouts", random_layouts, 3, 1, NULL);
    run("random layouts", random_layouts, 4, 0, NULL);
    run("random layouts", random_layouts, 8, 0, NULL);
}

/* --- vLLM's shapes of a MoE layer ------------------------------------------------------------------------------------------------ */

struct shape {
    int tokens;
    uint64_t hidden;
};

static void moe_layer_of(rank_context *ctx, plan_variant variant, moelink_stream stream) {
    static const struct shape shapes[] = {{1, 128}, {32, 512}, {222, 1024}, {223, 2048}, {0, 7168}};
    static const int experts[] = {8, 64}, top_k[] = {2, 6};
    for (int i = 0; i < 5 * 4; ++i) {
        const struct shape shape = shapes[i / 4];
        if (shape.tokens > 32 && test_number("MOELINK_TEST_CASES", 4) < 4 && i % 4 != 3) continue;
        moe_geometry geometry;
        moe_geometry_plain(ctx->size, shape.tokens > 0 ? shape.tokens : 1, top_k[i / 2 % 2], experts[i % 2], shape.hidden, MOELINK_DTYPE_BF16, &geometry);
        geometry.layouts = ALL_LAYOUTS;
        geometry.alignment = 16;
        moelink_manager *manager = make_manager(ctx, variant, &geometry);
        for (int32_t layout = MOELINK_LAYOUT_RANK_MAJOR; layout <= MOELINK_LAYOUT_EXPERT_PADDED; ++layout) {
            moe_round round;
            moe_round_plain((uint64_t)(i * 10 + layout), ctx->size, shape.tokens, shape.hidden, MOELINK_DTYPE_BF16, &round);
            round.layout = layout;
            round.alignment = 16;
            round.scale = i % 2;
            if (layout >= MOELINK_LAYOUT_EXPERT_MAJOR) round.mode = MOELINK_COMBINE_WEIGHTED;
            moe_round_run(ctx, manager, variant.kind, &geometry, &round, stream);
        }
        moelink_manager_destroy(manager);
    }
}

static void moe_layer(rank_context *ctx) {
    each_variant(ctx, moe_layer_of);
}

static void test_moe_layer(void **state) {
    (void)state;
    run("MoE layer", moe_layer, 2, 0, NULL);
    run("MoE layer", moe_layer, 4, 1, NULL);
}

/* --- rows that do not fit -------------------------------------------------------------------------------------------------------- */

enum { FEW_TOKENS = 10, FEW_TOP_K = 3, FEW_EXPERTS = 12, FEW_HIDDEN = 24 };

static void few_geometry(rank_context *ctx, moe_geometry *geometry) {
    moe_geometry_plain(ctx->size, FEW_TOKENS, FEW_TOP_K, FEW_EXPERTS, FEW_HIDDEN, MOELINK_DTYPE_F32, geometry);
    geometry->layouts = ALL_LAYOUTS;
    geometry->alignment = 4;
}

/* Rows in use of this rank, or in EXPERT_PADDED of the expert that has most. */
static int64_t rows_needed(rank_context *ctx, const moe_geometry *geometry, const moe_round *round, int32_t kind, int *out_experts) {
    moe_rows rows;
    moe_rows_find(ctx, geometry, round, kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, geometry->capacity, 0, &rows);
    int64_t needed = rows.end;
    if (round->layout == MOELINK_LAYOUT_EXPERT_PADDED) needed = 0;
    for (int expert = 0; round->layout == MOELINK_LAYOUT_EXPERT_PADDED && expert < rows.experts; ++expert) {
        if (rows.expert_counts[expert] > needed) needed = rows.expert_counts[expert];
    }
    *out_experts = rows.experts;
    moe_rows_free(&rows);
    return needed;
}

/* One row fewer than come: the fault names both numbers, nothing is written behind the last row, and a new workspace works again. With
 * enough rows, to the row, all is well. The room is the own output's, or the view's (then all ranks may have another number). */
static void overflow_of(rank_context *ctx, plan_variant variant, moelink_stream stream) {
    for (int number = 0; number < 3 * 2 * 2; ++number) {
        const int32_t layout = MOELINK_LAYOUT_PACKED + number % 3;
        const int own = number / 3 % 2, missing = number / 6;
        moe_geometry geometry;
        moe_round round;
        few_geometry(ctx, &geometry);
        moe_round_plain(40 + (uint64_t)number, ctx->size, FEW_TOKENS, FEW_HIDDEN, MOELINK_DTYPE_F32, &round);
        round.layout = layout;
        round.alignment = 4;
        int experts;
        int64_t needed = rows_needed(ctx, &geometry, &round, variant.kind, &experts), room = needed - missing;
        RANK_CHECK(ctx, room > 0);
        int64_t rows = layout == MOELINK_LAYOUT_EXPERT_PADDED ? room * experts : room;
        if (!own) geometry.layout_rows = rows;
        moelink_manager *manager = make_manager(ctx, variant, &geometry);
        moe_flight flight;
        moe_flight_prepare(ctx, &flight, manager, variant.kind, &geometry, &round, stream);
        const uint64_t row_bytes = FEW_HIDDEN * 4;
        guarded output = guarded_make(ctx, (uint64_t)rows * row_bytes, 0);
        if (own) {
            moelink_rows where = {output.data, row_bytes, 0, MOELINK_DTYPE_F32, 0};
            flight.output_rows = flight.args.output_rows = rows;
            flight.outputs[0] = where;
            flight.args.outputs = flight.outputs;
        }
        moe_meet_threads(ctx);
        if (missing == 0) {
            moe_flight_dispatch(ctx, &flight, manager);
            RANK_EQUAL(ctx, flight.dispatched.row_capacity, rows);
            moe_flight_check_dispatch(ctx, &flight);
            RANK_OK(ctx, moelink_manager_abandon(manager, 0));
        } else {
            moelink_status status = moelink_dispatch(manager, &flight.args, stream, &flight.dispatched);
            if (ctx->device == MOELINK_DEVICE_HOST) RANK_EQUAL(ctx, status, MOELINK_ERR_TOO_SMALL);
            device_sync(ctx, stream);
            RANK_STATUS(ctx, moelink_manager_fault(manager), MOELINK_ERR_TOO_SMALL);
            char text[64];
            snprintf(text, sizeof(text), "%lld rows came", (long long)needed);
            RANK_TEXT(ctx, moelink_manager_error(manager), text);
            snprintf(text, sizeof(text), "room for %lld", (long long)room);
            RANK_TEXT(ctx, moelink_manager_error(manager), text);
            int32_t state = 0;
            RANK_OK(ctx, moelink_manager_state_of(manager, &state, NULL));
            RANK_EQUAL(ctx, state, MOELINK_STATE_FAULTED);
            int64_t total = 0;
            RANK_OK(ctx, moelink_dispatch_counts(manager, 0, 0, NULL, NULL, &total)); /* what to make room for */
            if (layout != MOELINK_LAYOUT_EXPERT_PADDED) RANK_EQUAL(ctx, total, needed);
            RANK_STATUS(ctx, moelink_dispatch(manager, &flight.args, stream, &flight.dispatched), MOELINK_ERR_INVALID_STATE);
        }
        guarded_check(ctx, &output, "output of too few rows");
        moe_flight_free(ctx, &flight);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
        geometry.layout_rows = 0;
        moelink_manager_config config = moe_config(&geometry, ctx->rank);
        RANK_OK(ctx, moelink_manager_reinit(manager, &config));
        moe_round_run(ctx, manager, variant.kind, &geometry, &round, stream);
        guarded_free(ctx, &output);
        moelink_manager_destroy(manager);
    }
}

static void overflow(rank_context *ctx) {
    each_variant(ctx, overflow_of);
}

static void test_overflow(void **state) {
    (void)state;
    run("rows that do not fit", overflow, 1, 0, NULL);
    run("rows that do not fit", overflow, 2, 0, NULL);
    run("rows that do not fit", overflow, 3, 1, NULL);
}

/* --- counts on the host ---------------------------------------------------------------------------------------------------------- */

/* Without other layouts counts are told only where the config asks for them. */
static void counts_of(rank_context *ctx, plan_variant variant, moelink_stream stream) {
    moe_geometry geometry;
    few_geometry(ctx, &geometry);
    geometry.layouts = 0;
    int64_t rows[RANKS_MAX], total = -5;
    for (int asked = 0; asked < 2; ++asked) {
        plan_variant with = variant;
        if (asked) with.flags |= MOELINK_MANAGER_F_COUNTS;
        moelink_manager *manager = make_manager(ctx, with, &geometry);
        RANK_STATUS(ctx, moelink_dispatch_counts(manager, 0, 1, rows, NULL, &total), MOELINK_ERR_INVALID_STATE);
        for (uint64_t seed = 0; seed < 4; ++seed) {
            moe_round round;
            moe_round_plain(seed, ctx->size, (int)seed * 3, FEW_HIDDEN, MOELINK_DTYPE_F32, &round);
            moe_round_run(ctx, manager, variant.kind, &geometry, &round, stream); /* asks for them, where told to */
        }
        if (!asked) RANK_STATUS(ctx, moelink_dispatch_counts(manager, 0, 1, rows, NULL, &total), MOELINK_ERR_INVALID_STATE);
        RANK_STATUS(ctx, moelink_dispatch_counts(manager, 1, 1, rows, NULL, &total), MOELINK_ERR_INVALID_ARGUMENT);
        RANK_STATUS(ctx, moelink_dispatch_counts(manager, -1, 1, rows, NULL, &total), MOELINK_ERR_INVALID_ARGUMENT);
        RANK_STATUS(ctx, moelink_dispatch_counts(manager, 0, 1, rows, NULL, NULL), MOELINK_ERR_INVALID_ARGUMENT);
        RANK_EQUAL(ctx, total, -5);
        RANK_OK(ctx, moelink_manager_cleanup(manager));
        RANK_STATUS(ctx, moelink_dispatch_counts(manager, 0, 1, rows, NULL, &total), MOELINK_ERR_INVALID_STATE);
        moelink_manager_destroy(manager);
    }
    RANK_STATUS(ctx, moelink_dispatch_counts(NULL, 0, 1, rows, NULL, &total), MOELINK_ERR_INVALID_ARGUMENT);
}

static void counts(rank_context *ctx) {
    each_variant(ctx, counts_of);
}

static void test_counts(void **state) {
    (void)state;
    run("counts on the host", counts, 1, 0, NULL);
    run("counts on the host", counts, 2, 0, NULL);
    run("counts on the host", counts, 4, 1, NULL);
}

/* --- config and arguments -------------------------------------------------------------------------------------------------------- */

static void sizes_of(rank_context *ctx, plan_variant variant) {
    moe_geometry geometry;
    few_geometry(ctx, &geometry);
    geometry.flags = variant.flags;
    const int64_t all = (int64_t)ctx->size * FEW_TOKENS;
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT, without = MOELINK_MANAGER_SIZES_INIT;
    config.layouts = 1u << MOELINK_LAYOUT_RANK_MAJOR;
    RANK_OK(ctx, moelink_manager_query(ctx->group, variant.kind, &config, &without));
    RANK_EQUAL(ctx, without.layout_rows, 0);
    RANK_EQUAL(ctx, without.layout_bytes, 0);
    config.layouts = 1u << MOELINK_LAYOUT_PACKED;
    RANK_OK(ctx, moelink_manager_query(ctx->group, variant.kind, &config, &sizes));
    RANK_EQUAL(ctx, sizes.layout_rows, all);
    RANK_CHECK(ctx, sizes.layout_bytes >= (uint64_t)all * FEW_HIDDEN * 4);
    RANK_EQUAL(ctx, sizes.workspace_bytes, without.workspace_bytes);
    config.layout_rows = 7;
    RANK_OK(ctx, moelink_manager_query(ctx->group, variant.kind, &config, &sizes));
    RANK_EQUAL(ctx, sizes.layout_rows, 7);
    config.layout_rows = -1;
    RANK_STATUS(ctx, moelink_manager_query(ctx->group, variant.kind, &config, &sizes), MOELINK_ERR_INVALID_ARGUMENT);
    config.layout_rows = 0;
    config.layouts = 16;
    RANK_STATUS(ctx, moelink_manager_query(ctx->group, variant.kind, &config, &sizes), MOELINK_ERR_UNSUPPORTED);
    config.layouts = ALL_LAYOUTS;
    config.alignment = -1;
    RANK_STATUS(ctx, moelink_manager_query(ctx->group, variant.kind, &config, &sizes), MOELINK_ERR_INVALID_ARGUMENT);
    config.alignment = 1;
    config.max_tokens = 1 << 24;
    config.top_k = 32;
    config.num_experts = 1 << 20;
    RANK_CHECK(ctx, moelink_manager_query(ctx->group, variant.kind, &config, &sizes) != MOELINK_OK);
    RANK_TEXT(ctx, moelink_last_error(), "layout");
}

/* Every refusal leaves the slot as it was. */
#define REFUSE(field, value, status, part)                                                                      \
    do {                                                                                                        \
        moelink_dispatch_args bad = flight.args;                                                                \
        bad.field = (value);                                                                                    \
        RANK_STATUS(ctx, moelink_dispatch(manager, &bad, stream, &flight.dispatched), status);                  \
        RANK_TEXT(ctx, moelink_last_error(), part);                                                             \
    } while (0)

static void bad_dispatches(rank_context *ctx, moelink_manager *manager, moe_flight flight, moelink_stream stream) {
    REFUSE(layout, 4, MOELINK_ERR_UNSUPPORTED, "layout is 4");
    REFUSE(layout, -1, MOELINK_ERR_UNSUPPORTED, "layout is -1");
    REFUSE(layout, MOELINK_LAYOUT_EXPERT_MAJOR, MOELINK_ERR_INVALID_ARGUMENT, "expert-major");
    REFUSE(alignment, -1, MOELINK_ERR_INVALID_ARGUMENT, "alignment is -1");
    REFUSE(alignment, 5, MOELINK_ERR_INVALID_ARGUMENT, "alignment is 5");
    REFUSE(output_rows, -2, MOELINK_ERR_INVALID_ARGUMENT, "output_rows is -2");
    REFUSE(rank_tokens_count, -1, MOELINK_ERR_INVALID_ARGUMENT, "rank_tokens_count is -1");
    REFUSE(rank_tokens_count, ctx->size + 1, MOELINK_ERR_INVALID_ARGUMENT, "entries and the group");
    REFUSE(load_counts, (int64_t *)4, MOELINK_ERR_INVALID_ARGUMENT, "load_counts");
    int64_t wrong[RANKS_MAX];
    memcpy(wrong, flight.rank_tokens, sizeof(wrong));
    ++wrong[ctx->rank];
    char text[64];
    snprintf(text, sizeof(text), "rank_tokens[%d] is %lld", ctx->rank, (long long)wrong[ctx->rank]);
    REFUSE(rank_tokens, wrong, MOELINK_ERR_INVALID_ARGUMENT, text);
    moelink_rows own = {flight.payloads[0].data, flight.payloads[0].row_bytes, 0, MOELINK_DTYPE_F32, 0};
    flight.args.layout = MOELINK_LAYOUT_RANK_MAJOR;
    flight.args.outputs = &own;
    REFUSE(output_rows, FEW_TOKENS * ctx->size - 1, MOELINK_ERR_TOO_SMALL, "output_rows");
}

static void bad_combines(rank_context *ctx, moelink_manager *manager, const moe_flight *flight, int gathers, moelink_stream stream) {
    moelink_combine_args bad = flight->combine;
    bad.input_rows = -1;
    RANK_STATUS(ctx, moelink_combine(manager, &bad, stream), MOELINK_ERR_INVALID_ARGUMENT);
    bad.input_rows = flight->combine.input_rows - 1;
    RANK_STATUS(ctx, moelink_combine(manager, &bad, stream), gathers ? MOELINK_ERR_INVALID_ARGUMENT : MOELINK_ERR_TOO_SMALL);
    char text[64];
    snprintf(text, sizeof(text), "input_rows is %lld", (long long)bad.input_rows);
    RANK_TEXT(ctx, moelink_last_error(), text);
    snprintf(text, sizeof(text), gathers ? "add up to %lld" : "has %lld rows", (long long)flight->combine.input_rows);
    RANK_TEXT(ctx, moelink_last_error(), text);
    bad.input_rows = flight->combine.input_rows + 1;
    if (gathers) RANK_STATUS(ctx, moelink_combine(manager, &bad, stream), MOELINK_ERR_INVALID_ARGUMENT);
}

static void arguments_of(rank_context *ctx, plan_variant variant, moelink_stream stream) {
    sizes_of(ctx, variant);
    moe_geometry geometry;
    few_geometry(ctx, &geometry);
    geometry.layouts = 1u << MOELINK_LAYOUT_PACKED; /* RANK_MAJOR is there always */
    moelink_manager *manager = make_manager(ctx, variant, &geometry);
    moe_round round;
    moe_round_plain(70, ctx->size, FEW_TOKENS - 1, FEW_HIDDEN, MOELINK_DTYPE_F32, &round);
    round.layout = MOELINK_LAYOUT_PACKED;
    moe_flight flight;
    moe_flight_prepare(ctx, &flight, manager, variant.kind, &geometry, &round, stream);
    flight.args.rank_tokens = flight.rank_tokens;
    flight.args.rank_tokens_count = ctx->size;
    moe_meet_threads(ctx);
    bad_dispatches(ctx, manager, flight, stream);
    moe_flight_dispatch(ctx, &flight, manager);
    moe_flight_check_dispatch(ctx, &flight);
    moe_flight_experts(ctx, &flight);
    bad_combines(ctx, manager, &flight, variant.kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, stream);
    moe_flight_combine(ctx, &flight, manager);
    moe_flight_check_combine(ctx, &flight);
    moe_flight_free(ctx, &flight);

    /* growth to other layouts */
    geometry.layouts = ALL_LAYOUTS;
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    RANK_OK(ctx, moelink_manager_ensure(manager, &config));
    for (int32_t layout = MOELINK_LAYOUT_RANK_MAJOR; layout <= MOELINK_LAYOUT_EXPERT_PADDED; ++layout) {
        round.layout = layout;
        moe_round_run(ctx, manager, variant.kind, &geometry, &round, stream);
    }
    if (variant.kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER) { /* rows without ids have no experts */
        moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
        moelink_dispatched got = MOELINK_DISPATCHED_INIT;
        args.flags = MOELINK_DISPATCH_F_NO_ROUTING;
        args.layout = MOELINK_LAYOUT_EXPERT_PADDED;
        RANK_STATUS(ctx, moelink_dispatch(manager, &args, stream, &got), MOELINK_ERR_INVALID_ARGUMENT);
        args.layout = MOELINK_LAYOUT_PACKED;
        RANK_OK(ctx, moelink_dispatch(manager, &args, stream, &got));
        int64_t total = -1;
        RANK_OK(ctx, moelink_dispatch_counts(manager, 0, 0, NULL, NULL, &total));
        RANK_EQUAL(ctx, total, 0);
        RANK_CHECK(ctx, got.topk_ids == NULL && got.rank_offsets != NULL);
        RANK_OK(ctx, moelink_manager_abandon(manager, 0));
    }
    moelink_manager_destroy(manager);
}

static void arguments(rank_context *ctx) {
    each_variant(ctx, arguments_of);
}

static void test_arguments(void **state) {
    (void)state;
    run("arguments", arguments, 1, 0, NULL);
    run("arguments", arguments, 2, 0, NULL);
    run("arguments", arguments, 3, 1, NULL);
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_moe_layer),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests_name("moe layouts", tests, NULL, NULL);
}
