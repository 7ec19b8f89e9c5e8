/* The two-sided manager in parts: prepare, alltoallv and its way back, each with everything it gives, over FIFOs from the smallest on;
 * ranks out of step, rounds that are given up, lost and repaired, and a rank that is killed while rows travel. */
#include "moe_case.h"
#include "plan.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { MEET_MS = 30000, MOST_TENSORS = 4, STATISTICS = 5 };

/* --- one rank's round: what it has, and what must come of it ---------------------------------------------------------------- */

struct round {
    moelink_manager *manager;
    moelink_stream stream;
    const moe_geometry *geometry;
    moe_round shape;
    int packed;
    int weights;
    int statistics;
    int tokens;
    int64_t capacity, received; /* rows */
    int64_t *ids[RANKS_MAX];    /* of every rank */
    int *arrivals[RANKS_MAX];   /* tokens of each source that come here, in order */
    int counts[RANKS_MAX];
    void *device_ids, *device_weights, *device_statistics;
    moelink_prepared prepared;
};

static void stall(rank_context *ctx, uint64_t seed) {
    uint64_t state = random_mix(seed, 99 + (uint64_t)ctx->rank);
    if (random_chance(&state, 30)) usleep((useconds_t)random_range(&state, 0, 3000));
}

static int goes(const struct round *round, int source, int token, int rank, int ranks) {
    unsigned char marks[RANKS_MAX];
    const moe_geometry *geometry = round->geometry;
    token_ranks(round->ids[source] + (int64_t)token * geometry->top_k, geometry->top_k, geometry->experts, ranks, marks);
    return marks[rank];
}

static void round_start(rank_context *ctx, struct round *round, moelink_manager *manager, const moe_geometry *geometry, uint64_t seed,
                        moelink_stream stream) {
    memset(round, 0, sizeof(*round));
    round->manager = manager;
    round->stream = stream;
    round->geometry = geometry;
    moe_round_random(geometry, seed, &round->shape);
    round->packed = (int)(random_mix(seed, 1) % 2);
    round->weights = (int)(random_mix(seed, 2) % 4 != 0);
    round->statistics = (int)(random_mix(seed, 3) % 2) ? STATISTICS : 0;
    round->tokens = round->shape.tokens[ctx->rank];
    round->capacity = geometry->capacity;
    for (int source = 0; source < ctx->size; ++source) {
        int tokens = round->shape.tokens[source];
        round->ids[source] = host_memory(ctx, (uint64_t)tokens * (uint64_t)geometry->top_k * 8);
        round->arrivals[source] = host_memory(ctx, (uint64_t)tokens * sizeof(int));
        moe_ids(geometry, &round->shape, source, round->ids[source]);
        for (int token = 0; token < tokens; ++token) {
            if (goes(round, source, token, ctx->rank, ctx->size)) round->arrivals[source][round->counts[source]++] = token;
        }
        round->received += round->counts[source];
    }
}

static int64_t row_of(const struct round *round, int source, int index) {
    int64_t row = index;
    if (!round->packed) return source * round->capacity + row;
    for (int earlier = 0; earlier < source; ++earlier) row += round->counts[earlier];
    return row;
}

static void round_prepare(rank_context *ctx, struct round *round) {
    const moe_geometry *geometry = round->geometry;
    uint64_t count = (uint64_t)round->tokens * (uint64_t)geometry->top_k;
    int64_t statistics[STATISTICS];
    round->device_ids = device_alloc(ctx, count * 8);
    round->device_weights = device_alloc(ctx, count * 4);
    round->device_statistics = device_alloc(ctx, sizeof(statistics));
    device_copy(ctx, round->device_ids, round->ids[ctx->rank], count * 8);
    float *weights = host_memory(ctx, count * 4);
    moe_weights(geometry, &round->shape, ctx->rank, weights);
    device_copy(ctx, round->device_weights, weights, count * 4);
    free(weights);
    for (int i = 0; i < STATISTICS; ++i) statistics[i] = (int64_t)random_mix(round->shape.seed, (uint64_t)(ctx->rank * 100 + i));
    device_copy(ctx, round->device_statistics, statistics, sizeof(statistics));
    moelink_prepare_args args = MOELINK_PREPARE_ARGS_INIT;
    args.slot = round->shape.slot;
    args.num_tokens = round->tokens;
    args.topk_ids_dtype = MOELINK_DTYPE_I64;
    args.topk_ids = round->device_ids;
    args.topk_weights = round->weights ? round->device_weights : NULL;
    args.layout = round->packed ? MOELINK_LAYOUT_PACKED : MOELINK_LAYOUT_RANK_MAJOR;
    args.invalid_id = round->shape.invalid_id;
    args.statistics = round->statistics ? round->device_statistics : NULL;
    args.num_statistics = round->statistics;
    moelink_prepared_init(&round->prepared);
    stall(ctx, round->shape.seed);
    RANK_OK(ctx, moelink_prepare(round->manager, &args, round->stream, &round->prepared));
}

