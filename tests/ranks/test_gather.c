/* What the gathering manager does beyond the matrix: rounds without ids (router logits travel), and gathering over the
 * data-parallel ranks while experts are spread over all expert-parallel ones. Values are small whole numbers, so sums are exact. */
#include "plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { HIDDEN = 48, LOGITS = 5, TOKENS = 19, TOP_K = 3 };

static int tokens_of(int rank) { return (rank * 7 + 5) % (TOKENS + 1); }
static float value_of(int rank, int token, int column) { return (float)((rank * 31 + token * 7 + column) % 64); }

/* [tokens, columns] of a rank, on the device. */
static float *rows_of(rank_context *ctx, int rank, int tokens, int columns) {
    uint64_t bytes = (uint64_t)(tokens * columns) * sizeof(float);
    float *host = malloc(bytes + 1), *rows = device_alloc(ctx, bytes + 1);
    for (int token = 0; token < tokens; ++token) {
        for (int column = 0; column < columns; ++column) host[token * columns + column] = value_of(rank, token, column);
    }
    device_copy(ctx, rows, host, bytes);
    free(host);
    return rows;
}

static moelink_rows dense(void *data, int columns) {
    moelink_rows rows = {data, (uint64_t)columns * sizeof(float), 0, MOELINK_DTYPE_F32, 0};
    return rows;
}

static void check_rows(rank_context *ctx, const moelink_dispatched *got, int payload, int source, int tokens, int columns) {
    const moelink_rows *rows = &got->payloads[payload];
    float *row = malloc((size_t)columns * sizeof(float));
    for (int token = 0; token < tokens; ++token) {
        uint64_t at = ((uint64_t)source * (uint64_t)got->slots_per_rank + (uint64_t)token) * rows->row_stride;
        device_copy(ctx, row, (const unsigned char *)rows->data + at, (uint64_t)columns * sizeof(float));
        for (int column = 0; column < columns; ++column) RANK_EQUAL(ctx, row[column], value_of(source, token, column));
    }
    free(row);
}

/* --- no ids --------------------------------------------------------------------------------------------------------------- */

static moelink_manager_config config_for(const uint64_t *row_bytes) {
    moelink_manager_config config = MOELINK_MANAGER_CONFIG_INIT;
    config.max_tokens = TOKENS;
    config.top_k = TOP_K;
    config.num_experts = 16;
    config.payload_count = 2;
    config.payload_row_bytes = row_bytes;
    config.combine_row_bytes = HIDDEN * sizeof(float);
    return config;
}

