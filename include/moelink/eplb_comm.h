/** @file eplb_comm.h
 *  Communicators that move experts' weights between the ranks of an expert-parallel group; docs/eplb_exchange.md has the whole.
 *
 *  A rank owns the live rows of its expert slots. A round moves experts between ranks: each rank queues what it sends and what it
 *  receives (add_send, add_recv), then all ranks call execute. Data are received beside the live rows and copied into them only
 *  when every rank has everything: a failed round leaves each rank's rows as they were. */
#ifndef MOELINK_EPLB_COMM_H
#define MOELINK_EPLB_COMM_H

#include <moelink/base.h>
#include <moelink/group.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Moves experts over connections of its own (a split of the group), so rounds may run on one thread while the group and its
 *  managers are used on another. Threads: one thread at a time; init, ensure and reinit are calls on the group too;
 *  moelink_eplb_comm_error from any. */
typedef struct moelink_eplb_comm moelink_eplb_comm;

/** In vLLM's names: torch_nccl, pynccl, torch_gloo, nixl. */
enum moelink_eplb_comm_kind {
    /** The first of these that every rank can use: READ where all ranks share a host or the group is on the host device; then NCCL,
     *  on the caller's communicator when one is given and no ASYNC flag is, else on its own; then STAGED. */
    MOELINK_EPLB_COMM_AUTO = 0,
    MOELINK_EPLB_COMM_NCCL = 1,     /**< grouped send and receive on the caller's NCCL communicator */
    MOELINK_EPLB_COMM_NCCL_OWN = 2, /**< the same on a communicator made from the group */
    MOELINK_EPLB_COMM_STAGED = 3,   /**< through host memory and the group's own connections; needs nothing else */
    MOELINK_EPLB_COMM_READ = 4      /**< the receiver reads the peer's live rows, which no CPU of the peer has to serve: rows in a
                                         moelink_memory, in another thread of the process, or (CUDA) in memory that CUDA IPC
                                         exports; of other hosts what UCX or NIXL reads there while the peer sleeps, which init proves.
                                         Other rows are staged, and described with the reason */
};
enum moelink_eplb_comm_kind_count {
    MOELINK_EPLB_COMM_KINDS = 5
};

enum moelink_eplb_comm_state {
    MOELINK_EPLB_COMM_CREATED = 0, /**< no connections, no buffers, no layers */
    MOELINK_EPLB_COMM_READY = 1,   /**< nothing is queued */
    MOELINK_EPLB_COMM_QUEUED = 2,  /**< sends or receives wait for execute */
    MOELINK_EPLB_COMM_POISONED = 3 /**< a peer has gone or ranks may no longer agree on what was done; reinit or cleanup */
};

enum moelink_eplb_comm_flags {
    /** add_recv names memory that holds nothing yet: data land there at once, and nothing is staged. After a failed round that
     *  memory's contents are undefined. */
    MOELINK_EPLB_COMM_F_DIRECT = 1,
    /** A code over every expert's bytes is made by the sender and checked by the receiver before anything is kept. On CUDA this
     *  reads every expert to the host on both sides: for finding faults, not for every day. */
    MOELINK_EPLB_COMM_F_CHECKSUM = 2,
    /** Rounds run while the model runs: AUTO never takes the caller's NCCL communicator, on which the two would deadlock. */
    MOELINK_EPLB_COMM_F_ASYNC = 4,
    /** Ranks are taken for ranks of different hosts, whose memory is not mapped: UCX or NIXL reads READ's rows and STAGED's rings, or
     *  chunks are sent. */
    MOELINK_EPLB_COMM_F_NO_MAP = 8
};

enum moelink_eplb_comm_limits {
    MOELINK_EPLB_MAX_TENSORS = 64 /**< of one layer */
};

/** One weight tensor of a layer, as bytes: slot s has `rows` rows of row_bytes, row i at base + s * slot_stride + i * row_stride.
 *  Any dtype, sub-byte ones too (a row is whole bytes); a column-major matrix is a row a column; a dense one may be one row.
 *  These 40 bytes never change, so arrays of them are passed as pointer and count. */
typedef struct moelink_eplb_tensor {
    void *base;           /**< live memory of the group's device; the caller's, and valid until cleanup, reinit or destroy on
                               this rank and the end of the peers' last round that reads it */
    uint64_t slot_stride; /**< [bytes] from one slot to the next; 0 = rows * row_stride */
    uint64_t rows;        /**< of a slot, 1 .. */
    uint64_t row_bytes;   /**< [bytes] 1 .. */
    uint64_t row_stride;  /**< [bytes] at least row_bytes; 0 = row_bytes */
} moelink_eplb_tensor;