static void check_sent(rank_context *ctx, const struct round *round) {
    const moelink_prepared *prepared = &round->prepared;
    int distinct = prepared->max_distinct;
    int32_t *counts = device_download(ctx, prepared->send_counts, (uint64_t)ctx->size * 4);
    int32_t *offsets = device_download(ctx, prepared->send_offsets, (uint64_t)(ctx->size + 1) * 4);
    int32_t *tokens = device_download(ctx, prepared->send_tokens, (uint64_t)prepared->send_capacity * 4);
    int32_t *back = device_download(ctx, prepared->back_rows, (uint64_t)round->tokens * (uint64_t)distinct * 4);
    int32_t *expected = host_memory(ctx, (uint64_t)round->tokens * (uint64_t)distinct * 4);
    int *next = calloc((size_t)round->tokens + 1, sizeof(int));
    int row = 0;
    RANK_EQUAL(ctx, distinct, ctx->size < round->geometry->top_k ? ctx->size : round->geometry->top_k);
    memset(expected, 0xff, (size_t)round->tokens * (size_t)distinct * 4);
    for (int rank = 0; rank < ctx->size; ++rank) {
        RANK_EQUAL(ctx, offsets[rank], row);
        for (int token = 0; token < round->tokens; ++token) {
            if (!goes(round, ctx->rank, token, rank, ctx->size)) continue;
            RANK_EQUAL(ctx, tokens[row], token);
            expected[(int64_t)token * distinct + next[token]++] = row++;
        }
        RANK_EQUAL(ctx, counts[rank], row - offsets[rank]);
    }
    RANK_EQUAL(ctx, offsets[ctx->size], row);
    for (int i = 0; i < round->tokens * distinct; ++i) RANK_EQUAL(ctx, back[i], expected[i]);
    free(next);
    free(expected);
    free(back);
    free(tokens);
    free(offsets);
    free(counts);
}

static void check_received(rank_context *ctx, const struct round *round) {
    const moelink_prepared *prepared = &round->prepared;
    const moe_geometry *geometry = round->geometry;
    int top_k = geometry->top_k;
    uint64_t values = (uint64_t)prepared->row_capacity * (uint64_t)top_k;
    int32_t *counts = device_download(ctx, prepared->recv_counts, (uint64_t)ctx->size * 4);
    int32_t *offsets = device_download(ctx, prepared->recv_offsets, (uint64_t)(ctx->size + 1) * 4);
    int32_t *ids = device_download(ctx, prepared->topk_ids, values * 4), *expected = host_memory(ctx, values * 4);
    float *weights = round->weights ? device_download(ctx, prepared->topk_weights, values * 4) : NULL;
    int sum = 0;
    for (uint64_t i = 0; i < values; ++i) expected[i] = round->shape.invalid_id;
    for (int source = 0; source < ctx->size; ++source) {
        float *sent = host_memory(ctx, (uint64_t)round->shape.tokens[source] * (uint64_t)top_k * 4);
        moe_weights(geometry, &round->shape, source, sent);
        RANK_EQUAL(ctx, counts[source], round->counts[source]);
        RANK_EQUAL(ctx, offsets[source], sum);
        sum += round->counts[source];
        for (int i = 0; i < round->counts[source]; ++i) {
            int64_t row = row_of(round, source, i), token = round->arrivals[source][i];
            for (int k = 0; k < top_k; ++k) {
                int64_t id = round->ids[source][token * top_k + k];
                if (expert_owner(id, geometry->experts, ctx->size) == ctx->rank) expected[row * top_k + k] = (int32_t)id;
            }
            if (weights == NULL) continue;
            RANK_CHECK(ctx, memcmp(weights + row * top_k, sent + token * top_k, (size_t)top_k * 4) == 0);
        }
        free(sent);
    }
    RANK_EQUAL(ctx, offsets[ctx->size], sum);
    for (uint64_t i = 0; i < values; ++i) {
        if (ids[i] != expected[i]) RANK_FAIL(ctx, "topk_ids[%llu] is %d, expected %d", (unsigned long long)i, ids[i], expected[i]);
    }
    free(weights);
    free(expected);
    free(ids);
    free(offsets);
    free(counts);
}