/* Each rank gives (its number + 1) times what it received; combine must add those of all ranks. */
static void round_without_ids(rank_context *ctx, moelink_manager *manager, uint32_t flags, moelink_stream stream) {
    const int tokens = tokens_of(ctx->rank);
    int64_t counts[RANKS_MAX];
    for (int rank = 0; rank < ctx->size; ++rank) counts[rank] = tokens_of(rank);
    moelink_rows payloads[2] = {dense(rows_of(ctx, ctx->rank, tokens, HIDDEN), HIDDEN), dense(rows_of(ctx, ctx->rank, tokens, LOGITS), LOGITS)};
    moelink_rows received[2];
    moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
    args.num_tokens = tokens;
    args.payload_count = 2;
    args.payloads = payloads;
    args.rank_tokens = counts;
    args.flags = MOELINK_DISPATCH_F_NO_ROUTING | flags;
    moelink_dispatched got = MOELINK_DISPATCHED_INIT;
    got.payloads = received;
    RANK_OK(ctx, moelink_dispatch(manager, &args, stream, &got));
    if (flags != 0) RANK_OK(ctx, moelink_dispatch_receive(manager, 0, stream));
    device_sync(ctx, stream);
    RANK_CHECK(ctx, got.topk_ids == NULL && got.topk_weights == NULL);
    int32_t recv_counts[RANKS_MAX];
    device_copy(ctx, recv_counts, got.recv_counts, (uint64_t)ctx->size * sizeof(int32_t));
    uint64_t bytes = (uint64_t)got.row_capacity * HIDDEN * sizeof(float);
    float *outputs = malloc(bytes), *input = device_alloc(ctx, bytes);
    memset(outputs, 0xff, bytes);
    for (int source = 0; source < ctx->size; ++source) {
        RANK_EQUAL(ctx, recv_counts[source], tokens_of(source));
        check_rows(ctx, &got, 0, source, tokens_of(source), HIDDEN);
        check_rows(ctx, &got, 1, source, tokens_of(source), LOGITS);
        for (int i = 0; i < tokens_of(source) * HIDDEN; ++i) {
            outputs[(int64_t)source * got.slots_per_rank * HIDDEN + i] = (float)(ctx->rank + 1) * value_of(source, i / HIDDEN, i % HIDDEN);
        }
    }
    device_copy(ctx, input, outputs, bytes);
    float *result = device_alloc(ctx, (uint64_t)tokens * HIDDEN * sizeof(float) + 1);
    moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT;
    combine.input = dense(input, HIDDEN);
    combine.output = dense(result, HIDDEN);
    combine.mode = MOELINK_COMBINE_WEIGHTED;
    RANK_STATUS(ctx, moelink_combine(manager, &combine, stream), MOELINK_ERR_INVALID_STATE);
    combine.mode = MOELINK_COMBINE_SUM;
    if (flags != 0) combine.flags = MOELINK_COMBINE_F_SEND_ONLY;
    RANK_OK(ctx, moelink_combine(manager, &combine, stream));
    if (flags != 0) RANK_OK(ctx, moelink_combine_receive(manager, 0, stream));
    device_sync(ctx, stream);
    device_copy(ctx, outputs, result, (uint64_t)tokens * HIDDEN * sizeof(float));
    const int factor = ctx->size * (ctx->size + 1) / 2;
    for (int i = 0; i < tokens * HIDDEN; ++i) RANK_EQUAL(ctx, outputs[i], (float)factor * value_of(ctx->rank, i / HIDDEN, i % HIDDEN));
    RANK_OK(ctx, moelink_manager_fault(manager));
    device_free(ctx, payloads[0].data);
    device_free(ctx, payloads[1].data);
    device_free(ctx, result);
    device_free(ctx, input);
    free(outputs);
}

static void without_ids(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    const uint64_t row_bytes[2] = {HIDDEN * sizeof(float), LOGITS * sizeof(float)};
    for (int i = 0; i < PLAN_VARIANTS; ++i) {
        const plan_variant variant = plan_variants[i];
        if (!plan_has_variant(ctx, variant)) continue;
        rank_scene(ctx, "%s, flags %u", moelink_manager_kind_name(variant.kind), variant.flags);
        moelink_manager *manager = NULL;
        moelink_manager_config config = config_for(row_bytes);
        config.flags = variant.flags;
        RANK_OK(ctx, moelink_manager_create(ctx->group, variant.kind, NULL, &manager));
        RANK_OK(ctx, moelink_manager_init(manager, &config));
        if (variant.kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER || variant.kind == MOELINK_MANAGER_REFERENCE) {
            for (int times = 0; times < 4; ++times) {
                round_without_ids(ctx, manager, times % 2 == 0 ? 0 : MOELINK_DISPATCH_F_SEND_ONLY, stream);
            }
        } else {
            moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
            moelink_dispatched got = MOELINK_DISPATCHED_INIT;
            args.flags = MOELINK_DISPATCH_F_NO_ROUTING;
            RANK_STATUS(ctx, moelink_dispatch(manager, &args, stream, &got), MOELINK_ERR_INVALID_ARGUMENT);
            RANK_TEXT(ctx, moelink_last_error(), "NO_ROUTING");
        }
        moelink_manager_destroy(manager);
    }
    device_stream_destroy(ctx, stream);
    rank_scene(ctx, "%s", "");
}

/* --- gathered over DP, experts over EP -------------------------------------------------------------------------------------- */

struct grid {
    int dp, tp;
};

static int64_t id_of(int dp_rank, int token, int k, int experts) { return (dp_rank * 5 + token * 3 + k * 4) % experts; }

