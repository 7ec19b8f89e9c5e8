/* Dispatch and combine of every kind against the reference: shapes of vLLM's all-to-all tests, then random geometries.
 * MOELINK_TEST_SEED repeats a geometry that failed (its number is in the message), MOELINK_TEST_CASES sets how many are run. */
#include "moe_case.h"
#include "plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t generation_of(rank_context *ctx, const moelink_manager *manager) {
    uint64_t generation = 0;
    RANK_OK(ctx, moelink_manager_state_of(manager, NULL, &generation));
    return generation;
}

/* Runs the body for each variant of the kinds that works here. */
static void each_variant(rank_context *ctx, void (*body)(rank_context *, plan_variant, moelink_stream)) {
    moelink_stream stream = device_stream_create(ctx);
    for (int i = 0; i < PLAN_VARIANTS; ++i) {
        if (plan_has_variant(ctx, plan_variants[i])) body(ctx, plan_variants[i], stream);
    }
    device_stream_destroy(ctx, stream);
}

static moelink_manager *make_manager(rank_context *ctx, int32_t kind) {
    moelink_manager *manager = NULL;
    RANK_OK(ctx, moelink_manager_create(ctx->group, kind, NULL, &manager));
    return manager;
}

/* --- vLLM's shapes --------------------------------------------------------------------------------------------------- */

/* Identity experts give hidden x number of distinct ranks; experts that triple give three times as much. */
static void identity_and_linearity_of(rank_context *ctx, plan_variant variant, moelink_stream stream) {
    moelink_manager *manager = make_manager(ctx, variant.kind);
    moe_geometry geometry;
    moe_round round;
    moe_geometry_plain(ctx->size, 32, 2, 8 * ctx->size, 128, MOELINK_DTYPE_F32, &geometry);
    geometry.flags = variant.flags;
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    float sums[2][32 * 128];
    for (int triple = 0; triple < 2; ++triple) {
        moe_flight flight;
        moe_round_plain(7, ctx->size, 32, 128, MOELINK_DTYPE_F32, &round);
        round.scale = triple ? 3 : 1;
        round.exact = 1;
        moe_flight_prepare(ctx, &flight, manager, variant.kind, &geometry, &round, stream);
        moe_flight_dispatch(ctx, &flight, manager);
        moe_flight_check_dispatch(ctx, &flight);
        moe_flight_experts(ctx, &flight);
        moe_flight_combine(ctx, &flight, manager);
        moe_flight_check_combine(ctx, &flight);
        device_copy(ctx, sums[triple], flight.result.data, sizeof(sums[triple]));
        moe_flight_free(ctx, &flight);
    }
    int64_t ids[32 * 2];
    float hidden[128];
    unsigned char marks[RANKS_MAX];
    moe_ids(&geometry, &round, ctx->rank, ids);
    for (int token = 0; token < 32; ++token) {
        int distinct = token_ranks(ids + token * 2, 2, geometry.experts, ctx->size, marks);
        moe_payload_row(&round, ctx->rank, token, 0, hidden);
        for (int h = 0; h < 128; ++h) {
            RANK_CHECK(ctx, sums[0][token * 128 + h] == hidden[h] * (float)distinct);
            RANK_CHECK(ctx, sums[1][token * 128 + h] == 3 * sums[0][token * 128 + h]);
        }
    }
    static const int32_t halves[] = {MOELINK_DTYPE_BF16, MOELINK_DTYPE_F16};
    for (int half = 0; half < 2; ++half) {
        moe_round_plain(8, ctx->size, 32, 128, halves[half], &round);
        moe_round_run(ctx, manager, variant.kind, &geometry, &round, stream);
        round.scale = 3;
        moe_round_run(ctx, manager, variant.kind, &geometry, &round, stream);
    }
    moelink_manager_destroy(manager);
}

static void identity_and_linearity(rank_context *ctx) {
    each_variant(ctx, identity_and_linearity_of);
}

