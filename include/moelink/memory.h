/** @file memory.h
 *  Symmetric memory: one allocation of the same size on every rank, each peer's copy mapped here. */
#ifndef MOELINK_MEMORY_H
#define MOELINK_MEMORY_H

#include <moelink/base.h>
#include <moelink/group.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Threads: one thread at a time; addresses may be used from any. */
typedef struct moelink_memory moelink_memory;

/** Where the pages come from, best first. */
enum moelink_provider {
    MOELINK_MEMORY_AUTO = 0,     /**< the first that every rank can allocate, export and import */
    MOELINK_MEMORY_FABRIC = 1,   /**< CUDA fabric handles: one NVLink domain, also across hosts (MNNVL) */
    MOELINK_MEMORY_POSIX_FD = 2, /**< CUDA virtual memory shared as file descriptors over a private Unix socket */
    MOELINK_MEMORY_CUDA_IPC = 3, /**< cudaMalloc and CUDA IPC handles */
    MOELINK_MEMORY_HOST_SHM = 4, /**< sealed memfd; the host device's provider */
    MOELINK_MEMORY_EXTERNAL = 5  /**< addresses that the caller mapped */
};
enum moelink_provider_count {
    MOELINK_MEMORY_PROVIDERS = 6
};

/** Start from MOELINK_MEMORY_PARAMS_INIT. */
typedef struct moelink_memory_params {
    uint32_t struct_size;
    int32_t provider;        /**< MOELINK_MEMORY_*; the same on every rank */
    uint64_t bytes;          /**< [bytes] a rank, at least 1; the same on every rank; rounded up to the granularity */
    uint64_t page_bytes;     /**< [bytes] rounding asked for, a power of two; 0 = the provider's granularity */
    void *const *external;   /**< EXTERNAL: [ranks] addresses of every rank's copy as mapped in this process; they stay the
                                  caller's and must outlive the object. Copied. Else NULL. */
} moelink_memory_params;
#define MOELINK_MEMORY_PARAMS_INIT {(uint32_t)sizeof(moelink_memory_params), MOELINK_MEMORY_AUTO, 0u, 0u, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_memory_params_init(moelink_memory_params *params);

/** What was chosen. Start from MOELINK_MEMORY_INFO_INIT. */
typedef struct moelink_memory_info {
    uint32_t struct_size;
    int32_t provider;        /**< MOELINK_MEMORY_*; never AUTO */
    uint64_t bytes;          /**< [bytes] a rank after rounding */
    uint64_t granularity;    /**< [bytes] */
    int32_t ranks;
    int32_t tried;           /**< bit 1 << MOELINK_MEMORY_*: this provider was tried, or asked for, on the way */
    int32_t status[8];       /**< by MOELINK_MEMORY_*: OK, or why that provider was refused; NOT_READY when it was not tried */
} moelink_memory_info;
#define MOELINK_MEMORY_INFO_INIT {(uint32_t)sizeof(moelink_memory_info), 0, 0u, 0u, 0, 0, {0, 0, 0, 0, 0, 0, 0, 0}}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_memory_info_init(moelink_memory_info *info);

/** Tries every provider that params allow with one granule on all ranks, gives it back, and says which one a create would take
 *  and how many bytes it would use. Collective, host-blocking. `reasons` (may be NULL) receives at most reasons_bytes of text,
 *  NUL-terminated: a line a provider, with the reason of a refusal and the rank that refused.
 *  Errors: INVALID_ARGUMENT, MISMATCH; UNSUPPORTED when no provider works (out and reasons are filled all the same, and
 *  moelink_last_error holds every provider's reason). */
MOELINK_API moelink_status moelink_memory_query(moelink_group *group, const moelink_memory_params *params, moelink_memory_info *out,
                                                char *reasons, uint64_t reasons_bytes);

/** Allocates. Fresh pages are zero, except EXTERNAL ones. All ranks agree on the provider, each choice proven by a real allocation, export and import on all
 *  of them. Collective, host-blocking. *out is the caller's and keeps the group alive.
 *  Errors: INVALID_ARGUMENT, MISMATCH (the text names both values), OUT_OF_MEMORY, UNSUPPORTED (with every provider's reason),
 *  TIMEOUT, PEER_EXITED. On failure nothing stays allocated. */
MOELINK_API moelink_status moelink_memory_create(moelink_group *group, const moelink_memory_params *params, moelink_memory **out);

/** Address of `rank`'s copy in this process; valid until moelink_memory_destroy. Local. Threads: any. Errors: INVALID_ARGUMENT. */
MOELINK_API moelink_status moelink_memory_peer(const moelink_memory *memory, int32_t rank, void **out_address);

/** What was chosen and why the better ones were refused; `reasons` as in moelink_memory_query. Local. Threads: any. */
MOELINK_API moelink_status moelink_memory_describe(const moelink_memory *memory, moelink_memory_info *out, char *reasons,
                                                   uint64_t reasons_bytes);

/** Name of a provider, such as "posix-fd". Static storage. Local, never fails. Threads: any. */
MOELINK_API const char *moelink_provider_name(int32_t provider);

/** Unmaps and frees. Work on any stream that touches the memory, on this rank, must be done. Peers' own mappings keep the pages
 *  they use alive, except with CUDA_IPC, where no peer may use this rank's copy any more. NULL is fine. Local. */
MOELINK_API void moelink_memory_destroy(moelink_memory *memory);

#ifdef __cplusplus
}
#endif
#endif
