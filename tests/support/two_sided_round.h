/* One rank's round of a two-sided manager, in parts: what it has, and what must come of it. */
#ifndef MOELINK_TESTS_TWO_SIDED_ROUND_H
#define MOELINK_TESTS_TWO_SIDED_ROUND_H

#include "moe_case.h"

typedef struct two_sided_round {
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
} two_sided_round;

/* Draws a round; nothing is called yet. */
void two_sided_start(rank_context *ctx, two_sided_round *round, moelink_manager *manager, const moe_geometry *geometry, uint64_t seed,
                     moelink_stream stream);
void two_sided_prepare(rank_context *ctx, two_sided_round *round);
/* Waits for the stream and compares everything that prepare gives. */
void two_sided_check_prepared(rank_context *ctx, const two_sided_round *round);
void two_sided_end(rank_context *ctx, two_sided_round *round);

/* Prepare, some tensors, some ways back, and an end of one kind or the other. */
void two_sided_whole_round(rank_context *ctx, moelink_manager *manager, const moe_geometry *geometry, uint64_t seed, moelink_stream stream);

#endif
