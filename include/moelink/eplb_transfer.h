/** @file eplb_transfer.h
 *  The transfer planner: from the map in use to a new one, in moves of whole experts that never destroy what is still needed.
 *
 *  Terms as in eplb.h. A *transfer* brings an expert of one layer from a slot of one rank into the staging memory of another; a
 *  *commit* copies it from there into its slot. Staging holds K experts a rank. A *round* is a set of transfers in which no rank
 *  sends two and no rank receives two. A *batch* is at most K rounds followed by the local moves of every rank: between two batches
 *  all ranks are done with the first. Moves of a batch read what the slots held before it.
 *
 *  What every plan keeps: a slot is written only once nobody needs from it what it held; a rank receives an expert of a layer at most
 *  once, and only when it had none, and copies it to its other slots itself; an expert comes from the nearest that has it (same GPU,
 *  same node, elsewhere), so it comes into a node once; ranks that have received an expert pass it on; a slot that becomes empty keeps
 *  its bytes. One staged expert a rank is enough for every change of map.
 *
 *  A plan is a plain function of its input over host memory: local, host-blocking, no group is needed; every rank computes the
 *  same. Threads: any; a finished plan may be read by several at once. */
#ifndef MOELINK_EPLB_TRANSFER_H
#define MOELINK_EPLB_TRANSFER_H

#include <moelink/eplb.h>

