/* Managers where sizes are unusual: more ranks than a token has experts, offsets beyond 32 bits, workspaces that no machine has, and rows
 * of the layout that a repeated or FIFO round does not have. On the host device. */
#include "leftovers.h"
#include "ranks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS = 4, CAPACITY = 100, ROOM = 1000 };
static const float untouched = -7;

static int run_ranks(int size, const char *name, rank_function function) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = 1;
    options.name = name;
    return ranks_run(&options, function);
}

static const uint64_t value_bytes = sizeof(float);

/* Rows of one float. */
static moelink_manager_config config_for(int32_t tokens, int32_t experts, uint32_t layouts) {
    moelink_manager_config config = MOELINK_MANAGER_CONFIG_INIT;
    config.max_tokens = tokens;
    config.top_k = 1;
    config.num_experts = experts;
    config.payload_count = 1;
    config.payload_row_bytes = &value_bytes;
    config.combine_row_bytes = sizeof(float);
    config.layouts = layouts;
    return config;
}

static moelink_manager *manager_of(rank_context *ctx, int32_t kind, const moelink_manager_config *config) {
    moelink_manager *manager = NULL;
    RANK_OK(ctx, moelink_manager_create(ctx->group, kind, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, config));
    return manager;
}

static moelink_rows floats(float *values) {
    const moelink_rows rows = {values, sizeof(float), 0, MOELINK_DTYPE_F32, 0};
    return rows;
}

/* All tokens go to expert 0. */
typedef struct flight {
    float values[TOKENS];
    int32_t ids[TOKENS];
    moelink_rows payload, view, output;
    float out[TOKENS];
    float buffer[ROOM];
    moelink_dispatch_args args;
    moelink_dispatched got;
} flight;

static void flight_set(rank_context *ctx, flight *one) {
    const moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
    const moelink_dispatched got = MOELINK_DISPATCHED_INIT;
    for (int i = 0; i < TOKENS; ++i) {
        one->values[i] = (float)(ctx->rank * 10 + i + 1);
        one->ids[i] = 0;
    }
    for (int i = 0; i < ROOM; ++i) one->buffer[i] = untouched;
    one->payload = floats(one->values);
    one->output = floats(one->buffer);
    one->args = args;
    one->args.num_tokens = TOKENS;
    one->args.payload_count = 1;
    one->args.payloads = &one->payload;
    one->args.topk_ids = one->ids;
    one->got = got;
    one->got.payloads = &one->view;
}

static void combine(rank_context *ctx, moelink_manager *manager, flight *one) {
    moelink_combine_args args = MOELINK_COMBINE_ARGS_INIT;
    args.input = one->view;
    args.output = floats(one->out);
    RANK_OK(ctx, moelink_combine(manager, &args, NULL));
}

static void end(rank_context *ctx, moelink_manager *manager) {
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_manager_destroy(manager);
}

/* --- a token on more ranks than it could have experts --- */

static void on_all_ranks(rank_context *ctx) {
    flight one;
    const moelink_manager_config config = config_for(TOKENS, ctx->size, 0);
    moelink_manager *manager = manager_of(ctx, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, &config);
    flight_set(ctx, &one);
    one.args.topk_ids = NULL;
    one.args.flags = MOELINK_DISPATCH_F_NO_ROUTING;
    RANK_OK(ctx, moelink_dispatch(manager, &one.args, NULL, &one.got));
    combine(ctx, manager, &one);
    for (int i = 0; i < TOKENS; ++i) RANK_EQUAL(ctx, one.out[i], (float)ctx->size * one.values[i]);
    end(ctx, manager);
}

static void test_many_ranks(void **state) {
    (void)state;
    for (int ranks = 33; ranks <= 97; ranks += 64) assert_int_equal(run_ranks(ranks, "a token on all ranks", on_all_ranks), 0);
}

/* --- offsets beyond 32 bits --- */