static void round_check_prepared(rank_context *ctx, const struct round *round) {
    device_sync(ctx, round->stream);
    RANK_OK(ctx, moelink_manager_fault(round->manager));
    RANK_EQUAL(ctx, round->prepared.ranks, ctx->size);
    RANK_EQUAL(ctx, round->prepared.slots_per_rank, round->capacity);
    RANK_EQUAL(ctx, round->prepared.row_capacity, round->capacity * ctx->size);
    RANK_CHECK(ctx, (round->prepared.topk_weights != NULL) == (round->weights || round->tokens == 0));
    RANK_CHECK(ctx, (round->prepared.statistics != NULL) == (round->statistics != 0));
    check_sent(ctx, round);
    check_received(ctx, round);
    if (round->statistics == 0) return;
    int64_t *all = device_download(ctx, round->prepared.statistics, (uint64_t)ctx->size * STATISTICS * 8);
    for (int i = 0; i < ctx->size * STATISTICS; ++i) {
        RANK_EQUAL(ctx, all[i], (int64_t)random_mix(round->shape.seed, (uint64_t)(i / STATISTICS * 100 + i % STATISTICS)));
    }
    free(all);
}

static void tensor_row(const struct round *round, int turn, int tensor, int source, int token, void *row, uint64_t bytes) {
    random_bytes(random_mix(random_mix(round->shape.seed, (uint64_t)(turn * 10 + tensor)), (uint64_t)source << 32 | (uint64_t)token), row, bytes);
}

/* Tensors of any size, some of which are not sent, some with gaps between their rows. */
static void round_alltoallv(rank_context *ctx, const struct round *round, int turn) {
    static const uint64_t sizes[] = {1, 2, 4, 7, 16, 24, 80, 333, 1536, 1552, 3072, 5000};
    uint64_t state = random_mix(round->shape.seed, 500 + (uint64_t)turn), own = random_mix(round->shape.seed, 600 + (uint64_t)ctx->rank);
    int count = random_range(&state, 0, MOST_TENSORS);
    moelink_rows tensors[MOST_TENSORS], outputs[MOST_TENSORS];
    guarded input[MOST_TENSORS], output[MOST_TENSORS];
    uint64_t rows = (uint64_t)(round->capacity * ctx->size);
    memset(tensors, 0, sizeof(tensors));
    memset(outputs, 0, sizeof(outputs));
    memset(input, 0, sizeof(input));
    memset(output, 0, sizeof(output));
    for (int i = 0; i < count; ++i) {
        uint64_t bytes = sizes[random_range(&state, 0, (int)(sizeof(sizes) / sizeof(sizes[0])) - 1)];
        if (random_chance(&state, 15)) continue; /* absent scales */
        tensors[i].row_bytes = bytes;
        tensors[i].row_stride = bytes + (random_chance(&own, 50) ? 0 : (uint64_t)random_range(&own, 0, 20));
        outputs[i].row_bytes = random_chance(&own, 50) ? 0 : bytes;
        outputs[i].row_stride = bytes + (random_chance(&own, 50) ? 0 : (uint64_t)random_range(&own, 0, 20));
        input[i] = guarded_make(ctx, (uint64_t)round->tokens * tensors[i].row_stride, (unsigned)random_range(&own, 0, 1) * 3u);
        output[i] = guarded_make(ctx, rows * outputs[i].row_stride, (unsigned)random_range(&own, 0, 1) * 5u);
        unsigned char *staging = host_memory(ctx, input[i].bytes);
        for (int token = 0; token < round->tokens; ++token) {
            tensor_row(round, turn, i, ctx->rank, token, staging + (uint64_t)token * tensors[i].row_stride, bytes);
        }
        device_copy(ctx, input[i].data, staging, input[i].bytes);
        free(staging);
        tensors[i].data = round->tokens != 0 ? input[i].data : NULL;
        outputs[i].data = output[i].data;
    }
    stall(ctx, round->shape.seed + (uint64_t)turn);
    RANK_OK(ctx, moelink_alltoallv(round->manager, round->shape.slot, tensors, count, outputs, round->stream));
    device_sync(ctx, round->stream);
    RANK_OK(ctx, moelink_manager_fault(round->manager));
    for (int i = 0; i < count; ++i) {
        if (tensors[i].row_bytes == 0) continue;
        uint64_t bytes = tensors[i].row_bytes, stride = outputs[i].row_stride;
        unsigned char *got = device_download(ctx, output[i].data, output[i].bytes), *expected = host_memory(ctx, output[i].bytes);
        memset(expected, GUARDED_POISON, output[i].bytes);
        for (int source = 0; source < ctx->size; ++source) {
            for (int row = 0; row < round->counts[source]; ++row) {
                tensor_row(round, turn, i, source, round->arrivals[source][row], expected + (uint64_t)row_of(round, source, row) * stride, bytes);
            }
        }
        for (uint64_t at = 0; at < output[i].bytes; ++at) {
            if (got[at] == expected[at]) continue;
            RANK_FAIL(ctx, "turn %d, tensor %d of %llu bytes: byte %llu of row %llu is 0x%02x, expected 0x%02x", turn, i, (unsigned long long)bytes,
                      (unsigned long long)(at % stride), (unsigned long long)(at / stride), got[at], expected[at]);
        }
        free(expected);
        free(got);
        guarded_check(ctx, &output[i], "output");
        guarded_free(ctx, &input[i]);
        guarded_free(ctx, &output[i]);
    }
}

