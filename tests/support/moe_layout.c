/* What a dispatch in another layout than RANK_MAJOR must have said and delivered, and the counts of any dispatch. */
#include "moe_case.h"

#include <stdlib.h>
#include <string.h>

static int by_expert(const moe_flight *flight) {
    return flight->round.layout == MOELINK_LAYOUT_EXPERT_MAJOR || flight->round.layout == MOELINK_LAYOUT_EXPERT_PADDED;
}

static void find_rows(rank_context *ctx, const moe_flight *flight, moe_rows *rows) {
    const moelink_dispatched *got = &flight->dispatched;
    int64_t each = got->local_experts > 0 ? got->row_capacity / got->local_experts : 0;
    moe_rows_find(ctx, flight->geometry, &flight->round, flight->kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, flight->capacity, each, rows);
}

/* Which addresses are there, and how many rows there is room for. */
static void check_described(rank_context *ctx, const moe_flight *flight, const moe_rows *rows) {
    const moelink_dispatched *got = &flight->dispatched;
    int experts = by_expert(flight), packed = !experts, weights = flight->round.weights;
    RANK_EQUAL(ctx, got->local_experts, rows->experts);
    RANK_EQUAL(ctx, got->rank_offsets != NULL, packed);
    RANK_EQUAL(ctx, got->topk_ids != NULL, packed);
    RANK_EQUAL(ctx, got->expert_counts != NULL, experts);
    RANK_EQUAL(ctx, got->expert_offsets != NULL, experts);
    RANK_CHECK(ctx, got->row_sources != NULL && got->recv_counts != NULL);
    if (weights || flight->bound > 0) { /* a rank without tokens gets others' weights whatever it passed */
        RANK_EQUAL(ctx, got->topk_weights != NULL, packed && weights);
        RANK_EQUAL(ctx, got->row_weights != NULL, experts && weights);
    }
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    RANK_OK(ctx, moelink_manager_sizes_of(flight->manager, &sizes));
    int64_t all = flight->capacity * ctx->size;
    RANK_CHECK(ctx, got->row_capacity <= sizes.layout_rows && (flight->output_rows == 0 || got->row_capacity <= flight->output_rows));
    RANK_CHECK(ctx, rows->experts == 0 || got->row_capacity >= rows->end);
    if (flight->output_rows != 0 || flight->geometry->layout_rows != 0) return;
    if (packed) RANK_EQUAL(ctx, got->row_capacity, all);
    if (flight->round.layout == MOELINK_LAYOUT_EXPERT_PADDED && rows->experts > 0) RANK_EQUAL(ctx, got->row_capacity, all * rows->experts);
    if (flight->round.layout == MOELINK_LAYOUT_EXPERT_MAJOR) RANK_CHECK(ctx, rows->experts == 0 || got->row_capacity >= all * flight->geometry->top_k);
}

static void check_counts(rank_context *ctx, const moe_flight *flight, const moe_rows *rows) {
    const moelink_dispatched *got = &flight->dispatched;
    int32_t *counts = device_download(ctx, got->recv_counts, (uint64_t)ctx->size * 4);
    for (int rank = 0; rank < ctx->size; ++rank) RANK_EQUAL(ctx, counts[rank], rows->recv_counts[rank]);
    free(counts);
    if (!by_expert(flight)) {
        int32_t *offsets = device_download(ctx, got->rank_offsets, (uint64_t)(ctx->size + 1) * 4), next = 0;
        for (int rank = 0; rank <= ctx->size; ++rank) {
            RANK_EQUAL(ctx, offsets[rank], next);
            if (rank < ctx->size) next += rows->recv_counts[rank];
        }
        free(offsets);
        return;
    }
    counts = device_download(ctx, got->expert_counts, (uint64_t)rows->experts * 4);
    int32_t *offsets = device_download(ctx, got->expert_offsets, (uint64_t)(rows->experts + 1) * 4);
    for (int expert = 0; expert < rows->experts; ++expert) {
        RANK_EQUAL(ctx, counts[expert], rows->expert_counts[expert]);
        RANK_EQUAL(ctx, offsets[expert], rows->expert_first[expert]);
    }
    RANK_EQUAL(ctx, offsets[rows->experts], rows->end);
    free(counts);
    free(offsets);
}

