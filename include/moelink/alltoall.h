/** @file alltoall.h
 *  The two-sided manager in parts: a routing that is prepared once, and tensors that travel with it any number of times.
 *
 *  moelink_dispatch on MOELINK_MANAGER_TWO_SIDED is moelink_prepare and moelink_alltoallv in one. Either begins a round: the slot is
 *  DISPATCHED until moelink_combine or moelink_manager_abandon. All calls here are collective, on CUDA stream-ordered and
 *  graph-capturable, on the host device blocking; all ranks make the same calls on a slot in the same order. On other kinds of managers
 *  they are UNSUPPORTED. Source: prepare and alltoallv over FIFOs, after the two-sided all-to-all of TensorRT-LLM and FlashInfer. */
#ifndef MOELINK_ALLTOALL_H
#define MOELINK_ALLTOALL_H

#include <moelink/moe.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Start from MOELINK_PREPARE_ARGS_INIT. */
typedef struct moelink_prepare_args {
    uint32_t struct_size;
    int32_t slot;                     /**< 0 .. slots-1; ranks pass the same one */
    int32_t num_tokens;               /**< 0 .. max_tokens; may differ on every rank */
    int32_t topk_ids_dtype;           /**< MOELINK_DTYPE_I32 or _I64 */
    const int32_t *num_tokens_device; /**< as in moelink_dispatch_args */
    const void *topk_ids;             /**< [num_tokens, top_k] device; negative and too large ones are dropped */
    const float *topk_weights;        /**< [num_tokens, top_k] device f32, or NULL; NULL on all ranks with tokens or on none */
    int32_t layout;                   /**< MOELINK_LAYOUT_RANK_MAJOR or _PACKED: where rows are received and combine's input lies. The same
                                           on every rank */
    int32_t invalid_id;               /**< written into topk_ids of empty rows and for experts that live elsewhere */
    const int64_t *statistics;        /**< NULL, or [num_statistics] device: every rank gets every rank's */
    int32_t num_statistics;           /**< at most the config's num_experts; the same on every rank. 0: none */
    int32_t sm_budget;                /**< as in moelink_dispatch_args */
    uint32_t flags;                   /**< 0 */
    uint32_t reserved;                /**< 0 */
} moelink_prepare_args;
#define MOELINK_PREPARE_ARGS_INIT \
    {(uint32_t)sizeof(moelink_prepare_args), 0, 0, MOELINK_DTYPE_I32, 0, 0, 0, MOELINK_LAYOUT_RANK_MAJOR, -1, 0, 0, 0, 0u, 0u}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_prepare_args_init(moelink_prepare_args *args);

/** A prepared routing. Addresses and bounds are known on the host at once; the values are there in stream order, are not to be written,
 *  and stay valid until the slot's next prepare or dispatch, growth or cleanup. Start from MOELINK_PREPARED_INIT. */
typedef struct moelink_prepared {
    uint32_t struct_size;
    int32_t ranks;
    int64_t row_capacity;        /**< most rows received: ranks * slots_per_rank */
    int64_t slots_per_rank;
    int64_t send_capacity;       /**< most rows sent: max_tokens * max_distinct */
    int32_t max_distinct;        /**< most ranks of a token: min(ranks, top_k) */
    int32_t num_statistics;
    const int32_t *topk_ids;     /**< [row_capacity, top_k] device: of received rows, in the layout; ids as the caller gave them, invalid_id
                                      for experts that live elsewhere and in rows that hold none */
    const float *topk_weights;   /**< [row_capacity, top_k] device; NULL when args->topk_weights was and num_tokens was not 0. Rows that hold
                                      none are undefined */
    const int32_t *recv_counts;  /**< [ranks] device: rows from each source */
    const int32_t *recv_offsets; /**< [ranks + 1] device: their sums; in PACKED the first row of each source, and the end */
    const int32_t *send_counts;  /**< [ranks] device: rows to each destination, this rank included */
    const int32_t *send_offsets; /**< [ranks + 1] device: their sums */
    const int32_t *send_tokens;  /**< [send_capacity] device: the token of each row sent; rows of destination d from send_offsets[d] on, in
                                      token order */
    const int32_t *back_rows;    /**< [max_tokens, max_distinct] device: for each token its rows' places in send_tokens, in rank order; -1
                                      behind the last */
    const int64_t *statistics;   /**< [ranks, num_statistics] device; NULL without */
} moelink_prepared;
#define MOELINK_PREPARED_INIT {(uint32_t)sizeof(moelink_prepared), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_prepared_init(moelink_prepared *prepared);

/** Exchanges the routing of a round: READY -> DISPATCHED for the slot (not tracked while capturing).
 *  Errors: as moelink_dispatch; UNSUPPORTED for other kinds and layouts. */
MOELINK_API moelink_status moelink_prepare(moelink_manager *manager, const moelink_prepare_args *args, moelink_stream stream,
                                           moelink_prepared *out);

/** Sends the rows of `count` tensors, each [num_tokens, ...], with the slot's routing, and receives others' into `outputs`, each of
 *  row_capacity rows in the prepared layout. Rows may have any size, which the config does not bound; row_bytes is the same on every
 *  rank. A tensor with data NULL is not sent, unless this rank has no tokens and its row_bytes is above 0. Outputs: row_bytes 0 stands
 *  for the tensor's; data may be NULL where nothing is sent. count is 0 to MOELINK_MAX_PAYLOADS, the same on every rank. Errors:
 *  INVALID_ARGUMENT, INVALID_STATE (no routing), UNSUPPORTED; as moelink_dispatch. */
MOELINK_API moelink_status moelink_alltoallv(moelink_manager *manager, int32_t slot, const moelink_rows *tensors, int32_t count,
                                             const moelink_rows *outputs, moelink_stream stream);

/** As moelink_combine, but the routing stays: rows go back and are added, and the slot stays DISPATCHED. Errors: as moelink_combine. */
MOELINK_API moelink_status moelink_alltoallv_combine(moelink_manager *manager, const moelink_combine_args *args, moelink_stream stream);

#ifdef __cplusplus
}
#endif
#endif