/* Every tensor-parallel rank of a data-parallel one has the same tokens. A manager over the data-parallel group gathers them; what
 * experts of this tensor-parallel column give comes back, and the columns' results add up to that of all experts. */
static void data_parallel(rank_context *ctx) {
    const struct grid *grid = ctx->user;
    moelink_stream stream = device_stream_create(ctx);
    moelink_mapping mapping = MOELINK_MAPPING_INIT;
    mapping.dp = grid->dp;
    mapping.tp = grid->tp;
    mapping.rank = ctx->rank;
    moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
    RANK_OK(ctx, moelink_mapping_describe(&mapping, ctx->size, &info));
    moelink_group *dp_group = NULL;
    RANK_OK(ctx, moelink_group_split(ctx->group, info.dp_color, ctx->rank, &dp_group));
    const int experts = 4 * ctx->size, each = 4, tokens = tokens_of(info.dp_rank);
    int32_t expert_ranks[4 * 16];
    for (int expert = 0; expert < experts; ++expert) {
        const int owner = expert / each;
        expert_ranks[expert] = owner % grid->tp == info.tp_rank ? owner / grid->tp : -1;
    }
    static const int32_t kinds[] = {MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_MANAGER_ONE_SIDED, MOELINK_MANAGER_REFERENCE};
    for (int i = 0; i < 3; ++i) {
        rank_scene(ctx, "%s, DP %d, TP %d", moelink_manager_kind_name(kinds[i]), grid->dp, grid->tp);
        const uint64_t row_bytes[2] = {HIDDEN * sizeof(float), LOGITS * sizeof(float)};
        moelink_manager_config config = config_for(row_bytes);
        config.num_experts = experts;
        config.expert_ranks = expert_ranks;
        moelink_manager *manager = NULL;
        RANK_OK(ctx, moelink_manager_create(dp_group, kinds[i], NULL, &manager));
        RANK_OK(ctx, moelink_manager_init(manager, &config));
        int64_t *ids = malloc((size_t)(tokens * TOP_K + 1) * 8), *ids_device = device_alloc(ctx, (uint64_t)(tokens * TOP_K + 1) * 8);
        for (int at = 0; at < tokens * TOP_K; ++at) ids[at] = id_of(info.dp_rank, at / TOP_K, at % TOP_K, experts);
        device_copy(ctx, ids_device, ids, (uint64_t)(tokens * TOP_K) * 8);
        moelink_rows payload = dense(rows_of(ctx, info.dp_rank, tokens, HIDDEN), HIDDEN), received;
        moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
        args.num_tokens = tokens;
        args.topk_ids = ids_device;
        args.topk_ids_dtype = MOELINK_DTYPE_I64;
        args.payload_count = 1;
        args.payloads = &payload;
        moelink_dispatched got = MOELINK_DISPATCHED_INIT;
        got.payloads = &received;
        RANK_OK(ctx, moelink_dispatch(manager, &args, stream, &got));
        device_sync(ctx, stream);
        const uint64_t rows = (uint64_t)got.row_capacity;
        int32_t counts[RANKS_MAX], *got_ids = malloc(rows * TOP_K * 4);
        device_copy(ctx, counts, got.recv_counts, (uint64_t)grid->dp * 4);
        device_copy(ctx, got_ids, got.topk_ids, rows * TOP_K * 4);
        float *outputs = calloc(rows * HIDDEN, sizeof(float)), *input = device_alloc(ctx, rows * HIDDEN * sizeof(float));
        for (int source = 0; source < grid->dp; ++source) {
            for (int row = 0; row < counts[source]; ++row) {
                const int64_t at = source * got.slots_per_rank + row;
                float hidden[HIDDEN];
                device_copy(ctx, hidden, (unsigned char *)received.data + (uint64_t)at * received.row_stride, sizeof(hidden));
                for (int k = 0; k < TOP_K; ++k) { /* expert e multiplies by e + 1 */
                    const int32_t id = got_ids[at * TOP_K + k];
                    if (id < 0) continue;
                    RANK_EQUAL(ctx, id / each, info.dp_rank * grid->tp + info.tp_rank);
                    for (int h = 0; h < HIDDEN; ++h) outputs[at * HIDDEN + h] += (float)(id + 1) * hidden[h];
                }
            }
        }
        device_copy(ctx, input, outputs, rows * HIDDEN * sizeof(float));
        float *result = device_alloc(ctx, sizeof(float) * TOKENS * HIDDEN);
        device_set(ctx, result, 0, sizeof(float) * TOKENS * HIDDEN);
        moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT;
        combine.input = dense(input, HIDDEN);
        combine.output = dense(result, HIDDEN);
        RANK_OK(ctx, moelink_combine(manager, &combine, stream));
        device_sync(ctx, stream);
        float mine[TOKENS * HIDDEN], *all = malloc(sizeof(mine) * (size_t)ctx->size);
        device_copy(ctx, mine, result, sizeof(mine));
        RANK_OK(ctx, moelink_group_allgather(ctx->group, mine, all, sizeof(mine)));
        for (int token = 0; token < tokens; ++token) {
            for (int h = 0; h < HIDDEN; ++h) {
                float sum = 0, expected = 0;
                for (int tp = 0; tp < grid->tp; ++tp) sum += all[((info.dp_rank * grid->tp + tp) * TOKENS + token) * HIDDEN + h];
                for (int k = 0; k < TOP_K; ++k) {
                    expected += (float)(id_of(info.dp_rank, token, k, experts) + 1) * value_of(info.dp_rank, token, h);
                }
                RANK_EQUAL(ctx, sum, expected);
            }
        }
        moelink_manager_destroy(manager);
        device_free(ctx, ids_device);
        device_free(ctx, payload.data);
        device_free(ctx, input);
        device_free(ctx, result);
        free(ids);
        free(got_ids);
        free(outputs);
        free(all);
    }
    moelink_group_destroy(dp_group);
    device_stream_destroy(ctx, stream);
    rank_scene(ctx, "%s", "");
}

