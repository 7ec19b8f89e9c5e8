/* What a rank must have received, and what its combine must give. */
#include "moe_case.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of a source that come here, in the order of their rows. */
struct arrivals {
    int count;
    int *tokens;
    unsigned char *local; /* 1: the token has an expert here */
    int64_t *ids;         /* of all of the source's tokens */
};

static struct arrivals arrivals_from(rank_context *ctx, const moe_flight *flight, int source) {
    const moe_geometry *geometry = flight->geometry;
    const moe_round *round = &flight->round;
    int tokens = round->tokens[source];
    int gathers = flight->kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER;
    struct arrivals result;
    result.count = 0;
    result.tokens = host_memory(ctx, (uint64_t)tokens * sizeof(int));
    result.local = host_memory(ctx, (uint64_t)tokens);
    result.ids = host_memory(ctx, (uint64_t)tokens * (uint64_t)geometry->top_k * 8);
    moe_ids(geometry, round, source, result.ids);
    unsigned char marks[RANKS_MAX];
    for (int token = 0; token < tokens; ++token) {
        moe_token_ranks(geometry, result.ids + (int64_t)token * geometry->top_k, marks);
        if (!marks[ctx->rank] && !gathers) continue;
        result.tokens[result.count] = token;
        result.local[result.count++] = marks[ctx->rank];
    }
    return result;
}

static void arrivals_free(struct arrivals *arrivals) {
    free(arrivals->tokens);
    free(arrivals->local);
    free(arrivals->ids);
}

static void check_ids(rank_context *ctx, const moe_flight *flight, int source, const struct arrivals *arrivals) {
    int top_k = flight->geometry->top_k;
    int64_t first = source * flight->capacity * top_k;
    int32_t *got = device_download(ctx, flight->dispatched.topk_ids + first, (uint64_t)flight->capacity * (uint64_t)top_k * 4);
    for (int64_t row = 0; row < flight->capacity; ++row) {
        for (int k = 0; k < top_k; ++k) {
            int32_t expected = flight->round.invalid_id;
            if (row < arrivals->count) {
                int64_t id = arrivals->ids[(int64_t)arrivals->tokens[row] * top_k + k];
                if (moe_owner(flight->geometry, id) == ctx->rank) expected = (int32_t)id;
            }
            if (got[row * top_k + k] == expected) continue;
            RANK_FAIL(ctx, "topk_ids of row %lld of %d from rank %d, k %d: %d, expected %d", (long long)row, arrivals->count,
                      source, k, got[row * top_k + k], expected);
        }
    }
    free(got);
}

static void check_weights(rank_context *ctx, const moe_flight *flight, int source, const struct arrivals *arrivals,
                          const float *sent) {
    uint64_t row_bytes = (uint64_t)flight->geometry->top_k * 4;
    const unsigned char *from =
        (const unsigned char *)flight->dispatched.topk_weights + (uint64_t)(source * flight->capacity) * row_bytes;
    unsigned char *got = device_download(ctx, from, (uint64_t)arrivals->count * row_bytes);
    for (int row = 0; row < arrivals->count; ++row) {
        const float *expected = sent + (int64_t)arrivals->tokens[row] * flight->geometry->top_k;
        if (memcmp(got + (uint64_t)row * row_bytes, expected, row_bytes) == 0) continue;
        RANK_FAIL(ctx, "topk_weights of row %d from rank %d differ from token %d's", row, source, arrivals->tokens[row]);
    }
    free(got);
}

static void check_gaps(rank_context *ctx, const moelink_rows *rows, const unsigned char *got, uint64_t count, int payload) {
    for (uint64_t row = 0; row + 1 < count; ++row) {
        for (uint64_t i = rows->row_bytes; i < rows->row_stride; ++i) {
            if (got[row * rows->row_stride + i] == GUARDED_POISON) continue;
            RANK_FAIL(ctx, "payload %d: byte %llu behind row %llu of the own output was written", payload,
                      (unsigned long long)(i - rows->row_bytes), (unsigned long long)row);
        }
    }
}

static void check_payload(rank_context *ctx, const moe_flight *flight, int payload, int source, const struct arrivals *arrivals) {
    const moelink_rows *rows = &flight->received[payload];
    uint64_t row_bytes = flight->round.row_bytes[payload];
    int own = flight->output[payload].base != NULL;
    uint64_t count = own ? (uint64_t)flight->capacity : (uint64_t)arrivals->count;
    uint64_t first = (uint64_t)(source * flight->capacity) * rows->row_stride;
    uint64_t bytes = count == 0 ? 0 : (count - 1) * rows->row_stride + row_bytes;
    unsigned char *got = device_download(ctx, (unsigned char *)rows->data + first, bytes);
    unsigned char *expected = host_memory(ctx, row_bytes + 8);
    for (int row = 0; row < arrivals->count; ++row) {
        moe_payload_row(&flight->round, source, arrivals->tokens[row], payload, expected);
        const unsigned char *at = got + (uint64_t)row * rows->row_stride;
        if (memcmp(at, expected, row_bytes) == 0) continue;
        uint64_t bad = 0;
        while (at[bad] == expected[bad]) ++bad;
        RANK_FAIL(ctx, "payload %d (%llu bytes a row), row %d from rank %d (its token %d), byte %llu: 0x%02x, expected 0x%02x",
                  payload, (unsigned long long)row_bytes, row, source, arrivals->tokens[row], (unsigned long long)bad, at[bad],
                  expected[bad]);
    }
    if (own) check_gaps(ctx, rows, got, count, payload);
    free(expected);
    free(got);
}

