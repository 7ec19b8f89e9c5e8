/** @file group.h
 *  Groups: the ranks that act together. For a manager the group is exactly the expert-parallel (EP) group. */
#ifndef MOELINK_GROUP_H
#define MOELINK_GROUP_H

#include <moelink/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The little server behind a unique id; may live in a rank or in a launcher that is no rank. Threads: any. */
typedef struct moelink_rendezvous moelink_rendezvous;

/** The ranks that act together, and their connections. Threads: one thread at a time, calls on managers and memory made from it
 *  included, except moelink_group_abort,
 *  moelink_group_fault and moelink_group_error, which any thread may call at any time. */
typedef struct moelink_group moelink_group;

/** Everything a rank needs to find the others: addresses, the number of ranks, and a random secret. Good for one group. The
 *  caller carries it to every rank over a channel that strangers cannot read. */
typedef struct moelink_unique_id {
    uint8_t bytes[256];
} moelink_unique_id;

enum moelink_group_limits {
    MOELINK_GROUP_MAX_RANKS = 1024
};

/** Start from MOELINK_GROUP_PARAMS_INIT. */
typedef struct moelink_group_params {
    uint32_t struct_size;
    int32_t rank;           /**< 0 .. size-1 */
    int32_t size;           /**< 1 .. MOELINK_GROUP_MAX_RANKS */
    int32_t device;         /**< MOELINK_DEVICE_*; all ranks must come to the same one */
    int32_t device_ordinal; /**< CUDA ordinal; -1: the calling thread's current CUDA device */
    uint32_t flags;         /**< 0 */
    uint64_t timeout_ns;    /**< [ns] deadline of every wait of this group; 0 = 30 s */
    const char *socket_dir; /**< NULL: file descriptors are passed over abstract Unix sockets, which ranks in one network
                                 namespace share. A directory that all ranks of a host share (with their containers):
                                 sockets are made there. Copied. */
} moelink_group_params;
#define MOELINK_GROUP_PARAMS_INIT {(uint32_t)sizeof(moelink_group_params), 0, 1, MOELINK_DEVICE_AUTO, -1, 0u, 0u, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_group_params_init(moelink_group_params *params);

/** The caller's own transport, used only inside moelink_group_create_with, on the calling thread, to exchange addresses and a
 *  secret; after that the group talks over its own connections. Start from MOELINK_BOOTSTRAP_INIT. */
typedef struct moelink_bootstrap {
    uint32_t struct_size;
    uint32_t flags; /**< 0 */
    void *user;
    /** Gathers `bytes` from every rank into all [size, bytes], in rank order. Must return within timeout_ns with 0, else with
     *  a negative status, which the group's creation then returns. */
    moelink_status (*allgather)(void *user, const void *mine, void *all, uint64_t bytes, uint64_t timeout_ns);
    /** May be NULL. Called exactly once when the group no longer needs user: before create_with returns. */
    void (*release)(void *user);
} moelink_bootstrap;
#define MOELINK_BOOTSTRAP_INIT {(uint32_t)sizeof(moelink_bootstrap), 0u, 0, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_bootstrap_init(moelink_bootstrap *bootstrap);

/** Starts the rendezvous server of a group of `size` ranks and writes its unique id. It listens on `interface_or_null` (an
 *  address such as "10.0.0.5" or an interface name such as "eth0"), or on every address of this host when NULL. Both outputs
 *  are the caller's; the server must live until every rank has returned from moelink_group_create. Local. Threads: any.
 *  Errors: INVALID_ARGUMENT, PEER_UNREACHABLE when the address cannot be bound. */
MOELINK_API moelink_status moelink_rendezvous_create(const char *interface_or_null, int32_t size, moelink_rendezvous **out,
                                                     moelink_unique_id *out_id);

/** Number of connections that did not prove that they know the secret, closed without an answer. Local, never fails. Threads: any. */
MOELINK_API uint64_t moelink_rendezvous_strangers(const moelink_rendezvous *rendezvous);

/** Stops the server; ranks still waiting in it get PEER_UNREACHABLE. NULL is fine. Local. Threads: any, once. */
MOELINK_API void moelink_rendezvous_destroy(moelink_rendezvous *rendezvous);

/** Joins the group of a unique id. Collective, host-blocking. *out is the caller's.
 *  Errors: INVALID_ARGUMENT; MISMATCH (sizes, devices, library protocol versions, two ranks with one number: the text names both
 *  values); AUTHENTICATION (wrong secret); TIMEOUT (the text names the ranks that did not come); PEER_UNREACHABLE; NO_DRIVER. */
MOELINK_API moelink_status moelink_group_create(const moelink_unique_id *id, const moelink_group_params *params, moelink_group **out);

/** Joins over the caller's own allgather. Collective, host-blocking. *out is the caller's. Errors: as moelink_group_create, and
 *  whatever the callback returned. */
MOELINK_API moelink_status moelink_group_create_with(const moelink_bootstrap *boot, const moelink_group_params *params,
                                                     moelink_group **out);

/** Makes all `size` groups of ranks that are threads of this process, each with its own device. params_each [size] may be NULL
 *  (defaults); its elements all have the first one's struct_size, which is also the step from one to the next; rank and size
 *  in them are ignored. Fills out_each [size]; each is the caller's and is to be used by its own
 *  thread. Local, host-blocking. Errors: INVALID_ARGUMENT, MISMATCH, NO_DRIVER. */
