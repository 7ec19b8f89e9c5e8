/* Inside of ranks.c: messages from ranks to the parent, the fate of every child, and the text that tells both. */
#ifndef MOELINK_TESTS_RANKS_REPORT_H
#define MOELINK_TESTS_RANKS_REPORT_H

#include "ranks.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/types.h>

enum report_kind { REPORT_NOTE = 1, REPORT_FAILED = 2, REPORT_ENDED = 3 };

/* A message with its head is below PIPE_BUF, so that writers of one pipe never mix. */
enum { REPORT_TEXT_MAX = 3800 };

void report_send(int pipe, int rank, int kind, const char *format, va_list args);
void report_sendf(int pipe, int rank, int kind, const char *format, ...) __attribute__((format(printf, 4, 5)));

struct report_child {
    pid_t pid;
    int reaped;
    int status;
    int killed; /* by us, at the deadline */
};

struct report_rank {
    int failed;
    int ended;
};

struct report {
    const rank_options *options;
    int deadline_ms;
    int children;
    struct report_child child[RANKS_MAX];
    struct report_rank rank[RANKS_MAX];
    int setup_failed;
    int lost; /* a failure that belongs to no rank */
    char *text;
    size_t length;
    FILE *stream;
};

void report_start(struct report *report, const rank_options *options, int deadline_ms);
void report_setup_failed(struct report *report, const char *why);
void report_add_child(struct report *report, pid_t pid);
/* Drains the pipe and reaps until all children are gone; kills what is left, by pid, at `end`. */
void report_collect(struct report *report, int pipe, uint64_t end_ms);
void report_reap_server(struct report *report, pid_t pid, int deadline_ms);
/* Tells the fates, prints the text when anything failed, frees it; number of failed ranks. */
int report_finish(struct report *report);

#endif