/* 16 tokens, hidden 64: both halves of the gathering manager are exact. */
static void small_and_exact_of(rank_context *ctx, plan_variant variant, moelink_stream stream) {
    moelink_manager *manager = make_manager(ctx, variant.kind);
    moe_geometry geometry;
    moe_round round;
    moe_geometry_plain(ctx->size, 16, 2, 4 * ctx->size, 64, MOELINK_DTYPE_F32, &geometry);
    geometry.flags = variant.flags;
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    for (uint64_t seed = 1; seed <= 8; ++seed) {
        moe_round_plain(seed, ctx->size, 16, 64, MOELINK_DTYPE_F32, &round);
        round.exact = 1;
        for (int rank = 0; rank < ctx->size; ++rank) round.tokens[rank] = (int)(seed * 5 + (uint64_t)rank * 3) % 17;
        moe_round_run(ctx, manager, variant.kind, &geometry, &round, stream);
    }
    moelink_manager_destroy(manager);
}

static void small_and_exact(rank_context *ctx) {
    each_variant(ctx, small_and_exact_of);
}

/* Packed 4-bit rows and their scales, as nvfp4 sends them: hidden / 2 and hidden / 16 bytes. */
static void nvfp4_shape(int ranks, int tokens, uint64_t hidden, moe_geometry *geometry, moe_round *round) {
    moe_geometry_plain(ranks, tokens, 2, 8 * ranks, hidden, MOELINK_DTYPE_BF16, geometry);
    geometry->payload_count = 2;
    geometry->row_bytes[0] = hidden / 2;
    geometry->row_bytes[1] = hidden / 16;
    moe_round_plain(3, ranks, tokens < 64 ? tokens : 64, hidden, MOELINK_DTYPE_BF16, round);
    round->payload_count = 2;
    round->sent[1] = 1;
    round->row_bytes[0] = hidden / 2;
    round->row_bytes[1] = hidden / 16;
    round->scale = 0;
}

static void bf16_shape(int ranks, int tokens, uint64_t hidden, moe_geometry *geometry, moe_round *round) {
    moe_geometry_plain(ranks, tokens, 2, 8 * ranks, hidden, MOELINK_DTYPE_BF16, geometry);
    moe_round_plain(4, ranks, tokens < 64 ? tokens : 64, hidden, MOELINK_DTYPE_BF16, round);
}

/* 1024 -> 2048 tokens, then between nvfp4-sized and bf16-sized rows: ensure grows once each way, reinit follows every time. */
static void growth_and_geometry_of(rank_context *ctx, plan_variant variant, moelink_stream stream) {
    moelink_manager *manager = make_manager(ctx, variant.kind);
    moe_geometry geometry, large, nvfp4, bf16;
    moe_round round, nvfp4_round, bf16_round;
    bf16_shape(ctx->size, 1024, 4096, &geometry, &round);
    bf16_shape(ctx->size, 2048, 4096, &large, &round);
    geometry.flags = large.flags = variant.flags;
    moelink_manager_config small_config = moe_config(&geometry, ctx->rank), large_config = moe_config(&large, ctx->rank);
    static const uint64_t growth[] = {1, 2, 2, 2};
    for (int step = 0; step < 4; ++step) {
        RANK_OK(ctx, moelink_manager_ensure(manager, step == 1 || step == 3 ? &large_config : &small_config));
        RANK_EQUAL(ctx, generation_of(ctx, manager), growth[step]);
        moe_round_run(ctx, manager, variant.kind, step == 0 ? &geometry : &large, &round, stream);
    }
    RANK_OK(ctx, moelink_manager_cleanup(manager));

    nvfp4_shape(ctx->size, 64, 4096, &nvfp4, &nvfp4_round);
    bf16_shape(ctx->size, 64, 4096, &bf16, &bf16_round);
    nvfp4.flags = bf16.flags = variant.flags;
    uint64_t before = generation_of(ctx, manager);
    for (int step = 0; step < 4; ++step) {
        moelink_manager_config config = moe_config(step % 2 == 0 ? &nvfp4 : &bf16, ctx->rank);
        RANK_OK(ctx, moelink_manager_ensure(manager, &config));
        RANK_EQUAL(ctx, generation_of(ctx, manager), before + (step == 0 ? 1u : 2u));
        moe_round_run(ctx, manager, variant.kind, step % 2 == 0 ? &nvfp4 : &bf16, step % 2 == 0 ? &nvfp4_round : &bf16_round, stream);
    }
    for (int step = 0; step < 4; ++step) {
        moelink_manager_config config = moe_config(step % 2 == 0 ? &nvfp4 : &bf16, ctx->rank);
        RANK_OK(ctx, moelink_manager_reinit(manager, &config));
        RANK_EQUAL(ctx, generation_of(ctx, manager), before + 3u + (uint64_t)step);
        moe_round_run(ctx, manager, variant.kind, step % 2 == 0 ? &nvfp4 : &bf16, step % 2 == 0 ? &nvfp4_round : &bf16_round, stream);
    }
    moelink_manager_destroy(manager);
}