/* Of every row: which token it is, its weight or ids and weights; of rows that are none: that they are none. */
static void check_rows_said(rank_context *ctx, const moe_flight *flight, const moe_rows *rows, const int64_t *place_of) {
    const moelink_dispatched *got = &flight->dispatched;
    const moe_geometry *geometry = flight->geometry;
    const uint64_t all = (uint64_t)got->row_capacity, top_k = (uint64_t)geometry->top_k;
    int32_t *sources = device_download(ctx, got->row_sources, all * 12);
    int32_t *ids = got->topk_ids != NULL ? device_download(ctx, got->topk_ids, all * top_k * 4) : NULL;
    float *packed = got->topk_weights != NULL ? device_download(ctx, got->topk_weights, all * top_k * 4) : NULL;
    float *weights = got->row_weights != NULL ? device_download(ctx, got->row_weights, all * 4) : NULL;
    int64_t *sent_ids[RANKS_MAX];
    float *sent_weights[RANKS_MAX];
    for (int source = 0; source < ctx->size; ++source) {
        uint64_t entries = (uint64_t)flight->round.tokens[source] * top_k;
        sent_ids[source] = malloc(entries * 8 + 1);
        sent_weights[source] = malloc(entries * 4 + 1);
        moe_ids(geometry, &flight->round, source, sent_ids[source]);
        moe_weights(geometry, &flight->round, source, sent_weights[source]);
    }
    for (int64_t row = 0; row < got->row_capacity; ++row) {
        const moe_place none = {row, -1, -1, -1, 0}, *place = place_of[row] >= 0 ? &rows->places[place_of[row]] : &none;
        const int32_t *source = sources + row * 3;
        if (source[0] != place->source || source[1] != place->token || source[2] != place->k) {
            RANK_FAIL(ctx, "row_sources of row %lld: %d, %d, %d, expected %d, %d, %d", (long long)row, source[0], source[1], source[2],
                      place->source, place->token, place->k);
        }
        for (int k = 0; ids != NULL && k < geometry->top_k; ++k) {
            int64_t id = place == &none ? -1 : sent_ids[place->source][place->token * geometry->top_k + k];
            int32_t expected = moe_owner(geometry, id) == ctx->rank ? (int32_t)id : flight->round.invalid_id;
            if (ids[row * geometry->top_k + k] == expected) continue;
            RANK_FAIL(ctx, "topk_ids of row %lld, k %d: %d, expected %d", (long long)row, k, ids[row * geometry->top_k + k], expected);
        }
        if (!flight->round.weights) continue;
        const float *sent = place == &none ? NULL : sent_weights[place->source] + place->token * geometry->top_k;
        if (packed != NULL && sent != NULL && memcmp(packed + row * geometry->top_k, sent, top_k * 4) != 0) {
            RANK_FAIL(ctx, "topk_weights of row %lld differ from token %d's of rank %d", (long long)row, place->token, place->source);
        }
        if (weights != NULL && weights[row] != (sent == NULL ? 0.0f : sent[place->k])) {
            RANK_FAIL(ctx, "row_weights of row %lld: %g", (long long)row, (double)weights[row]);
        }
    }
    for (int source = 0; source < ctx->size; ++source) {
        free(sent_ids[source]);
        free(sent_weights[source]);
    }
    free(sources);
    free(ids);
    free(packed);
    free(weights);
}

static void check_bytes(rank_context *ctx, int payload, int64_t row, const char *what, const unsigned char *got, uint64_t bytes, int expected) {
    for (uint64_t i = 0; i < bytes; ++i) {
        if (got[i] == (unsigned char)expected) continue;
        RANK_FAIL(ctx, "payload %d, row %lld, %s, byte %llu: 0x%02x, expected 0x%02x", payload, (long long)row, what, (unsigned long long)i, got[i],
                  expected);
    }
}