static void far_offsets(rank_context *ctx) {
    enum { EXPERTS = 2049, FAR = 1 << 20 };
    moelink_manager_config config = config_for(EXPERTS, EXPERTS, 1u << MOELINK_LAYOUT_EXPERT_MAJOR);
    config.alignment = FAR;
    config.layout_rows = 10000;
    moelink_manager *manager = manager_of(ctx, MOELINK_MANAGER_ONE_SIDED, &config);
    float *values = calloc(EXPERTS, sizeof(float));
    int32_t *ids = calloc(EXPERTS, sizeof(int32_t));
    for (int i = 0; i < EXPERTS; ++i) ids[i] = i;
    flight one;
    flight_set(ctx, &one);
    one.payload = floats(values);
    one.args.num_tokens = EXPERTS;
    one.args.topk_ids = ids;
    one.args.layout = MOELINK_LAYOUT_EXPERT_MAJOR;
    one.args.alignment = FAR;
    RANK_STATUS(ctx, moelink_dispatch(manager, &one.args, NULL, &one.got), MOELINK_ERR_TOO_SMALL);
    RANK_TEXT(ctx, moelink_last_error(), "2148532224"); /* EXPERTS * FAR */
    moelink_manager_destroy(manager);
    free(values);
    free(ids);
}

static void test_far_offsets(void **state) {
    (void)state;
    assert_int_equal(run_ranks(1, "far offsets", far_offsets), 0);
}

/* --- a workspace that no machine has --- */

static void no_room(rank_context *ctx) {
    enum { TIMES = 100 };
    const uint64_t gibibyte = (uint64_t)1 << 30;
    moelink_manager_config config = config_for(1 << 20, 1 << 17, 1u << MOELINK_LAYOUT_PACKED);
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    moelink_manager *manager = NULL;
    uint64_t payloads[16];
    long before = 0;
    config.payload_row_bytes = &gibibyte;
    config.combine_row_bytes = 0;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_ONE_SIDED, NULL, &manager));
    for (int i = 0; i < TIMES; ++i) {
        RANK_STATUS(ctx, moelink_manager_init(manager, &config), MOELINK_ERR_OUT_OF_MEMORY);
        if (i == TIMES / 2) before = resident_kib();
    }
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)before;
#else
    RANK_CHECK(ctx, resident_kib() < before + 8192); /* the counts of one are 1 MiB */
#endif
    moelink_manager_destroy(manager);
    for (int i = 0; i < 16; ++i) payloads[i] = gibibyte;
    config = config_for(1 << 22, 2, 1u << MOELINK_LAYOUT_EXPERT_MAJOR);
    config.top_k = 16;
    config.payload_count = 16;
    config.payload_row_bytes = payloads;
    config.slots = 16;
    RANK_STATUS(ctx, moelink_manager_query(ctx->group, MOELINK_MANAGER_ONE_SIDED, &config, &sizes), MOELINK_ERR_OUT_OF_MEMORY);
}

static void test_no_room(void **state) {
    (void)state;
    assert_int_equal(run_ranks(1, "no room", no_room), 0);
}

/* --- the caller's rows, in the layout that counts --- */

static void expect_untouched(rank_context *ctx, const flight *one, int from) {
    for (int i = from; i < ROOM; ++i) RANK_EQUAL(ctx, one->buffer[i], untouched);
}

/* A repeated routing has the layout of the dispatch that it repeats, whatever the arguments say. */
static void repeated(rank_context *ctx) {
    for (int packed = 0; packed < 2; ++packed) {
        flight one;
        rank_scene(ctx, "%s first", packed ? "packed" : "rank-major");
        const moelink_manager_config config = config_for(CAPACITY, ctx->size, 1u << MOELINK_LAYOUT_PACKED);
        moelink_manager *manager = manager_of(ctx, MOELINK_MANAGER_ONE_SIDED, &config);
        flight_set(ctx, &one);
        one.args.layout = packed ? MOELINK_LAYOUT_PACKED : MOELINK_LAYOUT_RANK_MAJOR;
        RANK_OK(ctx, moelink_dispatch(manager, &one.args, NULL, &one.got));
        combine(ctx, manager, &one);
        one.args.flags = MOELINK_DISPATCH_F_CACHED_ROUTING;
        one.args.topk_ids = NULL;
        one.args.outputs = &one.output;
        one.args.output_rows = ctx->size * TOKENS;
        one.args.layout = packed ? MOELINK_LAYOUT_RANK_MAJOR : MOELINK_LAYOUT_PACKED;
        RANK_STATUS(ctx, moelink_dispatch(manager, &one.args, NULL, &one.got), packed ? MOELINK_OK : MOELINK_ERR_TOO_SMALL);
        if (packed) RANK_EQUAL(ctx, one.got.row_capacity, ctx->size * TOKENS);
        expect_untouched(ctx, &one, packed ? ctx->size * TOKENS : 0);
        end(ctx, manager);
    }
}