/** Start from MOELINK_EPLB_COMM_PARAMS_INIT. */
typedef struct moelink_eplb_comm_params {
    uint32_t struct_size;
    uint32_t flags;          /**< MOELINK_EPLB_COMM_F_*; the same on every rank */
    int32_t staging_experts; /**< K: experts that a rank can receive in one round, staged beside the live rows; 0 = 4. Memory for
                                  K experts of the largest layer is taken by register. Not used with DIRECT */
    int32_t sm_budget;       /**< READ on CUDA: multiprocessors that copy rows, from peers, from the staging into slots and inside the
                                  rank. -1: none, always the copy engines. 0: the library chooses: peers' rows by 16 where they are
                                  many small tensors at once, else by the copy engines, rows inside the rank by 32, or by 128
                                  while none come from peers, and with ASYNC all by the copy engines. N: so many, at most those of the device,
                                  for all rows that kernels can read; kernels that wait for peers hold their multiprocessors, so
                                  beside a running model N must be left free. Refused above 0 on the host device and by other
                                  kinds. Ranks may differ */
    uint64_t chunk_bytes;    /**< [bytes] of the pieces that STAGED sends and UCX or NIXL reads, 4096 .. 2^30; 0 = 1 MiB; the same on
                                  every rank */
    uint64_t timeout_ns;     /**< [ns] deadline of each collective call; 0 = the group's */
    void *nccl_comm;         /**< NCCL: the caller's ncclComm_t over the group's ranks in the group's order; it stays the caller's,
                                  must outlive the communicator's use, and is used by nobody else during a call. It is never
                                  aborted here: when a round on it is lost, abort it (ncclCommAbort) on all ranks before cleanup,
                                  which else waits for what NCCL may still write. Else NULL */
} moelink_eplb_comm_params;
#define MOELINK_EPLB_COMM_PARAMS_INIT {(uint32_t)sizeof(moelink_eplb_comm_params), 0u, 0, 0, 0u, 0u, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_comm_params_init(moelink_eplb_comm_params *params);

/** What a communicator is. Start from MOELINK_EPLB_COMM_INFO_INIT. */
typedef struct moelink_eplb_comm_info {
    uint32_t struct_size;
    int32_t kind;             /**< MOELINK_EPLB_COMM_* in use; AUTO before init when AUTO was asked for */
    int32_t state;            /**< MOELINK_EPLB_COMM_CREATED .. POISONED */
    int32_t ranks;
    int32_t layers;           /**< registered */
    int32_t staging_experts;  /**< K; 0 with DIRECT */
    int32_t read_peers;       /**< other ranks whose live rows this rank reads in every registered layer */
    int32_t staged_peers;     /**< other ranks of which some rows are staged */
    uint64_t generation;      /**< rounds begun since create */
    uint64_t staging_bytes;   /**< [bytes] of the group's device that hold received experts until they are committed */
    uint64_t host_bytes;      /**< [bytes] of host memory (pinned on CUDA) that data pass through */
    int32_t sm_budget;        /**< in use: that of the params, and -1 where no multiprocessor copies rows; 0 before init */
    int32_t sms;              /**< most multiprocessors that copy rows at once; 0: none ever */
    int32_t read_sms;         /**< most that read peers' rows */
    uint32_t reserved;
} moelink_eplb_comm_info;
#define MOELINK_EPLB_COMM_INFO_INIT {(uint32_t)sizeof(moelink_eplb_comm_info), 0, 0, 0, 0, 0, 0, 0, 0u, 0u, 0u, 0, 0, 0, 0u}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_comm_info_init(moelink_eplb_comm_info *info);

enum moelink_eplb_link {
    MOELINK_EPLB_LINK_LOCAL = 0,   /**< inside the rank */
    MOELINK_EPLB_LINK_PEER = 1,    /**< read from mapped memory: the host's, or a GPU's over NVLink or PCIe; NCCL on one host */
    MOELINK_EPLB_LINK_HOST = 2,    /**< staged, both ranks on one host */
    MOELINK_EPLB_LINK_NETWORK = 3, /**< between hosts; all that UCX reads */
    MOELINK_EPLB_LINKS = 4
};

/** Counters since create. Start from MOELINK_EPLB_COMM_STATS_INIT. */
typedef struct moelink_eplb_comm_stats {
    uint32_t struct_size;
    int32_t wait_count;           /**< in: elements of wait_ns; out: ranks */
    uint64_t *wait_ns;            /**< in: NULL, or [wait_count] the caller's, filled: [ns] that execute waited for each rank's word
                                       that its rows may be read, and for its data */
    uint64_t rounds;              /**< committed */
    uint64_t failed_rounds;       /**< every rank's rows were left as they were */
    uint64_t experts_received;
    uint64_t experts_sent;        /**< one for each receiver */
    uint64_t received_bytes[4];   /**< [bytes] by MOELINK_EPLB_LINK_*; of committed rounds */
    uint64_t stale_messages;      /**< of earlier rounds, dropped */
    uint64_t checked_experts;     /**< whose code was compared */
    uint64_t sm_copies;           /**< of an expert's rows, made by multiprocessors, also of rounds that failed */
    uint64_t sm_reads;            /**< those of sm_copies that read a peer's rows */
} moelink_eplb_comm_stats;
#define MOELINK_EPLB_COMM_STATS_INIT {(uint32_t)sizeof(moelink_eplb_comm_stats), 0, 0, 0u, 0u, 0u, 0u, {0u, 0u, 0u, 0u}, 0u, 0u, 0u, 0u}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_comm_stats_init(moelink_eplb_comm_stats *stats);