#ifdef __cplusplus
extern "C" {
#endif

/** What lies between two ranks. */
enum moelink_eplb_hop {
    MOELINK_EPLB_HOP_RANK = 0, /**< nothing: one rank */
    MOELINK_EPLB_HOP_GPU = 1,  /**< two ranks on one GPU */
    MOELINK_EPLB_HOP_NODE = 2, /**< two GPUs of a node */
    MOELINK_EPLB_HOP_NET = 3,  /**< two nodes */
    MOELINK_EPLB_HOPS = 4      /**< their number */
};

enum moelink_eplb_transfer_flags {
    /** An expert of the new map that nobody holds is no error: its slots keep what they have, count as lost, and are -1 in the final
     *  map. They are the caller's to load from elsewhere. */
    MOELINK_EPLB_TRANSFER_F_SKIP_LOST = 1,
    /** For transfers of a batch that begin before the batch before it has ended: a batch receives into half of the staging, rounded
     *  down, and where it can into none of the places that the batch before it uses, so plans are between those for K / 2 and for K. The
     *  transfers of a batch may then begin when the last batch but one is done, unless one of them takes from a slot that the last one
     *  fills, or goes to a place that the last one uses. With K = 1 it changes nothing. */
    MOELINK_EPLB_TRANSFER_F_OVERLAP = 2
};

/** What is to be planned. Start from MOELINK_EPLB_TRANSFER_PARAMS_INIT.
 *
 *  The ranks that act are shape.ranks, with shape.slots slots in all; nodes of shape are theirs. Without rank_mapping both maps are
 *  theirs. With it the maps may have other numbers of ranks, with as many slots each:
 *  - new_ranks is shape.ranks (scaling up, replacing, going on without the dead): ranks act under their new numbers. Old ranks
 *    mapped to -1 are gone: nothing is copied from them. New ranks that no old one is mapped to begin with empty slots.
 *  - new_ranks is less, and old_ranks is shape.ranks (scaling down): ranks act under their old numbers, and those mapped to -1 give
 *    what they have and end with empty slots.
 *  Slots, ranks and maps in every result are numbered as the ranks act. */
typedef struct moelink_eplb_transfer_params {
    uint32_t struct_size;
    uint32_t flags;               /**< MOELINK_EPLB_TRANSFER_F_* */
    const int32_t *old_map;       /**< [layers, old_ranks * slots a rank] the map in use; -1: empty */
    const int32_t *new_map;       /**< [layers, new_ranks * slots a rank]; -1: empty */
    const int32_t *rank_mapping;  /**< [old_ranks] new rank of each old one, or -1; NULL: all stay */
    const int32_t *rank_gpu;      /**< [ranks] any number for each GPU: ranks with the same one, all in one node, share it; NULL: a GPU
                                       a rank */
    const uint64_t *expert_bytes; /**< [layers] [bytes] of one expert in each layer; NULL: bytes and times are not counted */
    int32_t old_ranks;            /**< 0: shape.ranks */
    int32_t new_ranks;            /**< 0: shape.ranks */
    int32_t staging;              /**< K, experts that a rank can stage: 1 .. MOELINK_EPLB_MAX_SLOTS. Default 4 */
    uint32_t reserved;            /**< 0 */
    uint64_t step_bytes;          /**< [bytes] most that a rank may receive, or send, in one step; 0: no cap. Needs expert_bytes */
    uint64_t step_ns;             /**< [ns] most that a step may take, by the rates below; 0: no cap. Needs expert_bytes and rates */
    uint64_t round_ns;            /**< [ns] that a round takes beside its bytes */
    double gpu_rate;              /**< [bytes/s] of a transfer between ranks of a GPU; 0: it takes no time */
    double node_rate;             /**< [bytes/s] between GPUs of a node */
    double net_rate;              /**< [bytes/s] between nodes */
} moelink_eplb_transfer_params;
#define MOELINK_EPLB_TRANSFER_PARAMS_INIT \
    {(uint32_t)sizeof(moelink_eplb_transfer_params), 0u, 0, 0, 0, 0, 0, 0, 0, 4, 0u, 0u, 0u, 0u, 0.0, 0.0, 0.0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_transfer_params_init(moelink_eplb_transfer_params *params);

enum moelink_eplb_move_kind {
    MOELINK_EPLB_MOVE_TRANSFER = 1, /**< from a slot of one rank to a staging place of another */
    MOELINK_EPLB_MOVE_COPY = 2,     /**< from a slot to another of the same rank */
    MOELINK_EPLB_MOVE_SAVE = 3,     /**< from a slot to a staging place of the same rank, to turn a ring of slots */
    MOELINK_EPLB_MOVE_COMMIT = 4    /**< from a staging place to a slot of the same rank */
};

/** One move of one expert. These 32 bytes never change, so arrays of them are passed as a pointer. Staging place b of rank r is
 *  r * staging + b. */
typedef struct moelink_eplb_move {
    int32_t layer;
    int32_t step;   /**< 0 .. steps-1 */
    int32_t batch;  /**< 0 .. batches-1, counted through all layers */
    int32_t round;  /**< 0 .. rounds-1, counted through all layers; -1 for local moves */
    int32_t kind;   /**< MOELINK_EPLB_MOVE_* */
    int32_t expert;
    int32_t from;   /**< a slot, or a staging place for COMMIT */
    int32_t to;     /**< a slot, or a staging place for TRANSFER and SAVE */
} moelink_eplb_move;

/** Start from MOELINK_EPLB_TRANSFER_SUMMARY_INIT. Arrays are indexed by MOELINK_EPLB_HOP_*; HOP_RANK counts COPY moves. */
typedef struct moelink_eplb_transfer_summary {
    uint32_t struct_size;
    int32_t steps;
    int32_t batches;
    int32_t rounds;
    int32_t least_rounds;   /**< sum over layers of the most that one rank receives in each: no plan, layer after layer, has fewer */
    int32_t changed_layers; /**< layers whose maps differ */
    int32_t staging;        /**< staging places that some rank needs: at most params.staging */
    int32_t open_batches;   /**< batches at whose end experts of rings too long for the staging are only there; more staging has less */
    int32_t early_batches;  /**< with OVERLAP, those whose transfers may begin before the last batch is done */
    int32_t reserved;
    int64_t move_count;
    int64_t lost;           /**< slots whose expert nobody holds */
    int64_t copies[4];
    uint64_t bytes[4];      /**< [bytes] copies x expert_bytes */
    uint64_t time_ns;       /**< [ns] of all rounds, each as long as its slowest transfer, by the rates; 0 without expert_bytes */
} moelink_eplb_transfer_summary;
#define MOELINK_EPLB_TRANSFER_SUMMARY_INIT \
    {(uint32_t)sizeof(moelink_eplb_transfer_summary), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0, 0, 0, 0}, {0u, 0u, 0u, 0u}, 0u}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_transfer_summary_init(moelink_eplb_transfer_summary *summary);

/** A finished plan. */
typedef struct moelink_eplb_transfer moelink_eplb_transfer;

/** Plans. *out is the caller's; params are not kept. Rounds of a batch are an edge colouring of its transfers, with as many colours as
 *  the busiest rank has sends or receives (Koenig). A step ends after a batch at whose end nothing is staged; it goes over its caps
 *  only where no such end comes earlier, which happens in rings of slots too long for the staging.
 *  Errors: INVALID_ARGUMENT: also when a map's sizes do not fit, and when an expert of the new map is in no slot of the old one
 *  (the text names layer and expert); OUT_OF_MEMORY. */
MOELINK_API moelink_status moelink_eplb_transfer_create(const moelink_eplb_shape *shape, const moelink_eplb_transfer_params *params,
                                                        moelink_eplb_transfer **out);

/** Figures of the plan. Local. Errors: INVALID_ARGUMENT. */
MOELINK_API moelink_status moelink_eplb_transfer_summarize(const moelink_eplb_transfer *transfer, moelink_eplb_transfer_summary *out);

/** The moves, summary.move_count of them, in order of batches; in each batch first its transfers by round, then the local moves,
 *  of each rank in the order in which they must be made. The array is the plan's and lives as long. Local. Errors: INVALID_ARGUMENT. */
MOELINK_API moelink_status moelink_eplb_transfer_moves(const moelink_eplb_transfer *transfer, const moelink_eplb_move **out_moves);

/** The map in force after the first `steps` steps (0 .. summary.steps): out_phy2log [layers, shape.slots], every slot old or new, and
 *  every expert of the new map that is not lost in some slot. Slots that become empty do so with the last step of their layer.
 *  Local. Errors: INVALID_ARGUMENT. */
MOELINK_API moelink_status moelink_eplb_transfer_map(const moelink_eplb_transfer *transfer, int32_t steps, int32_t *out_phy2log);

/** NULL is fine. Local. */
MOELINK_API void moelink_eplb_transfer_destroy(moelink_eplb_transfer *transfer);

#ifdef __cplusplus
}
#endif
#endif
