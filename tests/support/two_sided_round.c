#include "two_sided_round.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_TENSORS = 4, STATISTICS = 5 };


static void stall(rank_context *ctx, uint64_t seed) {
    uint64_t state = random_mix(seed, 99 + (uint64_t)ctx->rank);
    if (random_chance(&state, 30)) usleep((useconds_t)random_range(&state, 0, 3000));
}

static int goes(const two_sided_round *round, int source, int token, int rank, int ranks) {
    unsigned char marks[RANKS_MAX];
    const moe_geometry *geometry = round->geometry;
    token_ranks(round->ids[source] + (int64_t)token * geometry->top_k, geometry->top_k, geometry->experts, ranks, marks);
    return marks[rank];
}

void two_sided_start(rank_context *ctx, two_sided_round *round, moelink_manager *manager, const moe_geometry *geometry, uint64_t seed,
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

static int64_t row_of(const two_sided_round *round, int source, int index) {
    int64_t row = index;
    if (!round->packed) return source * round->capacity + row;
    for (int earlier = 0; earlier < source; ++earlier) row += round->counts[earlier];
    return row;
}

void two_sided_prepare(rank_context *ctx, two_sided_round *round) {
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

static void check_sent(rank_context *ctx, const two_sided_round *round) {
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

static void check_received(rank_context *ctx, const two_sided_round *round) {
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

void two_sided_check_prepared(rank_context *ctx, const two_sided_round *round) {
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

static void tensor_row(const two_sided_round *round, int turn, int tensor, int source, int token, void *row, uint64_t bytes) {
    random_bytes(random_mix(random_mix(round->shape.seed, (uint64_t)(turn * 10 + tensor)), (uint64_t)source << 32 | (uint64_t)token), row, bytes);
}

/* Tensors of any size, some of which are not sent, some with gaps between their rows. */
static void round_alltoallv(rank_context *ctx, const two_sided_round *round, int turn) {
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

static void expert_row(const two_sided_round *round, int turn, int source, int token, int rank, int32_t dtype, uint64_t hidden, void *row) {
    random_values(random_mix(random_mix(round->shape.seed, (uint64_t)(900 + turn)), (uint64_t)source << 40 | (uint64_t)token << 8 | (uint64_t)rank), row,
                  dtype, hidden);
}

static void check_sums(rank_context *ctx, const two_sided_round *round, int turn, int weighted, int32_t dtype, uint64_t hidden, uint64_t stride,
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

static void round_combine(rank_context *ctx, const two_sided_round *round, int turn, int ends) {
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

void two_sided_end(rank_context *ctx, two_sided_round *round) {
    for (int source = 0; source < ctx->size; ++source) {
        free(round->ids[source]);
        free(round->arrivals[source]);
    }
    device_free(ctx, round->device_ids);
    device_free(ctx, round->device_weights);
    device_free(ctx, round->device_statistics);
}

void two_sided_whole_round(rank_context *ctx, moelink_manager *manager, const moe_geometry *geometry, uint64_t seed, moelink_stream stream) {
    two_sided_round round;
    uint64_t state = random_mix(seed, 4);
    rank_scene(ctx, "geometry %llu, round %llu", (unsigned long long)geometry->seed, (unsigned long long)seed);
    two_sided_start(ctx, &round, manager, geometry, seed, stream);
    two_sided_prepare(ctx, &round);
    if (random_chance(&state, 80)) two_sided_check_prepared(ctx, &round); /* else what follows meets kernels that still run */
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
    two_sided_end(ctx, &round);
    rank_scene(ctx, "%s", "");
}