static void growth_and_geometry(rank_context *ctx) {
    each_variant(ctx, growth_and_geometry_of);
}

static void run_everywhere(const char *name, rank_function function, int most) {
    static const int counts[] = {2, 1, 3, 4, 8};
    for (int i = 0; i < 5; ++i) {
        if (counts[i] > most) continue;
        rank_options options = plan_options(TEST_DEVICE, name, counts[i], counts[i] == 3);
        PLAN_RUN(&options, function);
    }
}

static void test_identity_and_linearity(void **state) {
    (void)state;
    run_everywhere("identity and linearity", identity_and_linearity, 8);
}

static void test_small_and_exact(void **state) {
    (void)state;
    run_everywhere("small and exact", small_and_exact, 8);
}

static void test_growth_and_geometry(void **state) {
    (void)state;
    run_everywhere("growth and geometry", growth_and_geometry, 2);
}

/* --- random geometries ----------------------------------------------------------------------------------------------- */

struct matrix {
    int cases;
    int rounds;
    uint64_t values; /* tokens of a rank x values of a row, at most */
};

/* All slots dispatched before the first is combined, combined in another order. */
static void run_slots_at_once(rank_context *ctx, moelink_manager *manager, int32_t kind, const moe_geometry *geometry,
                              uint64_t seed, moelink_stream stream) {
    moe_flight *flights = calloc((size_t)geometry->slots, sizeof(*flights));
    if (flights == NULL) RANK_FAIL(ctx, "out of memory");
    rank_scene(ctx, "%s, geometry %llu, %d slots at once, seed %llu", moelink_manager_kind_name(kind),
               (unsigned long long)geometry->seed, geometry->slots, (unsigned long long)seed);
    for (int slot = 0; slot < geometry->slots; ++slot) {
        moe_round round;
        moe_round_random(geometry, random_mix(seed, (uint64_t)slot), &round);
        round.slot = slot;
        round.combine = 1;
        moe_flight_prepare(ctx, &flights[slot], manager, kind, geometry, &round, stream);
    }
    moe_meet_threads(ctx);
    for (int slot = 0; slot < geometry->slots; ++slot) moe_flight_dispatch(ctx, &flights[slot], manager);
    for (int slot = 0; slot < geometry->slots; ++slot) {
        moe_flight_check_dispatch(ctx, &flights[slot]);
        moe_flight_experts(ctx, &flights[slot]);
    }
    for (int i = 0; i < geometry->slots; ++i) {
        int slot = (int)((seed + (uint64_t)i) % (uint64_t)geometry->slots);
        moe_flight_combine(ctx, &flights[slot], manager);
    }
    for (int slot = 0; slot < geometry->slots; ++slot) {
        moe_flight_check_combine(ctx, &flights[slot]);
        moe_flight_free(ctx, &flights[slot]);
    }
    RANK_OK(ctx, moelink_manager_fault(manager));
    free(flights);
    rank_scene(ctx, "%s", "");
}

