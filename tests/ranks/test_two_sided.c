/* The two-sided manager in parts: prepare, alltoallv and its way back, each with everything it gives, over FIFOs from the smallest on,
 * with ranks out of step and rounds that are given up. */
#include "plan.h"
#include "two_sided_round.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void geometry_of(rank_context *ctx, uint64_t seed, moe_geometry *geometry) {
    uint64_t state = random_mix(seed, 6);
    moe_geometry_plain(ctx->size, 1, random_range(&state, 1, 6), 10, 40, MOELINK_DTYPE_F32, geometry);
    geometry->seed = seed;
    geometry->experts = random_range(&state, 6, 30);
    geometry->combine_row_bytes = 4u * (uint64_t)random_range(&state, 1, 1000);
    geometry->slots = random_range(&state, 1, 2);
    geometry->capacity = 0;
    for (int rank = 0; rank < ctx->size; ++rank) {
        geometry->max_tokens[rank] = random_range(&state, 1, 60);
        if (geometry->max_tokens[rank] > geometry->capacity) geometry->capacity = geometry->max_tokens[rank];
    }
}

static void parts(rank_context *ctx) {
    static const uint64_t fifo_bytes[] = {0, 1, 5000, 300000};
    moelink_stream stream = device_stream_create(ctx);
    moelink_manager *manager = NULL;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_TWO_SIDED, NULL, &manager));
    for (int number = 0; number < 8; ++number) {
        moe_geometry geometry;
        geometry_of(ctx, ctx->seed + (uint64_t)number, &geometry);
        moelink_manager_config config = moe_config(&geometry, ctx->rank);
        config.fifo_bytes = fifo_bytes[number % 4];
        config.flags = number % 3 == 0 ? MOELINK_MANAGER_F_NO_VIEWS : 0;
        RANK_OK(ctx, moelink_manager_reinit(manager, &config));
        for (uint64_t i = 0; i < 6; ++i) two_sided_whole_round(ctx, manager, &geometry, random_mix(ctx->seed + (uint64_t)number, i), stream);
        MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, (uint64_t)number + 1);
    }
    moelink_manager_destroy(manager);
    device_stream_destroy(ctx, stream);
}

static void test_parts(void **state) {
    (void)state;
    static const int counts[] = {2, 1, 3, 4, 8};
    for (int i = 0; i < 5; ++i) {
        rank_options options = plan_options(TEST_DEVICE, "parts", counts[i], counts[i] == 3);
        options.seed = test_number("MOELINK_TEST_SEED", 40) * 100u + (uint64_t)i;
        PLAN_RUN(&options, parts);
    }
}

/* --- FIFOs of the smallest size under dispatch and combine ------------------------------------------------------------------- */

static void smallest(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    moelink_manager *manager = NULL;
    moelink_manager_sizes automatic = MOELINK_MANAGER_SIZES_INIT, sizes = MOELINK_MANAGER_SIZES_INIT;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_TWO_SIDED, NULL, &manager));
    for (uint64_t number = 0; number < 4; ++number) {
        moe_geometry geometry;
        moe_geometry_random(ctx->seed + number, ctx->size, 40000, &geometry);
        moelink_manager_config config = moe_config(&geometry, ctx->rank);
        RANK_OK(ctx, moelink_manager_query(ctx->group, MOELINK_MANAGER_TWO_SIDED, &config, &automatic));
        config.fifo_bytes = 1;
        RANK_OK(ctx, moelink_manager_reinit(manager, &config));
        RANK_OK(ctx, moelink_manager_sizes_of(manager, &sizes));
        RANK_CHECK(ctx, ctx->size == 1 || sizes.combine_bytes < automatic.combine_bytes);
        moe_work(ctx, manager, MOELINK_MANAGER_TWO_SIDED, &geometry, number, stream);
    }
    /* what is allocated does not grow with rows, but for ids, weights and the tables of tokens */
    moe_geometry geometry;
    moe_geometry_plain(ctx->size, 100, 2, 8, 4096, MOELINK_DTYPE_BF16, &geometry);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    config.flags = MOELINK_MANAGER_F_NO_VIEWS;
    RANK_OK(ctx, moelink_manager_query(ctx->group, MOELINK_MANAGER_TWO_SIDED, &config, &sizes));
    RANK_CHECK(ctx, sizes.dispatch_bytes + sizes.control_bytes < sizes.combine_bytes / 4 + 100u * 1024u);
    RANK_OK(ctx, moelink_manager_reinit(manager, &config));
    moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
    moelink_dispatched out = MOELINK_DISPATCHED_INIT;
    moelink_rows payload = {NULL, 64, 0, 0, 0};
    args.payloads = &payload;
    args.payload_count = 1;
    RANK_STATUS(ctx, moelink_dispatch(manager, &args, stream, &out), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "NO_VIEWS");
    config.layouts = 1u << MOELINK_LAYOUT_PACKED;
    RANK_STATUS(ctx, moelink_manager_reinit(manager, &config), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "NO_VIEWS");
    MOE_EXPECT_STATE(ctx, manager, MOELINK_STATE_READY, 5);
    moelink_manager_destroy(manager);
    device_stream_destroy(ctx, stream);
}

static void test_smallest_fifos(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ++ranks) {
        rank_options options = plan_options(TEST_DEVICE, "smallest FIFOs", ranks, ranks == 3);
        options.seed = 7000u + 10u * (uint64_t)ranks;
        PLAN_RUN(&options, smallest);
    }
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parts), cmocka_unit_test(test_smallest_fifos)};
    return cmocka_run_group_tests_name("two-sided", tests, NULL, NULL);
}