static void test_repeated(void **state) {
    (void)state;
    assert_int_equal(run_ranks(2, "repeated", repeated), 0);
}

/* Rows that a dispatch arranges after the FIFOs are not where alltoallv would put more. */
static void alltoallv_after(rank_context *ctx) {
    flight one;
    moelink_manager_config config = config_for(CAPACITY, ctx->size, 1u << MOELINK_LAYOUT_PACKED);
    config.layout_rows = 16;
    moelink_manager *manager = manager_of(ctx, MOELINK_MANAGER_TWO_SIDED, &config);
    flight_set(ctx, &one);
    one.args.layout = MOELINK_LAYOUT_PACKED;
    RANK_OK(ctx, moelink_dispatch(manager, &one.args, NULL, &one.got));
    RANK_STATUS(ctx, moelink_alltoallv(manager, 0, &one.payload, 1, &one.output, NULL), MOELINK_ERR_UNSUPPORTED);
    RANK_TEXT(ctx, moelink_last_error(), "packed");
    expect_untouched(ctx, &one, 0);
    combine(ctx, manager, &one);
    for (int i = 0; i < TOKENS; ++i) RANK_EQUAL(ctx, one.out[i], one.values[i]);
    one.args.layout = MOELINK_LAYOUT_RANK_MAJOR;
    RANK_OK(ctx, moelink_dispatch(manager, &one.args, NULL, &one.got));
    RANK_OK(ctx, moelink_alltoallv(manager, 0, &one.payload, 1, &one.output, NULL));
    if (ctx->rank == 0) RANK_EQUAL(ctx, one.buffer[(ctx->size - 1) * CAPACITY], (float)((ctx->size - 1) * 10 + 1));
    combine(ctx, manager, &one);
    end(ctx, manager);
}

static void test_alltoallv_after(void **state) {
    (void)state;
    assert_int_equal(run_ranks(2, "alltoallv after dispatch", alltoallv_after), 0);
}

/* --- counts of a dispatch whose rows were lost --- */

static void lost_counts(rank_context *ctx) {
    flight one;
    int64_t rows = -1;
    moelink_manager_config config = config_for(CAPACITY, ctx->size, 1u << MOELINK_LAYOUT_PACKED);
    config.timeout_ns = (uint64_t)ranks_scaled_ms(300) * 1000000u;
    moelink_manager *manager = manager_of(ctx, MOELINK_MANAGER_ONE_SIDED, &config);
    flight_set(ctx, &one);
    one.args.layout = MOELINK_LAYOUT_PACKED;
    RANK_OK(ctx, moelink_dispatch(manager, &one.args, NULL, &one.got));
    RANK_OK(ctx, moelink_dispatch_counts(manager, 0, 0, NULL, NULL, &rows));
    RANK_EQUAL(ctx, rows, ctx->rank == 0 ? ctx->size * TOKENS : 0);
    combine(ctx, manager, &one);
    RANK_CHECK(ctx, rank_meet(ctx, ranks_scaled_ms(5000)));
    if (ctx->rank == 0) {
        RANK_STATUS(ctx, moelink_dispatch(manager, &one.args, NULL, &one.got), MOELINK_ERR_TIMEOUT);
        RANK_STATUS(ctx, moelink_dispatch_counts(manager, 0, 0, NULL, NULL, &rows), MOELINK_ERR_INVALID_STATE);
    }
    RANK_CHECK(ctx, rank_meet(ctx, ranks_scaled_ms(5000)));
    moelink_manager_destroy(manager);
}

static void test_lost_counts(void **state) {
    (void)state;
    assert_int_equal(run_ranks(2, "lost counts", lost_counts), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_ranks), cmocka_unit_test(test_far_offsets),     cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_repeated),   cmocka_unit_test(test_alltoallv_after), cmocka_unit_test(test_lost_counts),
    };
    return cmocka_run_group_tests_name("managers of unusual sizes", tests, NULL, NULL);
}