void moe_flight_check_dispatch(rank_context *ctx, moe_flight *flight) {
    const moe_round *round = &flight->round;
    moe_counts_check(ctx, flight); /* before the stream has been waited for */
    device_sync(ctx, flight->stream);
    RANK_OK(ctx, moelink_manager_fault(flight->manager));
    if (round->layout != MOELINK_LAYOUT_RANK_MAJOR) {
        moe_layout_check(ctx, flight);
        return;
    }
    int32_t *counts = device_download(ctx, flight->dispatched.recv_counts, (uint64_t)ctx->size * 4);
    /* A rank without tokens gets others' weights whatever it passed. */
    if (round->weights) {
        RANK_CHECK(ctx, flight->dispatched.topk_weights != NULL);
    } else if (flight->bound > 0) {
        RANK_CHECK(ctx, flight->dispatched.topk_weights == NULL);
    }
    for (int i = 0; i < round->payload_count; ++i) {
        if (!round->sent[i]) continue;
        RANK_EQUAL(ctx, flight->received[i].row_bytes, round->row_bytes[i]);
        RANK_CHECK(ctx, flight->received[i].row_stride >= round->row_bytes[i]);
        if (round->quantize && i <= 1) RANK_EQUAL(ctx, flight->received[i].dtype, i == 0 ? MOELINK_DTYPE_F8E4M3 : round->quantize);
        RANK_CHECK(ctx, flight->outputs[i].data == NULL || flight->received[i].data == flight->outputs[i].data);
    }
    for (int source = 0; source < ctx->size; ++source) {
        struct arrivals arrivals = arrivals_from(ctx, flight, source);
        if (counts[source] != arrivals.count) {
            RANK_FAIL(ctx, "recv_counts[%d] is %d, expected %d of %d tokens", source, counts[source], arrivals.count,
                      round->tokens[source]);
        }
        check_ids(ctx, flight, source, &arrivals);
        if (round->weights) {
            float *sent = host_memory(ctx, (uint64_t)round->tokens[source] * (uint64_t)flight->geometry->top_k * 4);
            moe_weights(flight->geometry, round, source, sent);
            check_weights(ctx, flight, source, &arrivals, sent);
            free(sent);
        }
        for (int i = 0; i < round->payload_count; ++i) {
            if (round->sent[i]) check_payload(ctx, flight, i, source, &arrivals);
        }
        arrivals_free(&arrivals);
    }
    free(counts);
}

static int by_expert(const moe_round *round) {
    return round->layout == MOELINK_LAYOUT_EXPERT_MAJOR || round->layout == MOELINK_LAYOUT_EXPERT_PADDED;
}

/* What an expert of a rank gives for (token, k), or (k -1) all experts of the rank together. */
static void expert_row(const moe_round *round, int source, int token, int rank, int k, void *row) {
    moe_expert_row(round, source, token, k < 0 ? rank : 1000 + k, row);
}

void moe_flight_experts(rank_context *ctx, moe_flight *flight) {
    const moe_round *round = &flight->round;
    uint64_t stride = flight->combine.input.row_stride, row_bytes = flight->combine.input.row_bytes;
    uint64_t all = (uint64_t)flight->dispatched.row_capacity, bytes = all == 0 ? 0 : (all - 1) * stride + row_bytes;
    unsigned char *staging = host_memory(ctx, bytes);
    if (flight->in_place) {
        device_copy(ctx, staging, flight->combine.input.data, bytes);
    } else {
        memset(staging, 0xff, bytes); /* NaN: rows that mean nothing must not be read */
    }
    moe_rows rows;
    int gathers = flight->kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER;
    int64_t each = flight->dispatched.local_experts > 0 ? flight->dispatched.row_capacity / flight->dispatched.local_experts : 0;
    moe_rows_find(ctx, flight->geometry, round, gathers, flight->capacity, each, &rows);
    for (int64_t i = 0; i < rows.count; ++i) {
        const moe_place *place = &rows.places[i];
        unsigned char *at = staging + (uint64_t)place->row * stride;
        if (place->local) {
            expert_row(round, place->source, place->token, ctx->rank, place->k, at);
        } else {
            memset(at, 0xff, row_bytes);
        }
    }
    moe_rows_free(&rows);
    device_copy(ctx, flight->combine.input.data, staging, bytes);
    free(staging);
}