/** Name of a kind, such as "nccl-own"; "unknown" for others. Static storage. Local, never fails. Threads: any. */
MOELINK_API const char *moelink_eplb_comm_kind_name(int32_t kind);

/** The kind that a name means: those of moelink_eplb_comm_kind_name, and vLLM's "torch_nccl", "pynccl", "torch_gloo", "gloo" and
 *  "nixl". Local. Threads: any. Errors: INVALID_ARGUMENT, with the names there are. */
MOELINK_API moelink_status moelink_eplb_comm_kind_of(const char *name, int32_t *out_kind);

/** Says whether this machine can run a kind on a device (MOELINK_DEVICE_HOST or _CUDA) at all, in one line of `text`: what it is,
 *  and what it needs or lacks. Local. Threads: any. Returns OK, or UNSUPPORTED or NO_DRIVER (text is filled in all three cases).
 *  Errors: INVALID_ARGUMENT for a kind or device that does not exist, TOO_SMALL. */
MOELINK_API moelink_status moelink_eplb_comm_kind_describe(int32_t kind, int32_t device, char *text, uint64_t bytes);

/** Says what a communicator of this kind would take here for layers whose largest expert has expert_bytes: kind (AUTO: what this
 *  rank would choose), staging_bytes, host_bytes; `reasons` (may be NULL) gets at most reasons_bytes of text, why that kind.
 *  Allocates nothing. Local. Threads: any. Errors: INVALID_ARGUMENT; UNSUPPORTED or NO_DRIVER with the reason. */
MOELINK_API moelink_status moelink_eplb_comm_query(const moelink_group *group, int32_t kind, const moelink_eplb_comm_params *params,
                                                   uint64_t expert_bytes, moelink_eplb_comm_info *out, char *reasons,
                                                   uint64_t reasons_bytes);

/** Makes a communicator over a group: state CREATED. *out is the caller's and keeps the group alive. Local.
 *  Errors: INVALID_ARGUMENT; UNSUPPORTED or NO_DRIVER with the reason. */
MOELINK_API moelink_status moelink_eplb_comm_create(moelink_group *group, int32_t kind, moelink_eplb_comm **out);

/** Splits connections of its own off the group and chooses the kind: CREATED -> READY. For READ and STAGED between hosts it loads UCX
 *  and tries it, for some seconds at most. Collective, host-blocking.
 *  Errors: INVALID_STATE when already initialised, INVALID_ARGUMENT, MISMATCH (the text names both values), UNSUPPORTED,
 *  NO_DRIVER, OUT_OF_MEMORY, TIMEOUT, PEER_EXITED; on every one of them the communicator is as before on all ranks. */
MOELINK_API moelink_status moelink_eplb_comm_init(moelink_eplb_comm *comm, const moelink_eplb_comm_params *params);

/** As init when CREATED; a local no-op when initialised with these params. Errors: as init; INVALID_STATE when POISONED or with
 *  other params. */
MOELINK_API moelink_status moelink_eplb_comm_ensure(moelink_eplb_comm *comm, const moelink_eplb_comm_params *params);

/** Cleanup and init in one, whatever the state; what is queued is dropped. Layers whose tensors are still valid are to be
 *  registered again. Heals a POISONED communicator whose group is well. Collective, host-blocking. Errors: as init; the state is
 *  then CREATED. */
MOELINK_API moelink_status moelink_eplb_comm_reinit(moelink_eplb_comm *comm, const moelink_eplb_comm_params *params);

/** Gives up connections, buffers, registered layers and what is queued: -> CREATED. A no-op when CREATED. Peers' communicators are
 *  POISONED as soon as they notice; a round that they are in fails there. Local, host-blocking. */
MOELINK_API moelink_status moelink_eplb_comm_cleanup(moelink_eplb_comm *comm);

/** Names a layer's live tensors [count], in an order common to all ranks, each with local_slots slots on this rank. A layer that
 *  is registered already gets the new tensors. Peers learn where to read; staging grows to K experts of the largest layer.
 *  Collective, host-blocking. Errors: INVALID_ARGUMENT; MISMATCH when ranks name another layer, number of tensors, rows or
 *  row_bytes of a tensor (the text names the tensor and both values; strides and slots may differ); INVALID_STATE when CREATED,
 *  QUEUED or POISONED; OUT_OF_MEMORY, TIMEOUT, PEER_EXITED. On failure the layer is as before on all ranks. */
