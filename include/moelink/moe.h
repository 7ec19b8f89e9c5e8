/** @file moe.h
 *  All-to-all managers: dispatch of tokens to the ranks of their experts, and combine of the experts' outputs.
 *
 *  Terms: E physical experts over R ranks; rank r owns E/R of them in order, the first E%R ranks one more. Each token names
 *  top_k experts. Dispatch sends a token once to every distinct rank that owns one of its experts; that rank's experts work on
 *  the received row; combine adds, for each token, the rows of its distinct ranks. */
#ifndef MOELINK_MOE_H
#define MOELINK_MOE_H

#include <moelink/base.h>
#include <moelink/group.h>

#ifdef __cplusplus
extern "C" {
#endif

/** One all-to-all over one group, with its workspace. Threads: one thread at a time, and not beside another call on its group,
 *  whose connections it uses in collective calls; moelink_manager_fault and moelink_manager_error from any. */
typedef struct moelink_manager moelink_manager;

enum moelink_manager_kind {
    /** Push dispatch and push combine through symmetric memory. Stream-ordered, graph-capturable, no host synchronisation. */
    MOELINK_MANAGER_ONE_SIDED = 1,
    /** Bounded FIFOs between each pair of ranks, whose size does not depend on tokens: rows move on as room is given back. prepare
     *  exchanges the routing, alltoallv moves any tensors with it (alltoall.h); dispatch and combine do both. */
    MOELINK_MANAGER_TWO_SIDED = 2,
    /** Every rank receives every token (all-gather); outputs come back by reduce-scatter. Pushed through symmetric memory where the
     *  ranks can have it, as ONE_SIDED is: on the host, and on CUDA within an NVLink domain. Else, and with MOELINK_MANAGER_F_NCCL, over
     *  NCCL (looked up at run time, one rank a GPU). Over NCCL the sum is NCCL's unless MOELINK_MANAGER_F_DETERMINISTIC is set: order and
     *  intermediate rounding are its own; there is no deadline; and graphs that captured it must be destroyed before reinit, growth,
     *  cleanup or destroy, since NCCL waits for them. */
    MOELINK_MANAGER_ALLGATHER_REDUCESCATTER = 3,
    /** Naive, through the group's control connections and host memory; host-blocking, not capturable. For tests. */
    MOELINK_MANAGER_REFERENCE = 5
};

enum moelink_manager_state {
    MOELINK_STATE_CREATED = 0,    /**< no workspace */
    MOELINK_STATE_READY = 1,      /**< every slot waits for a dispatch */
    MOELINK_STATE_DISPATCHED = 2, /**< some slot waits for its combine */
    MOELINK_STATE_FAULTED = 3     /**< a round was lost; reinit or cleanup, on TWO_SIDED also abandon */
};

enum moelink_manager_flags {
    MOELINK_MANAGER_F_NO_GROW = 1, /**< ensure must not grow: INVALID_STATE when the workspace does not cover the config */
    /** ALLGATHER_REDUCESCATTER over NCCL: rows are exchanged and added here, in fp32 and rank order, as all other kinds do always. The
     *  same on every rank */
    MOELINK_MANAGER_F_DETERMINISTIC = 2,
    MOELINK_MANAGER_F_NCCL = 4,    /**< ALLGATHER_REDUCESCATTER on CUDA: NCCL even where the ranks have symmetric memory. The same on every rank */
    /** Each dispatch gives a buffer for each payload it sends: TWO_SIDED then allocates no memory that grows with tokens for received
     *  payloads, so it has no layout but RANK_MAJOR. The same on every rank */
    MOELINK_MANAGER_F_NO_VIEWS = 8,
    /** RANK_MAJOR dispatches too write their counts for moelink_dispatch_counts, which costs a launch; other layouts always do. The same on
     *  every rank */
    MOELINK_MANAGER_F_COUNTS = 16
};

enum moelink_moe_limits {
    MOELINK_MAX_TOP_K = 32,
    MOELINK_MAX_PAYLOADS = 16,
    MOELINK_MAX_SLOTS = 16,
    MOELINK_MAX_CUDA_RANKS = 128 /**< ranks of an NVLink domain; other groups: MOELINK_GROUP_MAX_RANKS */
};

/** Start from MOELINK_MANAGER_CONFIG_INIT. */
typedef struct moelink_manager_config {
    uint32_t struct_size;
    uint32_t flags;                    /**< MOELINK_MANAGER_F_* */
    int32_t max_tokens;                /**< most tokens this rank passes to one dispatch; the largest of all ranks is taken */
    int32_t top_k;                     /**< 1 .. MOELINK_MAX_TOP_K; the same on every rank */
    int32_t num_experts;               /**< 1 ..; the same on every rank */
    int32_t payload_count;             /**< 1 .. MOELINK_MAX_PAYLOADS; the same on every rank */
    const uint64_t *payload_row_bytes; /**< [payload_count] most bytes of one row of each payload; the same on every rank */
    uint64_t combine_row_bytes;        /**< [bytes] most of one row of combine; the same on every rank. 0: no combine; each round then
                                            ends by abandon */
    int32_t slots;                     /**< dispatches that may be in flight; 0 = 1; the same on every rank */
    int32_t sm_budget;                 /**< multiprocessors that a kernel may use; 0 = automatic: all, shared among the ranks of a GPU
                                            and the slots. Set it where several managers work on a GPU at once. Ignored on the host */
    uint64_t timeout_ns;               /**< [ns] of every wait inside dispatch and combine; 0 = the group's */
    int32_t provider;                  /**< MOELINK_MEMORY_* for the workspace; 0 = automatic */
    uint32_t layouts;                  /**< bits 1 << MOELINK_LAYOUT_*: layouts that dispatches may ask for, besides RANK_MAJOR; the same on every rank */
    const int32_t *expert_ranks;       /**< NULL: rank r owns num_experts/ranks experts in order, the first num_experts%ranks ranks one
                                            more. Else [num_experts] host, read during the call: each expert's rank in this group, or -1: of
                                            none, its ids are dropped. A rank's local experts are numbered in rising order of their ids. The
                                            same on every rank */
    int64_t layout_rows;               /**< rows that a view in another layout than RANK_MAJOR holds on this rank; 0: as many as can ever come. More
                                            rows than that are a fault (TOO_SMALL) */
    int32_t alignment;                 /**< largest alignment that a dispatch in EXPERT_MAJOR asks for; 0 = 1 */
    uint32_t reserved;                 /**< 0 */
    uint64_t fifo_bytes;               /**< [bytes] TWO_SIDED: most for the FIFOs of all slots on this rank, though never less than the smallest
                                            that work; 0 = automatic: 13 MiB on CUDA, 256 KiB for each pair of ranks on the host. On CUDA
                                            twice as much makes batches of thousands of tokens a few percent faster, more does
                                            nothing. The same on every rank */
} moelink_manager_config;
#define MOELINK_MANAGER_CONFIG_INIT \
    {(uint32_t)sizeof(moelink_manager_config), 0u, 0, 0, 0, 0, 0, 0u, 0, 0, 0u, 0, 0u, 0, 0, 0, 0u, 0u}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_manager_config_init(moelink_manager_config *config);

/** Bytes of a manager on one rank, by part. Start from MOELINK_MANAGER_SIZES_INIT. */
typedef struct moelink_manager_sizes {
    uint32_t struct_size;
    int32_t slots_per_rank;   /**< rows that one rank can send to another in one dispatch */
    uint64_t workspace_bytes; /**< [bytes] all of it: the parts below and rounding */
    uint64_t dispatch_bytes;  /**< [bytes] received payloads, ids and weights, all slots */
    uint64_t combine_bytes;   /**< [bytes] received combine rows, all slots; of TWO_SIDED its FIFOs, for both ways */
    uint64_t control_bytes;   /**< [bytes] flags, counts and routing, all slots */
    uint64_t layout_bytes;    /**< [bytes] views in config.layouts, their counts and offsets, all slots; not part of workspace_bytes */
    int64_t layout_rows;      /**< rows of such a view, the most of its layouts */
} moelink_manager_sizes;
#define MOELINK_MANAGER_SIZES_INIT {(uint32_t)sizeof(moelink_manager_sizes), 0, 0u, 0u, 0u, 0u, 0u, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_manager_sizes_init(moelink_manager_sizes *sizes);

/** Says whether a manager of this kind can serve the config on this group, and how many bytes it would take here, taking this
 *  rank's max_tokens as the largest of all. Allocates nothing. Local. Threads: any.
 *  Errors: INVALID_ARGUMENT; UNSUPPORTED or NO_DRIVER with the reason in moelink_last_error. */
MOELINK_API moelink_status moelink_manager_query(const moelink_group *group, int32_t kind, const moelink_manager_config *config,
                                                 moelink_manager_sizes *out);

/** Name of a kind, such as "one-sided"; "unknown" for others. Static storage. Local, never fails. Threads: any. */
MOELINK_API const char *moelink_manager_kind_name(int32_t kind);

/** Says whether this machine can run a kind on a device (MOELINK_DEVICE_HOST or _CUDA) at all, in one line of `text`: what it is,
 *  and what it needs or lacks. Local. Threads: any. Returns OK, or UNSUPPORTED or NO_DRIVER (text is filled in all three cases).
 *  Errors: INVALID_ARGUMENT for a kind or device that does not exist, TOO_SMALL. */
MOELINK_API moelink_status moelink_manager_kind_describe(int32_t kind, int32_t device, char *text, uint64_t bytes);

/** What stands here for a value of vLLM's --all2all-backend. Start from MOELINK_ALL2ALL_BACKEND_INIT. */
typedef struct moelink_all2all_backend {
    uint32_t struct_size;
    int32_t kind;       /**< MOELINK_MANAGER_* */
    int32_t layout;     /**< MOELINK_LAYOUT_* in which that back end hands rows to experts */
    int32_t same;       /**< 1: the kind does what that back end does, in its way; 0: it stands in for it, and reason says why */
    const char *name;   /**< the value; static storage */
    const char *reason; /**< one line, "" when same; static storage */
} moelink_all2all_backend;
#define MOELINK_ALL2ALL_BACKEND_INIT {(uint32_t)sizeof(moelink_all2all_backend), 0, 0, 0, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_all2all_backend_init(moelink_all2all_backend *backend);

/** The kind and layout for a value such as "deepep_low_latency". Local. Threads: any. Errors: INVALID_ARGUMENT (the text lists the values). */
MOELINK_API moelink_status moelink_all2all_backend_find(const char *name, moelink_all2all_backend *out);

/** The index-th value, from 0. Local. Threads: any. Errors: INVALID_ARGUMENT at the end. */
MOELINK_API moelink_status moelink_all2all_backend_at(int32_t index, moelink_all2all_backend *out);

/** Makes a manager over an EP group: state CREATED. mapping may be NULL; when given, dp * pcp * tp must be the group's size and
 *  mapping->rank this rank, which catches a data-parallel group passed for the expert-parallel one. *out is the caller's and
 *  keeps the group alive. Local. Errors: INVALID_ARGUMENT (the text names both sizes), UNSUPPORTED, NO_DRIVER. */
MOELINK_API moelink_status moelink_manager_create(moelink_group *ep_group, int32_t kind, const moelink_mapping *mapping,
                                                  moelink_manager **out);

/** Allocates the workspace: CREATED -> READY, generation 1 higher. Collective, host-blocking, not capturable. All kernels are
 *  loaded here. Errors: INVALID_STATE when already initialised, INVALID_ARGUMENT, MISMATCH (the text names both values),
 *  UNSUPPORTED, OUT_OF_MEMORY, TIMEOUT, PEER_EXITED; on every one of them the manager is as before on all ranks. */
MOELINK_API moelink_status moelink_manager_init(moelink_manager *manager, const moelink_manager_config *config);

/** Makes sure that the workspace covers the config. CREATED: as init. Covered: a local no-op. Else: collective growth to the
 *  union of tokens, slots and bytes, generation 1 higher; old and new workspace exist together for a moment; views and
 *  captured graphs of the old one are stale. Ranks must come to the same decision, so they pass equal configs, max_tokens
 *  included; a rank that finds itself covered does not wait for one that grows. Host-blocking, not capturable when it has to do something.
 *  Errors: as init; MISMATCH when top_k or num_experts contradict the workspace (the text names both values); INVALID_STATE
 *  after a fault, and when growth is needed while a slot is dispatched or NO_GROW is set. */
MOELINK_API moelink_status moelink_manager_ensure(moelink_manager *manager, const moelink_manager_config *config);

/** Replaces the workspace by one for this config, larger or smaller, whatever the state: CREATED, READY, DISPATCHED (the rounds in
 *  flight are given up) or FAULTED -> READY, generation 1 higher. The old workspace is freed once the new one exists; call
 *  cleanup and init where both do not fit. Waits for this rank's device. Collective, host-blocking, not capturable. Errors: as init. */
MOELINK_API moelink_status moelink_manager_reinit(moelink_manager *manager, const moelink_manager_config *config);

/** Frees the workspace: -> CREATED. A no-op when CREATED. Waits for this rank's device; peers' rounds in flight time out.
 *  Local, host-blocking, not capturable. */
MOELINK_API moelink_status moelink_manager_cleanup(moelink_manager *manager);

/** Gives up the round in flight on a slot: DISPATCHED -> READY for that slot. Collective, host-blocking, not capturable; a
 *  no-op round (nothing in flight) is fine. TWO_SIDED: when some rank is FAULTED and the group is whole, all slots of all ranks are reset
 *  and the fault is cleared: FAULTED or DISPATCHED -> READY, with the same workspace and generation; graphs stay good.
 *  Errors: INVALID_STATE when CREATED or, for other kinds, FAULTED; INVALID_ARGUMENT, TIMEOUT, PEER_EXITED. */
MOELINK_API moelink_status moelink_manager_abandon(moelink_manager *manager, int32_t slot);

/** State (MOELINK_STATE_*) and generation (0 before the first init). Either output may be NULL. Local. */
MOELINK_API moelink_status moelink_manager_state_of(const moelink_manager *manager, int32_t *out_state, uint64_t *out_generation);

/** Sizes of the present workspace; all 0 when CREATED. Local. */
MOELINK_API moelink_status moelink_manager_sizes_of(const moelink_manager *manager, moelink_manager_sizes *out);

/** The manager's sticky fault as seen so far by the host or, through pinned memory, by a kernel: OK, TIMEOUT, PEER_EXITED,
 *  MISMATCH, INVALID_STATE (graphs replayed dispatch and combine of a slot out of turn), TOO_SMALL (more rows than a layout has room
 *  for), STALE or DEVICE. No synchronisation. STALE is reported once and then cleared, since the present workspace is
 *  unharmed. Local. Threads: any. */
MOELINK_API moelink_status moelink_manager_fault(moelink_manager *manager);

/** Text of the manager's last error or fault; never NULL; valid until the next call on this thread that asks for it. Threads: any. */
MOELINK_API const char *moelink_manager_error(const moelink_manager *manager);

/** Cleans up and drops the handle. Waits for this rank's device. NULL is fine. Local, host-blocking. */
MOELINK_API void moelink_manager_destroy(moelink_manager *manager);

/** How received rows lie. Every kind of manager has all of them, from one dispatch. Rows are in order of source rank, then token, then k:
 *  the same input gives the same rows. */
enum moelink_layout {
    MOELINK_LAYOUT_RANK_MAJOR = 0, /**< [ranks, slots_per_rank, ...]: rows of source s at s * slots_per_rank, in token order */
    MOELINK_LAYOUT_PACKED = 1,     /**< rows of source s from rank_offsets[s] on, without gaps */
    /** One row for each (token, k) with an expert here: rows of local expert e from expert_offsets[e] on, each expert's at a multiple of
     *  the alignment, the end as well; the rows between are zero. */
    MOELINK_LAYOUT_EXPERT_MAJOR = 2,
    /** The same with room for as many rows for each local expert, [local_experts, expert_rows, ...] (DeepEP's low-latency form): expert e
     *  from e * expert_rows on, where expert_rows = ranks * slots_per_rank, or what layout_rows or output_rows leave for each: enough
     *  where no token names an expert twice. Rows beyond expert_counts[e] are undefined. */
    MOELINK_LAYOUT_EXPERT_PADDED = 3
};

/** Name of a layout, such as "expert-major"; "unknown" for others. Static storage. Local, never fails. Threads: any. */
MOELINK_API const char *moelink_layout_name(int32_t layout);

enum moelink_dispatch_flags {
    /** The slot's last dispatch is done again for other payloads: its tokens, topk_ids, weights, layout and invalid_id. num_tokens is
     *  the same; topk_ids, topk_weights and num_tokens_device are not read. The same on every rank. INVALID_STATE when the slot has had
     *  no dispatch since init, growth, reinit, abandon or moelink_prepare. */
    MOELINK_DISPATCH_F_CACHED_ROUTING = 1,
    /** Only the sending half; the receiving half is moelink_dispatch_receive on the same slot, before anything that was received is
     *  used. Work in between overlaps with the transfer on ONE_SIDED, and on ALLGATHER_REDUCESCATTER but over NCCL; other kinds, whose
     *  senders wait for receivers, do all of it in the first half. */
    MOELINK_DISPATCH_F_SEND_ONLY = 2,
    /** ALLGATHER_REDUCESCATTER and REFERENCE: there are no topk_ids yet (router logits travel as a payload): every rank receives every
     *  token, and combine, with SUM, adds the rows of all ranks. topk_ids and topk_weights are NULL. The same on every rank. */
    MOELINK_DISPATCH_F_NO_ROUTING = 4
};

/** Quantization inside dispatch. The same on every rank. */
enum moelink_quantize {
    MOELINK_QUANTIZE_NONE = 0,
    /** payloads[0] is BF16 rows of n values, n a multiple of 128. What travels and is received in its place is payload 0 as n
     *  FP8 E4M3 values, and payload 1 as their scales, one for each 128 values: F32, or E8M0 (a power of two). A value is its E4M3 times
     *  its scale. scale = max(largest magnitude of the 128, 1e-10) / 448, for E8M0 the next power of two; values are multiplied by
     *  1 / scale in fp32, rounded to nearest even, finite ones beyond 448 to 448. Same bits on host and CUDA. Source: the 1 x 128 tiles
     *  of DeepSeek-V3. */
    MOELINK_QUANTIZE_F8E4M3_BLOCK128 = 1
};

/** Start from MOELINK_DISPATCH_ARGS_INIT. */
typedef struct moelink_dispatch_args {
    uint32_t struct_size;
    int32_t slot;                     /**< 0 .. slots-1; ranks pass the same one */
    int32_t num_tokens;               /**< 0 .. max_tokens; may differ on every rank */
    int32_t topk_ids_dtype;           /**< MOELINK_DTYPE_I32 or _I64 */
    const int32_t *num_tokens_device; /**< NULL, or device memory read by the kernel instead of num_tokens, which is then the bound */
    const void *topk_ids;             /**< [num_tokens, top_k] device; negative and too large ones are dropped; no two valid ids
                                           of a token need differ */
    const float *topk_weights;        /**< [num_tokens, top_k] device f32, or NULL; travels with the token. NULL on all ranks with tokens or
                                           on none */
    const int64_t *rank_tokens;       /**< [ranks] host, or NULL: tokens of every rank. ALLGATHER_REDUCESCATTER over NCCL moves only so many rows,
                                           where NULL pads to max_tokens; other kinds check only this rank's own */
    int32_t layout;                   /**< MOELINK_LAYOUT_*; in config.layouts; the same on every rank */
    int32_t invalid_id;               /**< written into topk_ids of empty rows and for experts that live elsewhere */
    int32_t payload_count;            /**< at most the config's */
    uint32_t flags;                   /**< MOELINK_DISPATCH_F_* */
    const moelink_rows *payloads;     /**< [payload_count], each [num_tokens, ...] device; row_bytes the same on every rank. data NULL:
                                           not sent this time; a rank without tokens may pass data NULL and says by row_bytes above 0
                                           that the payload is sent, by 0 that it is not */
    const moelink_rows *outputs;      /**< NULL: views into the workspace. Else [payload_count] device buffers of output_rows rows;
                                           one with data NULL is a view */
    int32_t quantize;                 /**< MOELINK_QUANTIZE_*. _F8E4M3_BLOCK128: payload_count is 2 or more; payloads[0] has dtype BF16, row_bytes
                                           2 * n, and on CUDA an address and stride that are multiples of 16, as the config's
                                           payload_row_bytes[0] is; payloads[1] has data NULL and dtype F32 or E8M0; outputs of scales start at multiples of 4 for F32. Config and outputs are
                                           in bytes of what travels: n, and 4 * n / 128 or n / 128. Not on
                                           ALLGATHER_REDUCESCATTER over NCCL */
    int32_t sm_budget;                /**< multiprocessors that this call may use, in place of the config's; 0: the config's. Never more than
                                           what is shared out when the budget is automatic. Ignored on the host and over NCCL */
    int32_t alignment;                /**< EXPERT_MAJOR: rows of an expert begin at multiples of it, at most the config's; 0 = 1 */
    int32_t rank_tokens_count;        /**< entries of rank_tokens, which must be the group's ranks; 0: not checked */
    int64_t output_rows;              /**< rows that each of `outputs` holds; 0: row_capacity. RANK_MAJOR needs row_capacity. More rows
                                           than that are a fault (TOO_SMALL), and none is written behind the last */
    int64_t *load_counts;             /**< NULL, or [num_experts] device: 1 is added for each of this rank's (token, k) to its expert's entry; ids
                                           that are dropped, and repeated routings, count nowhere. As moelink_eplb_load_record takes
                                           them, where ids are physical */
} moelink_dispatch_args;
#define MOELINK_DISPATCH_ARGS_INIT \
    {(uint32_t)sizeof(moelink_dispatch_args), 0, 0, MOELINK_DTYPE_I32, 0, 0, 0, 0, MOELINK_LAYOUT_RANK_MAJOR, -1, 0, 0u, 0, 0, \
     MOELINK_QUANTIZE_NONE, 0, 0, 0, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_dispatch_args_init(moelink_dispatch_args *args);

/** Where a dispatch puts its rows. Addresses and bounds are known on the host at once; the values are there in stream order, and
 *  stay valid until that slot's combine, abandon, growth or cleanup. From the start of the combine to the slot's next dispatch the
 *  memory is the library's and must not be written: peers may read rows in place. Start from MOELINK_DISPATCHED_INIT. */
typedef struct moelink_dispatched {
    uint32_t struct_size;
    int32_t ranks;
    int64_t row_capacity;       /**< rows in each output: ranks * slots_per_rank in RANK_MAJOR; what a view holds, or output_rows, in others */
    int64_t slots_per_rank;
    moelink_rows *payloads;     /**< in: the caller's array of payload_count, or NULL; filled with each output's address, row bytes,
                                     stride and dtype. A one-sided view's stride is the config's payload_row_bytes,
                                     rounded up to 4 above 2: dense when rows are a multiple of 4 and as large as the
                                     workspace was made for */
    int32_t *topk_ids;          /**< [row_capacity, top_k] device; invalid_id where no local expert is meant. Ids are those the
                                     caller gave: global, not local. Not to be written: which rows are marked is remembered. NULL in the
                                     EXPERT layouts, and when ALLGATHER_REDUCESCATTER was given none */
    float *topk_weights;        /**< [row_capacity, top_k] device; NULL when args->topk_weights was and num_tokens was not 0, and in the EXPERT
                                     layouts. Rows beyond the counts are undefined */
    const int32_t *recv_counts; /**< [ranks] device: rows received from each source, each counted once in every layout */
    int32_t local_experts;      /**< experts of this rank */
    int32_t reserved;
    const int32_t *rank_offsets;   /**< [ranks + 1] device: first row of each source, and the end; NULL but in PACKED */
    const int32_t *expert_counts;  /**< [local_experts] device: rows of each local expert; NULL but in the EXPERT layouts */
    const int32_t *expert_offsets; /**< [local_experts + 1] device: first row of each local expert, and the end; NULL but in the EXPERT layouts */
    const int32_t *row_sources;    /**< [row_capacity, 3] device: rank, token, and k (-1 in PACKED) of each row; -1, -1, -1 where no row is; NULL in RANK_MAJOR */
    const float *row_weights;      /**< [row_capacity] device: the weight of each row's (token, k), 0 where no row is; NULL but in the EXPERT layouts with weights */
} moelink_dispatched;
#define MOELINK_DISPATCHED_INIT {(uint32_t)sizeof(moelink_dispatched), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_dispatched_init(moelink_dispatched *dispatched);

/** Who weighs. In RANK_MAJOR and PACKED a received row already mixes the experts of its rank, so normally the caller hands in rows that
 *  its expert kernel has weighted and summed, and combine SUMs over distinct ranks. In the EXPERT layouts a row is one expert's: a
 *  token's rows are added here first, in fp32 and in the order of k, rounded once to their dtype, and travel as one row. */
enum moelink_combine_mode {
    MOELINK_COMBINE_SUM = 0,
    /** EXPERT layouts: each row is first multiplied, in fp32, by the weight of its (token, k). RANK_MAJOR and PACKED: each rank's row is first multiplied, in fp32 on the token's own rank, by the sum of the token's topk_weights for experts of
     *  that rank: right where a rank's row stands for one expert, or for experts that share their output. Needs topk_weights in the
     *  dispatch. Not on ALLGATHER_REDUCESCATTER over NCCL. */
    MOELINK_COMBINE_WEIGHTED = 1
};

enum moelink_combine_flags {
    /** Only the sending half; the receiving half is moelink_combine_receive on the same slot, before output is used. Until then input
     *  must stay as it is. Overlap as with MOELINK_DISPATCH_F_SEND_ONLY. */
    MOELINK_COMBINE_F_SEND_ONLY = 1
};

/** Start from MOELINK_COMBINE_ARGS_INIT. */
typedef struct moelink_combine_args {
    uint32_t struct_size;
    int32_t slot;
    int32_t mode;        /**< MOELINK_COMBINE_* */
    uint32_t flags;      /**< MOELINK_COMBINE_F_* */
    moelink_rows input;  /**< [row_capacity, hidden] in the dispatched layout: any device memory, a dispatched view included (then at the
                              view's own stride, each row within its row there); dtype F32, F16 or BF16. Rows beyond the counts are
                              not read */
    moelink_rows output; /**< [num_tokens, hidden] device; row_bytes and dtype as input's; overlaps no received row of input; tokens
                              with no valid id become 0 */
    int32_t sm_budget;   /**< as in moelink_dispatch_args */
    uint32_t reserved;   /**< 0 */
    int64_t input_rows;  /**< rows that input holds: at least the dispatch's row_capacity; on ALLGATHER_REDUCESCATTER in PACKED, where rank_tokens was
                              given, their sum exactly; 0: not checked */
} moelink_combine_args;
#define MOELINK_COMBINE_ARGS_INIT \
    {(uint32_t)sizeof(moelink_combine_args), 0, MOELINK_COMBINE_SUM, 0u, {0, 0u, 0u, 0, 0u}, {0, 0u, 0u, 0, 0u}, 0, 0u, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_combine_args_init(moelink_combine_args *args);

/** Sends each token once to every distinct rank among its experts. Collective. ONE_SIDED, TWO_SIDED and
 *  ALLGATHER_REDUCESCATTER on CUDA: stream-ordered, graph-capturable, nothing is allocated; every other: host-blocking. READY ->
 *  DISPATCHED for the slot (not tracked while capturing).
 *  ONE_SIDED on CUDA lets the stream's next kernel take its place early: one that the caller launches with programmatic stream
 *  serialization waits (griddepcontrol.wait) before it touches anything that dispatch or combine reads or writes.
 *  Errors: INVALID_ARGUMENT, INVALID_STATE, TOO_SMALL (more tokens or bytes than the config covers), UNSUPPORTED, DEVICE. On the
 *  host device also TIMEOUT, PEER_EXITED and MISMATCH, which on CUDA come later, through moelink_manager_fault. Source: push
 *  dispatch with fixed slots, after the one-sided all-to-all that FlashInfer and TensorRT-LLM describe. */
MOELINK_API moelink_status moelink_dispatch(moelink_manager *manager, const moelink_dispatch_args *args, moelink_stream stream,
                                            moelink_dispatched *out);

/** The receiving half of a dispatch with MOELINK_DISPATCH_F_SEND_ONLY, with all that was said there: after it, in stream order, everything is there that the dispatch
 *  described. Collective; blocking and capturable as the kind's dispatch. Errors: INVALID_STATE when no such dispatch waits on the slot; as dispatch. */
MOELINK_API moelink_status moelink_dispatch_receive(moelink_manager *manager, int32_t slot, moelink_stream stream);

/** Exact counts of the slot's last dispatch, on the host: waits until they are there, without waiting for a stream. In RANK_MAJOR only
 *  where the config has other layouts or MOELINK_MANAGER_F_COUNTS. Also of a dispatch that brought too many rows.
 *  out_rank_rows [ranks]: rows from each source; out_expert_rows [local_experts]: rows of each local expert in the EXPERT layouts, else
 *  not written; either may be NULL; *out_rows: rows in use of the layout, the last expert's end in EXPERT_MAJOR, all experts' rows together
 *  in EXPERT_PADDED. Local, host-blocking, not capturable. Not for dispatches that a graph replays. Errors: INVALID_ARGUMENT,
 *  INVALID_STATE (also when a fault keeps them from coming), TIMEOUT after timeout_ns (0: the config's). */
MOELINK_API moelink_status moelink_dispatch_counts(moelink_manager *manager, int32_t slot, uint64_t timeout_ns, int64_t *out_rank_rows,
                                                   int64_t *out_expert_rows, int64_t *out_rows);

/** Adds for each token of the slot's last dispatch the rows of its distinct ranks: fp32 accumulation in rank order, rounded once.
 *  Input rows travel in their own dtype. Collective; blocking and capturable as the kind's dispatch. DISPATCHED -> READY.
 *  Errors: as moelink_dispatch. */
MOELINK_API moelink_status moelink_combine(moelink_manager *manager, const moelink_combine_args *args, moelink_stream stream);

/** The receiving half of a combine with MOELINK_COMBINE_F_SEND_ONLY: adds the rows into the output that was named there. DISPATCHED ->
 *  READY. Collective; blocking and capturable as the kind's combine. Errors: INVALID_STATE when no such combine waits on the slot; as combine. */
MOELINK_API moelink_status moelink_combine_receive(moelink_manager *manager, int32_t slot, moelink_stream stream);

#ifdef __cplusplus
}
#endif
#endif
