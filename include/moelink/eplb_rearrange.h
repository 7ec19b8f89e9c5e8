/** @file eplb_rearrange.h
 *  Moves the weights of whole models from one map of experts to another, in place; docs/eplb_rearrange.md has the whole. */
#ifndef MOELINK_EPLB_REARRANGE_H
#define MOELINK_EPLB_REARRANGE_H

#include <moelink/eplb_comm.h>
#include <moelink/eplb_transfer.h>

#ifdef __cplusplus
extern "C" {
#endif

enum moelink_eplb_rearrange_flags {
    /** As MOELINK_EPLB_TRANSFER_F_SKIP_LOST. */
    MOELINK_EPLB_REARRANGE_F_SKIP_LOST = 1,
    /** Everything is checked, planned and counted as if it were moved, and nothing is: no row changes, nobody is called back. Where
     *  the communicator needs a reservation (moelink_eplb_comm_needs_reservation), the first batch of experts is received into staging,
     *  so that its buffers are there when memory is measured. */
    MOELINK_EPLB_REARRANGE_F_PROFILE = 2,
    /** Each round of transfers is exchanged by itself, so no rank sends two experts, or receives two, at a time, at the price of an
     *  agreement of all ranks a round. Without it a batch, up to K rounds, is exchanged at once. */
    MOELINK_EPLB_REARRANGE_F_ROUNDS = 4
};

/** Whether a batch's transfers begin before the batch before it has ended, so that the link is in use while ranks agree and fill their
 *  slots. A batch is then half as large (MOELINK_EPLB_TRANSFER_F_OVERLAP). */
enum moelink_eplb_overlap {
    MOELINK_EPLB_OVERLAP_AUTO = 0,  /**< where K experts of the largest layer have 32 MiB or more, and it is possible */
    MOELINK_EPLB_OVERLAP_NEVER = 1,
    MOELINK_EPLB_OVERLAP_ALWAYS = 2 /**< wherever it is possible: not with K = 1, nor ROUNDS, nor the NCCL kinds, whose ranks act together */
};

/** What is to be moved; the same on every rank but for `committed` and `user`. Start from MOELINK_EPLB_REARRANGE_PARAMS_INIT. */
typedef struct moelink_eplb_rearrange_params {
    uint32_t struct_size;
    uint32_t flags;              /**< MOELINK_EPLB_REARRANGE_F_* */
    const int32_t *old_map;      /**< [layers, old_ranks * slots a rank] as in moelink_eplb_transfer_params */
    const int32_t *new_map;      /**< [layers, new_ranks * slots a rank] */
    int64_t old_count;           /**< elements of old_map; refused when that is not layers x old ranks x slots a rank */
    int64_t new_count;           /**< elements of new_map */
    const int32_t *rank_mapping; /**< [old_ranks] new rank of each old one, or -1; NULL: all stay */
    const int32_t *rank_gpu;     /**< [ranks] GPU of each rank; NULL: a GPU a rank */
    const int32_t *layers;       /**< [layers] the registered layer of each; NULL: 0, 1, 2, ... */
    int32_t old_ranks;           /**< 0: shape.ranks */
    int32_t new_ranks;           /**< 0: shape.ranks */
    int32_t staging;             /**< K, experts that a rank may stage: at most the communicator's staging_experts; 0: as many */
    uint32_t overlap;            /**< MOELINK_EPLB_OVERLAP_* */
    int64_t position;            /**< where to go on: 0, or what the result of the last call with these params said */
    uint64_t step_bytes;         /**< [bytes] most that a rank may receive, or send, in this call; 0: no cap */
    uint64_t step_ns;            /**< [ns] after that long on any rank no further batch begins, on all of them; 0: no cap */
    /** NULL, or called on this rank for each layer with slots of this rank that have changed since the call before, once the layer is
     *  done or when this call returns (after an error too): for what is derived from the weights. layer is the registered one; before and after
     *  [local_slots] are the experts of this rank's slots, -1 for empty ones; valid during the call. On CUDA the weights are then
     *  written in order of the communicator's stream. Must not call MoELink on this communicator. */
    void (*committed)(void *user, int32_t layer, int32_t local_slots, const int32_t *before, const int32_t *after);
    void *user;
} moelink_eplb_rearrange_params;
#define MOELINK_EPLB_REARRANGE_PARAMS_INIT \
    {(uint32_t)sizeof(moelink_eplb_rearrange_params), 0u, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0u, 0, 0u, 0u, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_rearrange_params_init(moelink_eplb_rearrange_params *params);

/** What was moved in a call. Start from MOELINK_EPLB_REARRANGE_RESULT_INIT. Counts are this rank's, but for those of all batches. */
typedef struct moelink_eplb_rearrange_result {
    uint32_t struct_size;
    uint32_t overlapped;       /**< batches of this call whose transfers began before the batch before them had ended */
    int32_t *map;              /**< in: NULL, or the caller's [layers, shape.slots], filled with the map in force, as the ranks act */
    int64_t position;          /**< batches done since the beginning */
    int64_t batches;           /**< of all; done when position is as much */
    int64_t received[4];       /**< experts by MOELINK_EPLB_HOP_*; HOP_RANK: copies within the rank */
    int64_t sent;              /**< experts, one for each receiver */
    int64_t lost;              /**< slots of this rank whose expert nobody holds; of all batches */
    uint64_t received_bytes[4]; /**< [bytes] received, by MOELINK_EPLB_HOP_* */
    uint64_t link_bytes[4];    /**< [bytes] received, by MOELINK_EPLB_LINK_*: how they came. All 0 when nothing was moved */
    uint64_t staging_bytes;    /**< [bytes] most that this rank had staged at once */
    uint64_t time_ns;          /**< [ns] of the call */
    int32_t staging;           /**< most experts that this rank had staged at once */
    int32_t open;              /**< experts that this rank holds in staging only: 0, unless the call has failed between the batches of
                                    a ring too long for the staging */
} moelink_eplb_rearrange_result;
#define MOELINK_EPLB_REARRANGE_RESULT_INIT                                                                                              \
    {(uint32_t)sizeof(moelink_eplb_rearrange_result), 0u, 0, 0, 0, {0, 0, 0, 0}, 0, 0, {0u, 0u, 0u, 0u}, {0u, 0u, 0u, 0u}, 0u, 0u, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_rearrange_result_init(moelink_eplb_rearrange_result *result);

/** Moves the layers of a model from old_map to new_map, one after the other, as moelink_eplb_transfer_create plans it. The layers are
 *  registered with the communicator, which is READY and stages (no DIRECT flag); shape.ranks is its group's size and each rank has
 *  shape.slots / shape.ranks slots. Received experts are staged in the communicator's own staging and nothing else is allocated on
 *  the device. Codes over the experts are checked when the communicator has the CHECKSUM flag.
 *
 *  With step_bytes or step_ns the call returns after a part, at a point where no expert is only in staging; position says where, and
 *  a call with the same params and that position goes on. Each slot then has its old or its new expert (map), every expert
 *  of the new map that is not lost is in some slot, and the model may run in between with that map.
 *
 *  A batch that fails on any rank is done on none: its slots are as before it, on all ranks. What earlier batches have done stays;
 *  `out` is filled then too (an exception to the rule of base.h), and if the communicator is still READY, a call with that
 *  position goes on, unless another round was staged meanwhile and `open` was not 0. When a rank is lost, a rank that had heard of
 *  the last batch's success before may be one batch ahead of the others.
 *
 *  Collective, host-blocking, not capturable; on CUDA work is done by the time it returns.
 *  Errors: INVALID_ARGUMENT (as moelink_eplb_transfer_create; sizes that do not fit the communicator's group or layers, counts that are
 *  not the maps', a position that is none), INVALID_STATE (not READY, DIRECT), MISMATCH when ranks pass different things: all
 *  ranks get these, and nothing has moved. Then as moelink_eplb_comm_execute. */
MOELINK_API moelink_status moelink_eplb_rearrange(moelink_eplb_comm *comm, const moelink_eplb_shape *shape,
                                                  const moelink_eplb_rearrange_params *params, moelink_eplb_rearrange_result *out);

#ifdef __cplusplus
}
#endif
#endif
