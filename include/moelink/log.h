/** @file log.h
 *  Log messages of the library: where they go and how many. */
#ifndef MOELINK_LOG_H
#define MOELINK_LOG_H

#include <moelink/base.h>

#ifdef __cplusplus
extern "C" {
#endif

enum moelink_log_level {
    MOELINK_LOG_OFF = 0,
    MOELINK_LOG_ERROR = 1,
    MOELINK_LOG_WARN = 2, /**< the default */
    MOELINK_LOG_INFO = 3,
    MOELINK_LOG_DEBUG = 4,
    MOELINK_LOG_TRACE = 5
};

/** Receives one message: lower case, one line, no newline; text is valid during the call only. May be called from any thread,
 *  also from the library's own; must not call MoELink. */
typedef void (*moelink_log_callback)(void *user, int32_t level, const char *text);

/** Sends messages to callback(user, ...), or to standard error again when callback is NULL. user stays the caller's and must
 *  live until another callback is set and that call has returned. Process-wide. Local. Threads: any. */
MOELINK_API void moelink_log_set_callback(moelink_log_callback callback, void *user);

/** Sets the most verbose level that is passed on. At start it is MOELINK_LOG_LEVEL from the environment (off, error, warn,
 *  info, debug, trace, or the number), else MOELINK_LOG_WARN. Process-wide. Local. Threads: any.
 *  Errors: INVALID_ARGUMENT for a level that does not exist. */
MOELINK_API moelink_status moelink_log_set_level(int32_t level);

/** The level in force. Local, never fails. Threads: any. */
MOELINK_API int32_t moelink_log_level_of(void);

#ifdef __cplusplus
}
#endif
#endif
