/* Runs the ranks of a test as real processes, or as threads of one process, under a deadline, and relays every rank's error.
 *
 * The parent stays single-threaded and never calls MoELink or CUDA: the rendezvous server and every rank live in children.
 * Threads live in one child of their own, so that a hang or a crash of theirs is survived and reported too. */
#ifndef MOELINK_TESTS_RANKS_H
#define MOELINK_TESTS_RANKS_H

#include <moelink/moelink.h>

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { RANKS_MAX = 256 };

typedef struct rank_context {
    int rank;
    int size;
    void *user;                    /* options.user: memory of the parent as it was at the start; shared by threads */
    moelink_group *group;          /* NULL with options.no_group; finalized and destroyed by the runner unless set to NULL */
    const moelink_unique_id *id;   /* the rendezvous of this run; used up already when group is set; NULL for threads */
    int32_t device;                /* MOELINK_DEVICE_HOST or _CUDA */
    int32_t ordinal;               /* CUDA ordinal; -1 on the host device */
    int threads;                   /* 1: ranks are threads of one process */
    uint64_t seed;                 /* options.seed */
    unsigned char *shared;         /* options.shared_bytes of zeroed memory that all ranks share */
    struct rank_private *own;
} rank_context;

typedef void (*rank_function)(rank_context *ctx);

typedef struct rank_options {
    int size;
    int32_t device;          /* 0 = MOELINK_DEVICE_HOST */
    int threads;
    void *user;
    int no_group;            /* ctx->group stays NULL */
    int no_finalize;         /* the group is only destroyed: for tests that leave it broken */
    uint64_t timeout_ns;     /* of the group; 0 = 20 s */
    int deadline_ms;         /* of the whole run; 0 = 60 s; scaled by the environment's MOELINK_TEST_DEADLINE_SCALE */
    const int *dying;        /* ranks that must die by a signal (processes only) */
    int dying_count;
    size_t shared_bytes;
    uint64_t seed;
    const char *name;        /* for messages; NULL: none */
    char *report;            /* NULL: failures go to stderr. Else they are written here, NUL-terminated */
    size_t report_bytes;
} rank_options;

/* Number of ranks that failed, died or hung; 0 when all is well. Set-up trouble counts as a failure of every rank. */
int ranks_run(const rank_options *options, rank_function function);

/* deadline_ms times the environment's MOELINK_TEST_DEADLINE_SCALE, for waits inside ranks. */
int ranks_scaled_ms(int deadline_ms);

/* Waits, without MoELink, until all ranks of the run (dying ones included) have come to their n-th meeting; 0 on time-out
 * or when some rank has failed. */
int rank_meet(rank_context *ctx, int deadline_ms);

/* Says something with the rank's number on it; shown only when the run fails. */
void rank_note(rank_context *ctx, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What the rank is doing, added to its failures from here on; "" for nothing. */
void rank_scene(rank_context *ctx, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Fails the rank and leaves its function, from however deep. */
void rank_fail(rank_context *ctx, const char *file, int line, const char *format, ...)
    __attribute__((noreturn, format(printf, 4, 5)));

/* Checks a status; on a difference fails the rank with the call, both names and moelink_last_error. */
void rank_expect_status(rank_context *ctx, const char *file, int line, const char *call, moelink_status got,
                        moelink_status expected);

/* Fails the rank, with both numbers, unless they are equal. */
void rank_expect_equal(rank_context *ctx, const char *file, int line, const char *name, long long got, const char *wanted_name,
                       long long wanted);

/* Fails the rank unless the text holds the part. */
void rank_expect_text(rank_context *ctx, const char *file, int line, const char *text, const char *part);

#define RANK_FAIL(ctx, ...) rank_fail((ctx), __FILE__, __LINE__, __VA_ARGS__)
#define RANK_CHECK(ctx, cond)                                                         \
    do {                                                                              \
        if (!(cond)) rank_fail((ctx), __FILE__, __LINE__, "check failed: %s", #cond); \
    } while (0)
#define RANK_EQUAL(ctx, a, b) rank_expect_equal((ctx), __FILE__, __LINE__, #a, (long long)(a), #b, (long long)(b))
#define RANK_OK(ctx, call) rank_expect_status((ctx), __FILE__, __LINE__, #call, (call), MOELINK_OK)
#define RANK_STATUS(ctx, call, expected) rank_expect_status((ctx), __FILE__, __LINE__, #call, (call), (expected))
#define RANK_TEXT(ctx, text, part) rank_expect_text((ctx), __FILE__, __LINE__, (text), (part))

#ifdef __cplusplus
}
#endif
#endif