static void expert_row(const struct round *round, int turn, int source, int token, int rank, int32_t dtype, uint64_t hidden, void *row) {
    random_values(random_mix(random_mix(round->shape.seed, (uint64_t)(900 + turn)), (uint64_t)source << 40 | (uint64_t)token << 8 | (uint64_t)rank), row,
                  dtype, hidden);
}

static void check_sums(rank_context *ctx, const struct round *round, int turn, int weighted, int32_t dtype, uint64_t hidden, uint64_t stride,
                       const unsigned char *got) {
    const moe_geometry *geometry = round->geometry;
    float *weights = host_memory(ctx, (uint64_t)round->tokens * (uint64_t)geometry->top_k * 4);
    combine_sum *sums = host_memory(ctx, hidden * sizeof(*sums));
    unsigned char *row = host_memory(ctx, hidden * 4);
    moe_weights(geometry, &round->shape, ctx->rank, weights);
    for (int token = 0; token < round->tokens; ++token) {
        memset(sums, 0, hidden * sizeof(*sums));
        for (int rank = 0; rank < ctx->size; ++rank) {
            if (!goes(round, ctx->rank, token, rank, ctx->size)) continue;
            double weight = 1, magnitude = 1;
            for (int k = 0; k < geometry->top_k && weighted; ++k) {
                int64_t at = (int64_t)token * geometry->top_k + k;
                if (k == 0) weight = magnitude = 0;
                if (expert_owner(round->ids[ctx->rank][at], geometry->experts, ctx->size) != rank) continue;
                weight += weights[at];
                magnitude += weights[at] < 0 ? -weights[at] : weights[at];
            }
            expert_row(round, turn, ctx->rank, token, rank, dtype, hidden, row);
            for (uint64_t i = 0; i < hidden; ++i) combine_add(&sums[i], weight, magnitude, value_load(row, dtype, i));
        }
        for (uint64_t i = 0; i < hidden; ++i) {
            float value = value_load(got + (uint64_t)token * stride, dtype, i);
            if (combine_close(&sums[i], value, dtype, weighted ? geometry->top_k : 0, 0)) continue;
            RANK_FAIL(ctx, "turn %d, token %d, value %llu of %llu: %g, expected %g", turn, token, (unsigned long long)i, (unsigned long long)hidden,
                      (double)value, sums[i].value);
        }
    }
    free(row);
    free(sums);
    free(weights);
}

