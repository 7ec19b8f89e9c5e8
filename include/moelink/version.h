/** @file version.h
 *  Version of the headers and of the library that was loaded. */
#ifndef MOELINK_VERSION_H
#define MOELINK_VERSION_H

#include <moelink/base.h>

#define MOELINK_VERSION_MAJOR 0
#define MOELINK_VERSION_MINOR 1
#define MOELINK_VERSION_PATCH 0
/** major * 10000 + minor * 100 + patch of these headers. */
#define MOELINK_VERSION 100

#ifdef __cplusplus
extern "C" {
#endif

/** Version of the loaded library, coded as MOELINK_VERSION. Local, never fails. Threads: any. */
MOELINK_API int32_t moelink_version(void);

/** The same as text, such as "0.1.0", followed by what it was built with, such as " (cuda 13.0, sm_90 sm_100)".
 *  Static storage. Local, never fails. Threads: any. */
MOELINK_API const char *moelink_version_string(void);

#ifdef __cplusplus
}
#endif
#endif
