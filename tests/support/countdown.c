#include "countdown.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static void count_steps(void *user, int32_t level, const char *text) {
    countdown *count = user;
    (void)level;
    if (strncmp(text, count->mark, strlen(count->mark)) != 0) return;
    ++count->total;
    if (count->kill && count->left-- == 0) raise(SIGKILL);
}

void countdown_start(rank_context *ctx, countdown *count, int round, int victim, int step) {
    snprintf(count->mark, sizeof(count->mark), "round %d: rank %d ", round, ctx->rank);
    count->kill = ctx->rank == victim && step >= 0;
    count->left = step;
    moelink_log_set_callback(count_steps, count);
    RANK_OK(ctx, moelink_log_set_level(MOELINK_LOG_DEBUG));
}

void countdown_stop(rank_context *ctx) {
    RANK_OK(ctx, moelink_log_set_level(MOELINK_LOG_WARN));
    moelink_log_set_callback(NULL, NULL);
}