static void round_combine(rank_context *ctx, const struct round *round, int turn, int ends) {
    static const int32_t dtypes[] = {MOELINK_DTYPE_F32, MOELINK_DTYPE_F16, MOELINK_DTYPE_BF16};
    uint64_t state = random_mix(round->shape.seed, 700 + (uint64_t)turn), own = random_mix(round->shape.seed, 800 + (uint64_t)ctx->rank);
    int32_t dtype = dtypes[random_range(&state, 0, 2)];
    uint64_t size = dtype_bytes(dtype), hidden = round->geometry->combine_row_bytes / 4;
    if (random_chance(&state, 40)) hidden = (uint64_t)random_range(&state, 1, (int)hidden);
    int weighted = round->weights && random_chance(&state, 40);
    moelink_combine_args args = MOELINK_COMBINE_ARGS_INIT;
    args.slot = round->shape.slot;
    args.mode = weighted ? MOELINK_COMBINE_WEIGHTED : MOELINK_COMBINE_SUM;
    args.input.dtype = args.output.dtype = dtype;
    args.input.row_bytes = args.output.row_bytes = hidden * size;
    args.input.row_stride = (hidden + (uint64_t)random_range(&own, 0, 1) * 3) * size;
    args.output.row_stride = (hidden + (uint64_t)random_range(&own, 0, 1) * 5) * size;
    guarded input = guarded_make(ctx, (uint64_t)(round->capacity * ctx->size) * args.input.row_stride, (unsigned)(random_range(&own, 0, 1) * (int)size));
    guarded output = guarded_make(ctx, (uint64_t)round->tokens * args.output.row_stride, (unsigned)(random_range(&own, 0, 1) * (int)size));
    unsigned char *staging = host_memory(ctx, input.bytes);
    memset(staging, 0xff, input.bytes); /* NaN: rows that mean nothing must not be read */
    for (int source = 0; source < ctx->size; ++source) {
        for (int row = 0; row < round->counts[source]; ++row) {
            expert_row(round, turn, source, round->arrivals[source][row], ctx->rank, dtype, hidden,
                       staging + (uint64_t)row_of(round, source, row) * args.input.row_stride);
        }
    }
    device_copy(ctx, input.data, staging, input.bytes);
    free(staging);
    args.input.data = input.data;
    args.output.data = output.data;
    stall(ctx, round->shape.seed + 31u * (uint64_t)turn);
    if (ends) {
        RANK_OK(ctx, moelink_combine(round->manager, &args, round->stream));
    } else {
        RANK_OK(ctx, moelink_alltoallv_combine(round->manager, &args, round->stream));
    }
    device_sync(ctx, round->stream);
    RANK_OK(ctx, moelink_manager_fault(round->manager));
    unsigned char *got = device_download(ctx, output.data, output.bytes);
    check_sums(ctx, round, turn, weighted, dtype, hidden, args.output.row_stride, got);
    free(got);
    guarded_check(ctx, &input, "combine input");
    guarded_check(ctx, &output, "combine output");
    guarded_free(ctx, &input);
    guarded_free(ctx, &output);
}

static void round_end(rank_context *ctx, struct round *round) {
    for (int source = 0; source < ctx->size; ++source) {
        free(round->ids[source]);
        free(round->arrivals[source]);
    }
    device_free(ctx, round->device_ids);
    device_free(ctx, round->device_weights);
    device_free(ctx, round->device_statistics);
}

static void expect_state(rank_context *ctx, const moelink_manager *manager, int32_t state, uint64_t generation) {
    int32_t got = -1;
    uint64_t number = 0;
    RANK_OK(ctx, moelink_manager_state_of(manager, &got, &number));
    RANK_EQUAL(ctx, got, state);
    RANK_EQUAL(ctx, number, generation);
}