/* A rank's rows of one token become one in fp32, in the order of k, and are rounded once: that row is what travels. */
static void add_experts(const moe_flight *flight, int source, int token, int rank, const int64_t *ids, const float *weights, void *row,
                        float *sum, combine_sum *sums) {
    const moe_round *round = &flight->round;
    memset(sum, 0, round->hidden * sizeof(*sum));
    for (int k = 0; k < flight->geometry->top_k; ++k) {
        if (moe_owner(flight->geometry, ids[k]) != rank) continue;
        expert_row(round, source, token, rank, k, row);
        for (uint64_t i = 0; i < round->hidden; ++i) {
            volatile float value = value_load(row, round->dtype, i);
            if (round->mode == MOELINK_COMBINE_WEIGHTED) value = weights[k] * value;
            sum[i] += value;
            sums[i].magnitude += fabs((double)value);
        }
    }
    for (uint64_t i = 0; i < round->hidden; ++i) value_store(row, round->dtype, i, sum[i]);
    for (uint64_t i = 0; i < round->hidden; ++i) {
        sums[i].value += value_load(row, round->dtype, i);
        ++sums[i].terms;
    }
}

/* The sums of one token, [hidden], in double. */
static void add_token(rank_context *ctx, const moe_flight *flight, int token, const int64_t *ids, const float *weights, void *row,
                      combine_sum *sums) {
    const moe_geometry *geometry = flight->geometry;
    const moe_round *round = &flight->round;
    unsigned char marks[RANKS_MAX];
    memset(sums, 0, round->hidden * sizeof(*sums));
    moe_token_ranks(geometry, ids, marks);
    for (int rank = 0; rank < ctx->size; ++rank) {
        if (!marks[rank]) continue;
        if (by_expert(round)) {
            float *sum = host_memory(ctx, round->hidden * sizeof(*sum));
            add_experts(flight, ctx->rank, token, rank, ids, weights, row, sum, sums);
            free(sum);
            continue;
        }
        double weight = 1, magnitude = 1;
        if (round->mode == MOELINK_COMBINE_WEIGHTED) {
            weight = magnitude = 0;
            for (int k = 0; k < geometry->top_k; ++k) {
                if (moe_owner(geometry, ids[k]) != rank) continue;
                weight += weights[k];
                magnitude += fabs((double)weights[k]);
            }
        }
        moe_expert_row(round, ctx->rank, token, rank, row);
        for (uint64_t i = 0; i < round->hidden; ++i) combine_add(&sums[i], weight, magnitude, value_load(row, round->dtype, i));
    }
}

void moe_flight_check_combine(rank_context *ctx, moe_flight *flight) {
    const moe_geometry *geometry = flight->geometry;
    const moe_round *round = &flight->round;
    device_sync(ctx, flight->stream);
    RANK_OK(ctx, moelink_manager_fault(flight->manager));
    unsigned char *got = device_download(ctx, flight->result.data, flight->result.bytes);
    int64_t *ids = host_memory(ctx, (uint64_t)flight->tokens * (uint64_t)geometry->top_k * 8);
    float *weights = host_memory(ctx, (uint64_t)flight->tokens * (uint64_t)geometry->top_k * 4);
    combine_sum *sums = host_memory(ctx, round->hidden * sizeof(*sums));
    void *row = host_memory(ctx, round->hidden * 4);
    moe_ids(geometry, round, ctx->rank, ids);
    moe_weights(geometry, round, ctx->rank, weights);
    /* NCCL sums in the rows' own type and order. */
    int nccl = (geometry->flags & (MOELINK_MANAGER_F_NCCL | MOELINK_MANAGER_F_DETERMINISTIC)) == MOELINK_MANAGER_F_NCCL;
    int wire = nccl ? ctx->size - 1 : 0;
    /* A GPU may take a product and a sum in one rounding, and round the row that travels to a neighbour. */
    if (ctx->device == MOELINK_DEVICE_CUDA && by_expert(round) && round->mode == MOELINK_COMBINE_WEIGHTED) wire += 2;
    int weighted = round->mode == MOELINK_COMBINE_WEIGHTED ? geometry->top_k + 1 : 0;
    for (int token = 0; token < flight->tokens; ++token) {
        add_token(ctx, flight, token, ids + (int64_t)token * geometry->top_k, weights + (int64_t)token * geometry->top_k, row,
                  sums);
        const unsigned char *at = got + (uint64_t)token * flight->combine.output.row_stride;
        for (uint64_t i = 0; i < round->hidden; ++i) {
            float y = value_load(at, round->dtype, i);
            if (round->exact ? (double)y == sums[i].value : combine_close(&sums[i], y, round->dtype, weighted, wire)) continue;
            RANK_FAIL(ctx, "combine of token %d, value %llu: %.9g, expected %.9g (sum of %d, magnitude %.9g)", token,
                      (unsigned long long)i, (double)y, sums[i].value, sums[i].terms, sums[i].magnitude);
        }
        for (uint64_t i = flight->combine.output.row_bytes; token + 1 < flight->bound && i < flight->combine.output.row_stride;
             ++i) {
            if (at[i] != GUARDED_POISON) RANK_FAIL(ctx, "combine wrote behind row %d of its output", token);
        }
    }
    free(row);
    free(sums);
    free(weights);
    free(ids);
    free(got);
}
