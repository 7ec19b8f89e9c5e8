/* Death at a step: the library says each step of a round in its log, and the victim is killed in the middle of saying the n-th. */
#ifndef MOELINK_TESTS_COUNTDOWN_H
#define MOELINK_TESTS_COUNTDOWN_H

#include "ranks.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct countdown {
    char mark[32]; /* how the lines that are steps begin */
    int left;      /* steps until the end */
    int total;     /* steps said so far */
    int kill;
} countdown;

/* Counts the rank's steps of round `round` from here on, and kills it at step `step` (from 0) when it is the victim. Static storage: the
 * log may speak from other threads. */
void countdown_start(rank_context *ctx, countdown *countdown, int round, int victim, int step);
void countdown_stop(rank_context *ctx);

#ifdef __cplusplus
}
#endif
#endif