static void check_payload(rank_context *ctx, const moe_flight *flight, const moe_rows *rows, const int64_t *place_of, int payload) {
    const moelink_rows *view = &flight->received[payload];
    const uint64_t row_bytes = flight->round.row_bytes[payload];
    const int64_t all = flight->dispatched.row_capacity;
    const int own = flight->outputs[payload].data != NULL, padded = flight->round.layout == MOELINK_LAYOUT_EXPERT_PADDED;
    RANK_EQUAL(ctx, view->row_bytes, row_bytes);
    RANK_CHECK(ctx, view->row_stride >= row_bytes);
    if (own) RANK_CHECK(ctx, view->data == flight->outputs[payload].data);
    if (all == 0) return;
    unsigned char *got = device_download(ctx, view->data, (uint64_t)(all - 1) * view->row_stride + row_bytes);
    unsigned char *expected = malloc(row_bytes + 8);
    for (int64_t row = 0; row < all; ++row) {
        const unsigned char *at = got + (uint64_t)row * view->row_stride;
        if (place_of[row] >= 0) {
            const moe_place *place = &rows->places[place_of[row]];
            moe_payload_row(&flight->round, place->source, place->token, payload, expected);
            if (memcmp(at, expected, row_bytes) != 0) {
                RANK_FAIL(ctx, "payload %d (%llu bytes a row), row %lld is not token %d of rank %d", payload, (unsigned long long)row_bytes,
                          (long long)row, place->token, place->source);
            }
        } else if (row < rows->end && !padded) {
            check_bytes(ctx, payload, row, "padding", at, row_bytes, 0);
        } else if (own && !padded) {
            check_bytes(ctx, payload, row, "behind the rows in use", at, row_bytes, GUARDED_POISON);
        }
        if (own && row + 1 < all) check_bytes(ctx, payload, row, "between rows", at + row_bytes, view->row_stride - row_bytes, GUARDED_POISON);
    }
    free(expected);
    free(got);
}

void moe_layout_check(rank_context *ctx, moe_flight *flight) {
    moe_rows rows;
    find_rows(ctx, flight, &rows);
    check_described(ctx, flight, &rows);
    check_counts(ctx, flight, &rows);
    int64_t all = flight->dispatched.row_capacity, *place_of = malloc((uint64_t)all * sizeof(*place_of) + 1);
    for (int64_t row = 0; row < all; ++row) place_of[row] = -1;
    for (int64_t i = 0; i < rows.count; ++i) place_of[rows.places[i].row] = i;
    check_rows_said(ctx, flight, &rows, place_of);
    for (int i = 0; i < flight->round.payload_count; ++i) {
        if (flight->round.sent[i]) check_payload(ctx, flight, &rows, place_of, i);
    }
    free(place_of);
    moe_rows_free(&rows);
}

static void check_host_counts(rank_context *ctx, const moe_flight *flight) {
    moe_rows rows;
    find_rows(ctx, flight, &rows);
    int64_t by_rank[RANKS_MAX + 1], *of_experts = malloc(((uint64_t)rows.experts + 1) * 8), total = -1, sum = 0;
    for (int expert = 0; expert <= rows.experts; ++expert) of_experts[expert] = -7;
    by_rank[ctx->size] = -7;
    RANK_OK(ctx, moelink_dispatch_counts(flight->manager, flight->round.slot, 0, by_rank, of_experts, &total));
    for (int rank = 0; rank < ctx->size; ++rank) RANK_EQUAL(ctx, by_rank[rank], rows.recv_counts[rank]);
    for (int expert = 0; expert < rows.experts; ++expert) {
        RANK_EQUAL(ctx, of_experts[expert], by_expert(flight) ? rows.expert_counts[expert] : -7);
        sum += by_expert(flight) ? rows.expert_counts[expert] : 0;
    }
    RANK_EQUAL(ctx, by_rank[ctx->size], -7);
    RANK_EQUAL(ctx, of_experts[rows.experts], -7);
    RANK_EQUAL(ctx, total, flight->round.layout == MOELINK_LAYOUT_EXPERT_PADDED ? sum : rows.end);
    total = -1;
    RANK_OK(ctx, moelink_dispatch_counts(flight->manager, flight->round.slot, 1, NULL, NULL, &total));
    RANK_CHECK(ctx, total >= 0);
    free(of_experts);
    moe_rows_free(&rows);
}

void moe_counts_check(rank_context *ctx, moe_flight *flight) {
    int told = flight->geometry->layouts != 0 || (flight->geometry->flags & MOELINK_MANAGER_F_COUNTS) != 0;
    if (told && !flight->replayed) check_host_counts(ctx, flight);
    if (flight->loads.base == NULL) return;
    const moe_geometry *geometry = flight->geometry;
    device_sync(ctx, flight->stream);
    int64_t *got = device_download(ctx, flight->loads.data, flight->loads.bytes), entries = (int64_t)flight->tokens * geometry->top_k;
    int64_t *ids = malloc((uint64_t)entries * 8 + 1);
    moe_ids(geometry, &flight->round, ctx->rank, ids);
    for (int64_t expert = 0; expert < geometry->experts; ++expert) {
        int64_t named = expert;
        for (int64_t i = 0; !flight->round.cached && i < entries; ++i) named += ids[i] == expert && moe_owner(geometry, expert) >= 0;
        RANK_EQUAL(ctx, got[expert], named);
    }
    free(ids);
    free(got);
}