/* --- maps that are refused ---------------------------------------------------------------------------------------------------- */

static void bad_maps(rank_context *ctx) {
    const uint64_t row_bytes[2] = {16, 16};
    moelink_manager_config config = config_for(row_bytes);
    int32_t map[16] = {0};
    config.expert_ranks = map;
    moelink_manager *manager = NULL;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_ONE_SIDED, NULL, &manager));
    map[3] = ctx->size;
    RANK_STATUS(ctx, moelink_manager_init(manager, &config), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "expert_ranks[3]");
    map[3] = ctx->rank; /* not the same on every rank */
    RANK_STATUS(ctx, moelink_manager_init(manager, &config), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "expert_ranks");
    map[3] = 1;
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    RANK_OK(ctx, moelink_manager_ensure(manager, &config));
    map[4] = 1;
    RANK_STATUS(ctx, moelink_manager_ensure(manager, &config), MOELINK_ERR_MISMATCH);
    RANK_OK(ctx, moelink_manager_reinit(manager, &config));
    moelink_manager_destroy(manager);
}

static void run(const char *name, rank_function function, int ranks, int threads, void *user) {
    rank_options options = plan_options(TEST_DEVICE, name, ranks, threads);
    options.user = user;
    PLAN_RUN(&options, function);
}

static void test_without_ids(void **state) {
    (void)state;
    run("no ids", without_ids, 1, 0, NULL);
    run("no ids", without_ids, 2, 0, NULL);
    run("no ids", without_ids, 4, 0, NULL);
    run("no ids", without_ids, 3, 1, NULL);
}

static void test_data_parallel(void **state) {
    (void)state;
    static struct grid grids[] = {{1, 2}, {1, 4}, {2, 1}, {4, 1}, {2, 2}};
    for (size_t i = 0; i < sizeof(grids) / sizeof(grids[0]); ++i) {
        run("gathered over DP", data_parallel, grids[i].dp * grids[i].tp, i % 2 == 1, &grids[i]);
    }
}

static void test_bad_maps(void **state) {
    (void)state;
    run("maps of experts", bad_maps, 2, 0, NULL);
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_ids),
        cmocka_unit_test(test_data_parallel),
        cmocka_unit_test(test_bad_maps),
    };
    return cmocka_run_group_tests_name("gather", tests, NULL, NULL);
}
