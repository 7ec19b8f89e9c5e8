/* Who owns which expert, and where the rows of a round must lie in each layout: written down from moe.h, expert by expert. */
#include "moe_case.h"

#include <stdlib.h>

int moe_owner(const moe_geometry *geometry, int64_t id) {
    if (!geometry->mapped) return expert_owner(id, geometry->experts, geometry->ranks);
    return id >= 0 && id < geometry->experts ? geometry->expert_ranks[id] : -1;
}

int moe_token_ranks(const moe_geometry *geometry, const int64_t *ids, unsigned char *marks) {
    int count = 0;
    for (int rank = 0; rank < geometry->ranks; ++rank) {
        marks[rank] = 0;
        for (int k = 0; k < geometry->top_k; ++k) marks[rank] |= moe_owner(geometry, ids[k]) == rank;
        count += marks[rank];
    }
    return count;
}

static void put(moe_rows *rows, int64_t row, int source, int token, int k, int local) {
    moe_place *place = &rows->places[rows->count++];
    place->row = row;
    place->source = source;
    place->token = token;
    place->k = k;
    place->local = local;
}

/* Rows of RANK_MAJOR and PACKED. */
static void by_source(const moe_geometry *geometry, const moe_round *round, int rank, int gathers, int64_t capacity, int64_t *const *ids,
                      moe_rows *rows) {
    for (int source = 0; source < geometry->ranks; ++source) {
        for (int token = 0; token < round->tokens[source]; ++token) {
            unsigned char marks[RANKS_MAX];
            moe_token_ranks(geometry, ids[source] + (int64_t)token * geometry->top_k, marks);
            if (!marks[rank] && !gathers) continue;
            int64_t nth = rows->recv_counts[source]++;
            if (round->layout == MOELINK_LAYOUT_RANK_MAJOR) put(rows, source * capacity + nth, source, token, -1, marks[rank]);
            if (round->layout == MOELINK_LAYOUT_PACKED) put(rows, rows->end, source, token, -1, marks[rank]);
            ++rows->end;
        }
    }
}

static void by_expert(const moe_geometry *geometry, const moe_round *round, int rank, int64_t expert_rows, int64_t *const *ids, moe_rows *rows) {
    int padded = round->layout == MOELINK_LAYOUT_EXPERT_PADDED, number = 0;
    rows->end = 0;
    for (int expert = 0; expert < geometry->experts; ++expert) {
        if (moe_owner(geometry, expert) != rank) continue;
        int64_t first = padded ? number * expert_rows : rows->end, next = first;
        for (int source = 0; source < geometry->ranks; ++source) {
            for (int64_t i = 0; i < (int64_t)round->tokens[source] * geometry->top_k; ++i) {
                if (ids[source][i] != expert) continue;
                put(rows, next++, source, (int)(i / geometry->top_k), (int)(i % geometry->top_k), 1);
            }
        }
        rows->expert_first[number] = first;
        rows->expert_counts[number++] = next - first;
        rows->end = padded ? first + expert_rows : next;
        while (!padded && round->alignment > 0 && rows->end % round->alignment != 0) ++rows->end;
    }
}

void moe_rows_find(rank_context *ctx, const moe_geometry *geometry, const moe_round *round, int gathers, int64_t capacity,
                   int64_t expert_rows, moe_rows *out) {
    const moe_rows empty = {0, NULL, {0}, 0, NULL, NULL, 0};
    *out = empty;
    int64_t *ids[RANKS_MAX], most = 0;
    for (int source = 0; source < geometry->ranks; ++source) {
        int64_t count = (int64_t)round->tokens[source] * geometry->top_k;
        ids[source] = host_memory(ctx, (uint64_t)count * sizeof(int64_t));
        moe_ids(geometry, round, source, ids[source]);
        most += count;
    }
    for (int expert = 0; expert < geometry->experts; ++expert) out->experts += moe_owner(geometry, expert) == ctx->rank;
    out->places = host_memory(ctx, (uint64_t)most * sizeof(moe_place));
    out->expert_counts = host_memory(ctx, (uint64_t)out->experts * sizeof(int64_t));
    out->expert_first = host_memory(ctx, (uint64_t)out->experts * sizeof(int64_t));
    by_source(geometry, round, ctx->rank, gathers, capacity, ids, out);
    if (round->layout == MOELINK_LAYOUT_EXPERT_MAJOR || round->layout == MOELINK_LAYOUT_EXPERT_PADDED) {
        by_expert(geometry, round, ctx->rank, expert_rows, ids, out);
    }
    for (int source = 0; source < geometry->ranks; ++source) free(ids[source]);
}

void moe_rows_free(moe_rows *rows) {
    free(rows->places);
    free(rows->expert_counts);
    free(rows->expert_first);
}
