/** @file device.h
 *  What this machine has: GPUs, who reaches whom, and the libraries that are looked up at run time. */
#ifndef MOELINK_DEVICE_H
#define MOELINK_DEVICE_H

#include <moelink/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** One GPU. Start from MOELINK_DEVICE_INFO_INIT. */
typedef struct moelink_device_info {
    uint32_t struct_size;
    int32_t ordinal;             /**< CUDA ordinal */
    char name[96];
    char uuid[48];               /**< "GPU-..." text */
    char pci_bus_id[24];
    int32_t compute_capability;  /**< major * 10 + minor: 90 is Hopper */
    int32_t multiprocessors;
    uint64_t memory_bytes;       /**< [bytes] */
    int32_t supported;           /**< 1: the library has kernels for it; 0: it has none (below compute capability 9.0) */
    int32_t fabric_attribute;    /**< 1: the driver says that fabric handles are supported; only a trial tells the truth */
    int32_t posix_fd_attribute;  /**< 1: the driver says that POSIX file descriptor handles are supported */
    int32_t nvlinks;             /**< active NVLinks; -1 where NVML is missing */
} moelink_device_info;
#define MOELINK_DEVICE_INFO_INIT {(uint32_t)sizeof(moelink_device_info), -1, {0}, {0}, {0}, 0, 0, 0, 0, 0, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_device_info_init(moelink_device_info *info);

/** Number of CUDA devices, into *out. Without a driver it is 0 and the call still succeeds; moelink_last_error then says why.
 *  Local. Threads: any. */
MOELINK_API moelink_status moelink_device_count(int32_t *out);

/** Describes the CUDA device `ordinal`. Local, host-blocking. Threads: any.
 *  Errors: INVALID_ARGUMENT for an ordinal that does not exist, NO_DRIVER. */
MOELINK_API moelink_status moelink_device_describe(int32_t ordinal, moelink_device_info *out);

/** 1 into *out when `ordinal` can map the memory of `peer` (the driver's word), else 0. Local. Threads: any.
 *  Errors: INVALID_ARGUMENT, NO_DRIVER. */
MOELINK_API moelink_status moelink_device_peer(int32_t ordinal, int32_t peer, int32_t *out);

/** One line about a library that is looked up at run time: "cuda" (the driver), "nvml", "nccl", "ucx" or "nixl": its version (NIXL tells
 *  none) and file, or why it is not there. Writes at most bytes into text, NUL-terminated. Local. Threads: any.
 *  Returns OK when the library is usable, NO_DRIVER when it is not (text is filled in both cases).
 *  Errors: INVALID_ARGUMENT for another name, TOO_SMALL when the line does not fit. */
MOELINK_API moelink_status moelink_device_library(const char *name, char *text, uint64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