static void random_matrix(rank_context *ctx) {
    const struct matrix *matrix = ctx->user;
    moelink_stream stream = device_stream_create(ctx);
    moelink_manager *managers[PLAN_VARIANTS] = {NULL};
    for (int i = 0; i < PLAN_VARIANTS; ++i) {
        if (plan_has_variant(ctx, plan_variants[i])) managers[i] = make_manager(ctx, plan_variants[i].kind);
    }
    for (int number = 0; number < matrix->cases; ++number) {
        moe_geometry geometry;
        moe_geometry_random(ctx->seed + (uint64_t)number, ctx->size, matrix->values, &geometry);
        for (int i = 0; i < PLAN_VARIANTS; ++i) {
            if (managers[i] == NULL) continue;
            const int32_t kind = plan_variants[i].kind;
            geometry.flags = plan_variants[i].flags;
            moelink_manager_config config = moe_config(&geometry, ctx->rank);
            rank_scene(ctx, "%s, flags %u, geometry %llu", moelink_manager_kind_name(kind), geometry.flags, (unsigned long long)geometry.seed);
            RANK_OK(ctx, moelink_manager_reinit(managers[i], &config));
            for (int j = 0; j < matrix->rounds; ++j) {
                moe_round round;
                moe_round_random(&geometry, random_mix(geometry.seed, 77u + (uint64_t)j), &round);
                moe_round_run(ctx, managers[i], kind, &geometry, &round, stream);
            }
            if (geometry.slots > 1) run_slots_at_once(ctx, managers[i], kind, &geometry, geometry.seed, stream);
        }
    }
    for (int i = 0; i < PLAN_VARIANTS; ++i) moelink_manager_destroy(managers[i]);
    device_stream_destroy(ctx, stream);
}

static void run_random(int ranks, int threads, int share_percent, uint64_t values) {
    int cases = (int)test_number("MOELINK_TEST_CASES", 8);
    struct matrix matrix;
    matrix.cases = cases > 1 ? (cases * share_percent + 99) / 100 : cases;
    matrix.rounds = 4;
    matrix.values = values;
    rank_options options = plan_options(TEST_DEVICE, "random matrix", ranks, threads);
    options.user = &matrix;
    options.seed = test_number("MOELINK_TEST_SEED", 1000u * (uint64_t)ranks);
    options.deadline_ms = 600000;
    options.timeout_ns = (uint64_t)ranks_scaled_ms(120000) * 1000000u; /* a rank with no tokens waits while another checks all of its own */
    PLAN_RUN(&options, random_matrix);
}

static void test_random_1(void **state) {
    (void)state;
    run_random(1, 0, 50, 100000);
}

static void test_random_2(void **state) {
    (void)state;
    run_random(2, 0, 100, 100000);
}

static void test_random_3(void **state) {
    (void)state;
    run_random(3, 1, 100, 60000);
}

static void test_random_4(void **state) {
    (void)state;
    run_random(4, 0, 100, 60000);
}

static void test_random_8(void **state) {
    (void)state;
    run_random(8, 0, 50, 30000);
}

static void test_random_8_threads(void **state) {
    (void)state;
    run_random(8, 1, 25, 30000);
}

/* Full rows of the large models, more of them than the random cases have. */
static void test_random_large(void **state) {
    (void)state;
    if (test_number("MOELINK_TEST_CASES", 8) < 50) skip();
    run_random(2, 0, 10, 300 * 7168);
    run_random(4, 1, 5, 300 * 7168);
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity_and_linearity),
        cmocka_unit_test(test_small_and_exact),
        cmocka_unit_test(test_growth_and_geometry),
        cmocka_unit_test(test_random_1),
        cmocka_unit_test(test_random_2),
        cmocka_unit_test(test_random_3),
        cmocka_unit_test(test_random_4),
        cmocka_unit_test(test_random_8),
        cmocka_unit_test(test_random_8_threads),
        cmocka_unit_test(test_random_large),
    };
    return cmocka_run_group_tests_name("moe matrix", tests, NULL, NULL);
}