MOELINK_API moelink_status moelink_group_create_threads(int32_t size, const moelink_group_params *params_each,
                                                        moelink_group **out_each);

/** Splits a group as MPI_Comm_split does: ranks with the same color form a new group, ordered by key, then by old rank. A
 *  negative color joins none (*out is NULL and the status OK). Needs nothing but the group. Collective, host-blocking.
 *  Errors: TIMEOUT, PEER_EXITED, ABORTED. */
MOELINK_API moelink_status moelink_group_split(moelink_group *group, int32_t color, int32_t key, moelink_group **out);

/** Number of this rank. 0 for NULL. Local. Threads: any. */
MOELINK_API int32_t moelink_group_rank(const moelink_group *group);
/** Number of ranks. 0 for NULL. Local. Threads: any. */
MOELINK_API int32_t moelink_group_size(const moelink_group *group);
/** MOELINK_DEVICE_HOST or MOELINK_DEVICE_CUDA. 0 for NULL. Local. Threads: any. */
MOELINK_API int32_t moelink_group_device(const moelink_group *group);
/** CUDA ordinal of this rank; -1 on the host device. Local. Threads: any. */
MOELINK_API int32_t moelink_group_device_ordinal(const moelink_group *group);
/** Connections to this rank's own listener that did not prove that they know the secret. Local. Threads: any. */
MOELINK_API uint64_t moelink_group_strangers(const moelink_group *group);

/** Returns when every rank has come. Collective, host-blocking. Errors: TIMEOUT, PEER_EXITED, ABORTED. */
MOELINK_API moelink_status moelink_group_barrier(moelink_group *group);

/** Gathers `bytes` from every rank into all [size, bytes] in rank order; host memory, equal `bytes` on every rank. Collective,
 *  host-blocking. Errors: MISMATCH (different bytes), TIMEOUT, PEER_EXITED, ABORTED. */
MOELINK_API moelink_status moelink_group_allgather(moelink_group *group, const void *mine, void *all, uint64_t bytes);

/** Copies `bytes` of host memory from rank root to all. Collective, host-blocking. Errors: as allgather. */
MOELINK_API moelink_status moelink_group_broadcast(moelink_group *group, void *data, uint64_t bytes, int32_t root);

/** Sticky state: OK, or the first error that ended the group (a peer that exited, an abort). No synchronisation. Local. Threads: any. */
MOELINK_API moelink_status moelink_group_fault(const moelink_group *group);

/** Text of the group's last error; never NULL. Valid until the next call on this thread that asks for it. Local. Threads: any. */
MOELINK_API const char *moelink_group_error(const moelink_group *group);

/** Orderly end: returns when every rank has come here, after which no peer's exit is an error. The group can then only be
 *  destroyed. Collective, host-blocking. Errors: TIMEOUT, PEER_EXITED, ABORTED. */
MOELINK_API moelink_status moelink_group_finalize(moelink_group *group);

/** Ends the group at once: waits of this rank return ABORTED, peers see it as soon as the news reaches them. Local. Threads: any. */
MOELINK_API moelink_status moelink_group_abort(moelink_group *group);

/** Drops the caller's handle. NULL is fine. Objects made from the group keep what they need alive, so the order of destruction
 *  does not matter. Without finalize, peers that still wait for this rank see PEER_EXITED. Local. */
MOELINK_API void moelink_group_destroy(moelink_group *group);

/** How the ranks of an expert-parallel group are made of data-parallel, prefill-context-parallel and tensor-parallel ranks:
 *  EP = dp * pcp * tp and rank = (dp_rank * pcp + pcp_rank) * tp + tp_rank. Start from MOELINK_MAPPING_INIT. */
typedef struct moelink_mapping {
    uint32_t struct_size;
    int32_t dp;   /**< 1 .. */
    int32_t pcp;  /**< 1 .. */
    int32_t tp;   /**< 1 .. */
    int32_t rank; /**< rank in the EP group */
    uint32_t reserved;
} moelink_mapping;
#define MOELINK_MAPPING_INIT {(uint32_t)sizeof(moelink_mapping), 1, 1, 1, 0, 0u}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_mapping_init(moelink_mapping *mapping);

/** Coordinates of a rank and the colors to give to moelink_group_split for its DP, PCP and TP groups (the key is the rank). */
typedef struct moelink_mapping_info {
    uint32_t struct_size;
    int32_t ep_size;
    int32_t dp_rank;
    int32_t pcp_rank;
    int32_t tp_rank;
    int32_t dp_color;
    int32_t pcp_color;
    int32_t tp_color;
} moelink_mapping_info;
#define MOELINK_MAPPING_INFO_INIT {(uint32_t)sizeof(moelink_mapping_info), 0, 0, 0, 0, 0, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_mapping_info_init(moelink_mapping_info *info);

/** Checks that dp * pcp * tp is ep_size (0: do not check) and computes the coordinates. Local. Threads: any.
 *  Errors: INVALID_ARGUMENT; the text names both sizes. */
MOELINK_API moelink_status moelink_mapping_describe(const moelink_mapping *mapping, int32_t ep_size, moelink_mapping_info *out);

#ifdef __cplusplus
}
#endif
#endif