MOELINK_API moelink_status moelink_eplb_comm_register(moelink_eplb_comm *comm, int32_t layer, const moelink_eplb_tensor *tensors,
                                                      int32_t count, int32_t local_slots);

/** The stream that writes the live rows before a round and reads them after it; NULL at first. execute waits for it, and works on
 *  it. Local. */
MOELINK_API moelink_status moelink_eplb_comm_set_stream(moelink_eplb_comm *comm, moelink_stream stream);

/** Chooses the registered layer that the next adds are about, and says which expert each physical slot of all ranks held before:
 *  old_indices [count], rank by rank, -1 for none; count is the sum of all ranks' local_slots. Copied. NULL with count 0: not
 *  known. Ranks that differ in layer or old_indices are refused in execute. Local. Errors: INVALID_ARGUMENT (a count that is not
 *  the layer's, a layer that is not registered; the text names the values), INVALID_STATE when CREATED, QUEUED or POISONED. */
MOELINK_API moelink_status moelink_eplb_comm_set_transfer_context(moelink_eplb_comm *comm, const int32_t *old_indices, int64_t count,
                                                                  int32_t layer);

/** Queues an expert's rows for dst_rank (this rank too): tensors [count] are the expert's part of every registered tensor in order,
 *  with the registered row_bytes and number of rows; tensors NULL with count 0: the live rows of the slot where old_indices has
 *  the expert. The rows must stay as they are until execute returns. One expert may be sent to any number of ranks, at no cost
 *  in memory. Local, queues only. Errors: INVALID_ARGUMENT (the text names tensor and values; a second send of one expert to
 *  one rank), INVALID_STATE without a transfer context, when CREATED or POISONED. */
MOELINK_API moelink_status moelink_eplb_comm_add_send(moelink_eplb_comm *comm, const moelink_rows *tensors, int32_t count,
                                                      int32_t dst_rank, int32_t expert);

/** Queues the receipt of an expert from src_rank (this rank too) into rows like those of add_send; live ones, unless DIRECT. A rank
 *  receives an expert at most once in a round. Local, queues only. Errors: as add_send; TOO_SMALL beyond staging_experts. */
MOELINK_API moelink_status moelink_eplb_comm_add_recv(moelink_eplb_comm *comm, const moelink_rows *tensors, int32_t count,
                                                      int32_t src_rank, int32_t expert);

/** Runs the round that is queued; every rank calls it, with nothing queued too. On return of OK all received rows are in place, on
 *  every rank that has returned, and visible to the host and to the stream. On failure rows are as before on every rank, and no
 *  queue holds anything. Collective, host-blocking, not capturable.
 *  Errors: MISMATCH (sends without receives or the other way round, other layers, old_indices, sizes: the text names ranks and
 *  expert); TIMEOUT (naming the ranks); INTERNAL for a wrong code; these leave the communicator READY, but for a TIMEOUT of
 *  NCCL's transfers: POISONED. PEER_EXITED,
 *  PEER_UNREACHABLE, ABORTED, DEVICE, or INTERNAL of a library: POISONED; a rank that had heard that all were done before it
 *  lost the others returns OK and is POISONED at its next call. */
MOELINK_API moelink_status moelink_eplb_comm_execute(moelink_eplb_comm *comm);

/** 1 when a profiling run must make room for the buffers that NCCL allocates with its first transfers, else 0 (for NULL too).
 *  Source: vLLM's needs_profile_buffer_reservation. Local, never fails. Threads: any. */
MOELINK_API int32_t moelink_eplb_comm_needs_reservation(const moelink_eplb_comm *comm);

/** What the communicator is; `reasons` (may be NULL) gets at most reasons_bytes of text: why this kind, and why the rows of which
 *  ranks are staged. Local. */
MOELINK_API moelink_status moelink_eplb_comm_describe(const moelink_eplb_comm *comm, moelink_eplb_comm_info *out, char *reasons,
                                                      uint64_t reasons_bytes);

/** Local. Errors: TOO_SMALL when wait_ns is given with too few elements. */
MOELINK_API moelink_status moelink_eplb_comm_stats_of(moelink_eplb_comm *comm, moelink_eplb_comm_stats *out);

/** Text of the communicator's last error; never NULL. Valid until the next call on this thread that asks for it. Local. Threads: any. */
MOELINK_API const char *moelink_eplb_comm_error(const moelink_eplb_comm *comm);

/** Cleanup, then drops the handle. NULL is fine. Local. */
MOELINK_API void moelink_eplb_comm_destroy(moelink_eplb_comm *comm);

#ifdef __cplusplus
}
#endif
#endif
