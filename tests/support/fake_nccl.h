/* NCCL in host memory, for tests of what calls NCCL: a shared library with NCCL's own functions, to be named by
 * MOELINK_NCCL_LIBRARY. Ranks are threads or processes of one host; any number of them, and no GPU. Streams are ignored:
 *
 * - A blocking communicator's calls have done their work when the outermost ncclGroupEnd returns. NCCL's only start it, so
 *   whoever gets by with the fake has waited no less than needed, and whoever deadlocks here may be lucky with NCCL.
 * - Those of a communicator made with blocking = 0 are done when ncclCommGetAsyncError no longer says ncclInProgress.
 * - An abort is local, as NCCL's is over NVLink: peers go on waiting for what the rank had not sent.
 *
 * This header is the other door: which calls fail, and what has been left behind. */
#ifndef MOELINK_TESTS_FAKE_NCCL_H
#define MOELINK_TESTS_FAKE_NCCL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FAKE_NCCL_API __attribute__((visibility("default")))

enum fake_nccl_wish {
    /* The call reports success and nothing travels: a peer that has stalled, seen by the others only as silence. */
    FAKE_NCCL_LOST = -1,
    /* The process is killed in the call. */
    FAKE_NCCL_DIE = -2
};

/* Makes call number `number` (1, 2, ...; 0: every one) of a function by this thread, counted from now on, fail with `result`.
 * "ncclSend" and so on; "ncclCommGetAsyncError:state" is what that function tells of the communicator, instead of its own
 * result. NULL: nothing fails any more. */
FAKE_NCCL_API void fake_nccl_fail(const char *function, int number, int result);

/* How often this thread has called a function. */
FAKE_NCCL_API int fake_nccl_calls(const char *function);

/* What this process has not given back, and what it did that NCCL forbids. */
typedef struct fake_nccl_left {
    int communicators;
    int groups;   /* opened and not closed, of all threads */
    int queued;   /* operations of groups that are still open */
    int misuses;  /* sizes that differ at both ends, use after an abort, a busy communicator used or destroyed, ... */
} fake_nccl_left;
FAKE_NCCL_API fake_nccl_left fake_nccl_outstanding(void);

#ifdef __cplusplus
}
#endif
#endif