/* Prepare, some tensors, some ways back, and an end of one kind or the other. */
static void whole_round(rank_context *ctx, moelink_manager *manager, const moe_geometry *geometry, uint64_t seed, moelink_stream stream) {
    struct round round;
    uint64_t state = random_mix(seed, 4);
    rank_scene(ctx, "geometry %llu, round %llu", (unsigned long long)geometry->seed, (unsigned long long)seed);
    round_start(ctx, &round, manager, geometry, seed, stream);
    round_prepare(ctx, &round);
    if (random_chance(&state, 80)) round_check_prepared(ctx, &round); /* else what follows meets kernels that still run */
    int turns = random_range(&state, 0, 3);
    for (int turn = 0; turn < turns; ++turn) {
        round_alltoallv(ctx, &round, turn);
        if (random_chance(&state, 40)) round_combine(ctx, &round, turn, 0);
    }
    if (random_chance(&state, 75)) {
        round_combine(ctx, &round, 9, 1);
    } else {
        RANK_OK(ctx, moelink_manager_abandon(manager, round.shape.slot));
    }
    round_end(ctx, &round);
    rank_scene(ctx, "%s", "");
}

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
        for (uint64_t i = 0; i < 6; ++i) whole_round(ctx, manager, &geometry, random_mix(ctx->seed + (uint64_t)number, i), stream);
        expect_state(ctx, manager, MOELINK_STATE_READY, (uint64_t)number + 1);
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
    expect_state(ctx, manager, MOELINK_STATE_READY, 5);
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

/* --- rounds that are lost, and abandon that repairs them --------------------------------------------------------------------- */

static void repaired(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    moelink_manager *manager = NULL;
    moe_geometry geometry;
    moe_geometry_plain(ctx->size, 40, 3, 4 * ctx->size, 600, MOELINK_DTYPE_F32, &geometry);
    geometry.slots = 2;
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    config.timeout_ns = (uint64_t)ranks_scaled_ms(400) * 1000000u;
    config.fifo_bytes = 4096;
    RANK_OK(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_TWO_SIDED, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    int last = ctx->size - 1;
    for (int step = 0; step < 3; ++step) { /* lost in prepare, in alltoallv, in combine */
        struct round round, other;
        int lost = (step + 1) % 2;
        round_start(ctx, &round, manager, &geometry, 100 + (uint64_t)step, stream);
        round_start(ctx, &other, manager, &geometry, 200 + (uint64_t)step, stream);
        round.shape.slot = lost;
        other.shape.slot = 1 - lost;
        round_prepare(ctx, &other); /* in flight when the other slot's round is lost */
        round_check_prepared(ctx, &other);
        if (step > 0) {
            round_prepare(ctx, &round);
            round_check_prepared(ctx, &round);
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
            expect_state(ctx, manager, MOELINK_STATE_FAULTED, 1);
            device_free(ctx, from);
            device_free(ctx, to);
        }
        RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
        RANK_OK(ctx, moelink_manager_abandon(manager, 1 - lost)); /* repairs all slots */
        RANK_OK(ctx, moelink_manager_fault(manager));
        expect_state(ctx, manager, MOELINK_STATE_READY, 1);
        round_end(ctx, &round);
        round_end(ctx, &other);
        for (uint64_t i = 0; i < 3; ++i) whole_round(ctx, manager, &geometry, 300 + 10u * (uint64_t)step + i, stream);
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
    struct round round;
    round_start(ctx, &round, manager, &geometry, 12, NULL);
    round_prepare(ctx, &round);
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
    round_end(ctx, &round);
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

static void refusals(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    moe_geometry geometry;
    moe_geometry_plain(ctx->size, 8, 2, 9, 40, MOELINK_DTYPE_F32, &geometry);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    moelink_prepare_args args = MOELINK_PREPARE_ARGS_INIT;
    moelink_prepared prepared = MOELINK_PREPARED_INIT;
    moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT;
    int64_t *memory = device_alloc(ctx, 4096);
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
        expect_state(ctx, manager, MOELINK_STATE_READY, 1);
        RANK_OK(ctx, moelink_prepare(manager, &args, stream, &prepared)); /* no tokens anywhere */
        expect_state(ctx, manager, MOELINK_STATE_DISPATCHED, 1);
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
        expect_state(ctx, manager, MOELINK_STATE_READY, 1);
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
        cmocka_unit_test(test_parts),           cmocka_unit_test(test_smallest_fifos),           cmocka_unit_test(test_abandon_repairs),
        cmocka_unit_test(test_killed_while_rows_travel), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("two-sided", tests, NULL, NULL);
}
