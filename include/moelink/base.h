/** @file base.h
 *  Statuses, errors and the types that every other header uses.
 *
 *  Rules that hold for the whole interface (docs/abi.md has the reasons):
 *  - A parameter struct begins with struct_size. Start from its MOELINK_..._INIT macro or its moelink_..._init function.
 *    A smaller struct_size is an older caller (defaults for the rest), a larger one is accepted when its tail is zero,
 *    0 is MOELINK_ERR_INVALID_ARGUMENT.
 *  - Outputs come last. On failure a handle output is NULL and every other output is untouched, except text buffers, which get
 *    as much of their text as fits.
 *  - A parameter struct and what it points to are read only during the call, unless its text says otherwise.
 *  - A failed call (status below 0 and above -100) leaves the object as it was.
 *  - Unless a type says otherwise: different objects may be used from different threads at once, one object by one
 *    thread at a time.
 *  - "Collective" means that every rank of the group must make the call, in the same order. "Local" calls need no peer.
 *    "Stream-ordered" calls return before the device is done; "host-blocking" ones return after. */
#ifndef MOELINK_BASE_H
#define MOELINK_BASE_H

#include <stdint.h>

#if defined(_WIN32)
#define MOELINK_API
#else
#define MOELINK_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** 0: done. Positive: not an error. Negative: an error, in ranges by what it breaks. Unknown values may come with newer
 *  libraries; their range still tells what to do. */
typedef int32_t moelink_status;

enum moelink_status_values {
    MOELINK_OK = 0,
    MOELINK_IN_PROGRESS = 1,             /**< started, not finished */
    MOELINK_NOT_READY = 2,               /**< nothing to report yet */
    /* -1..: this call failed; everything is as before, but for the rounds that TOO_SMALL, MISMATCH and INTERNAL lose */
    MOELINK_ERR_INVALID_ARGUMENT = -1,
    MOELINK_ERR_INVALID_STATE = -2,
    MOELINK_ERR_UNSUPPORTED = -3,
    MOELINK_ERR_OUT_OF_MEMORY = -4,
    MOELINK_ERR_TOO_SMALL = -5,          /**< a buffer or a workspace is too small; the text names both sizes. Received rows that have no room in a
                                              layout: the round is lost */
    MOELINK_ERR_MISMATCH = -6,           /**< ranks passed what contradicts; all of them get this. From dispatch or combine: the round is lost */
    MOELINK_ERR_NO_DRIVER = -7,          /**< a driver or library that this call needs is not installed */
    MOELINK_ERR_STALE = -8,              /**< a captured graph outlived the workspace that it was captured over */
    MOELINK_ERR_INTERNAL = -9,
    /* -100..: a peer is late or gone; the round is lost */
    MOELINK_ERR_TIMEOUT = -100,          /**< a deadline passed; the text names the peers that were missing */
    MOELINK_ERR_PEER_EXITED = -110,
    MOELINK_ERR_PEER_UNREACHABLE = -111,
    /* -120..: the group is over */
    MOELINK_ERR_ABORTED = -120,
    MOELINK_ERR_AUTHENTICATION = -121,
    MOELINK_ERR_PROTOCOL = -122,
    /* -200..: the device context is lost */
    MOELINK_ERR_DEVICE = -200
};

/** Name of a status, such as "MOELINK_ERR_TIMEOUT"; "MOELINK_UNKNOWN_STATUS" for values of newer libraries.
 *  Static storage. Local, never fails. Threads: any. */
MOELINK_API const char *moelink_status_name(moelink_status status);

/** One sentence in plain words about a status. Static storage. Local, never fails. Threads: any. */
MOELINK_API const char *moelink_status_string(moelink_status status);

/** Text of the last failure of a MoELink call on this thread: the call, the rank, the CUDA or errno text, and what to do.
 *  Never NULL; "" when nothing has failed yet. Meaningful right after a failure; valid until the next MoELink call on this
 *  thread. Objects keep their own last text too (moelink_group_error, moelink_manager_error), for callers that move between
 *  threads. Local, never fails. Threads: any. */
MOELINK_API const char *moelink_last_error(void);

struct CUstream_st;
/** A cudaStream_t or CUstream. NULL is the legacy default stream, which cannot be captured. Ignored on the host device. */
typedef struct CUstream_st *moelink_stream;

enum moelink_device {
    MOELINK_DEVICE_AUTO = 0, /**< CUDA where a usable GPU is found, else the host */
    MOELINK_DEVICE_HOST = 1, /**< ranks are processes or threads, symmetric memory is shared host memory */
    MOELINK_DEVICE_CUDA = 2
};

enum moelink_dtype {
    MOELINK_DTYPE_NONE = 0, /**< plain bytes */
    MOELINK_DTYPE_F32 = 1,
    MOELINK_DTYPE_F16 = 2,
    MOELINK_DTYPE_BF16 = 3,
    MOELINK_DTYPE_F8E4M3 = 4,
    MOELINK_DTYPE_F8E5M2 = 5,
    MOELINK_DTYPE_E8M0 = 6,
    MOELINK_DTYPE_F4E2M1X2 = 7,
    MOELINK_DTYPE_U8 = 8,
    MOELINK_DTYPE_I32 = 9,
    MOELINK_DTYPE_I64 = 10
};

/** Rows of bytes: everything that travels is one. Row i starts at data + i * row_stride. dtype matters only where values are
 *  read (combine). These 32 bytes never change, so arrays of them are passed as pointer and count. */
typedef struct moelink_rows {
    void *data;          /**< device memory on a CUDA group, host memory on a host group */
    uint64_t row_bytes;  /**< [bytes] */
    uint64_t row_stride; /**< [bytes]; 0 = row_bytes */
    int32_t dtype;       /**< MOELINK_DTYPE_* */
    uint32_t reserved;   /**< 0 */
} moelink_rows;

#ifdef __cplusplus
}
#endif
#endif
