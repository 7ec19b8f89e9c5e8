/** @file eplb.h
 *  Expert-parallel load balancing: which physical slot holds a copy of which logical expert.
 *
 *  Terms: a layer has E logical experts and P physical slots; rank r of R owns slots r*P/R .. (r+1)*P/R-1, and P is a multiple
 *  of R. phy2log [layers, P] names the logical expert of each slot, -1 for an empty one. counts [layers, E] are the copies of
 *  each expert, log2phy [layers, E, width] their slots, -1 behind the last. The copies of an expert share its load equally.
 *  Ranks form nodes of R/nodes consecutive ranks, experts form groups of E/groups consecutive experts.
 *
 *  The planner's calls are plain functions over host memory: local, host-blocking, no state stays, no group is needed. Given the
 *  same input, every rank computes the same plan (but see deadline_ns). Arrays are the caller's, dense, and read or written only
 *  during the call; an output may not overlap an input or another output unless its text says so. Threads: any. */
#ifndef MOELINK_EPLB_H
#define MOELINK_EPLB_H

#include <moelink/base.h>

#ifdef __cplusplus
extern "C" {
#endif

enum moelink_eplb_limits {
    MOELINK_EPLB_MAX_RANKS = 1024,
    MOELINK_EPLB_MAX_LAYERS = 4096,
    MOELINK_EPLB_MAX_EXPERTS = 65536, /**< logical, a layer */
    MOELINK_EPLB_MAX_SLOTS = 131072,  /**< physical, a layer */
    MOELINK_EPLB_MAX_STEPS = 1024
};

/** Sizes that every call on maps shares. Start from MOELINK_EPLB_SHAPE_INIT. */
typedef struct moelink_eplb_shape {
    uint32_t struct_size;
    int32_t layers;  /**< 1 .. MOELINK_EPLB_MAX_LAYERS */
    int32_t experts; /**< logical experts a layer: 1 .. MOELINK_EPLB_MAX_EXPERTS */
    int32_t slots;   /**< physical slots a layer, over all ranks: a multiple of ranks, at most MOELINK_EPLB_MAX_SLOTS */
    int32_t ranks;   /**< 1 .. MOELINK_EPLB_MAX_RANKS */
    int32_t nodes;   /**< ranks is a multiple of it; 1 = no such level */
    int32_t groups;  /**< experts is a multiple of it. When nodes divides groups, plans are hierarchical: a group's experts have all
                          their copies in one node, groups/nodes groups in each. Else plans are global */
    int32_t threads; /**< threads to work with, this one included; 0 = the CPUs this process may use. At most one a layer is used;
                          results do not depend on it */
} moelink_eplb_shape;
#define MOELINK_EPLB_SHAPE_INIT {(uint32_t)sizeof(moelink_eplb_shape), 1, 0, 0, 1, 1, 1, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_shape_init(moelink_eplb_shape *shape);

/* ---- The published algorithm, whole and in parts ---------------------------------------------------------------------
 * Source: deepseek-ai/EPLB. Equal to it, map for map, for loads that are distinct and exact in fp32. Loads are rounded to fp32
 * and added in fp32 in descending order, as there. Its sort leaves the order of equal loads open; the tie rule here: the lower
 * index first, for items and for packs alike. It may put two copies of an expert on one rank, and give an expert more copies than
 * there are ranks; moelink_eplb_plan does neither.
 *
 * Loads are double: exact for token counts below 2^53, and fit for averages. All of them: INVALID_ARGUMENT for a load that is NaN,
 * infinite or negative, and for a layer whose loads add up to more than fp32 holds (3.4e38); the text names layer, expert and value. */

/** Gives slots - experts times one more copy to the expert with the largest load per copy.
 *  load [layers, experts]; out_phy2log [layers, slots]: 0 .. experts-1, then the added copies in order; out_replica [layers, slots]:
 *  which of its expert's copies a slot is, from 0; out_counts [layers, experts]. out_replica and out_counts may be NULL.
 *  Errors: INVALID_ARGUMENT (also when slots < experts). */
MOELINK_API moelink_status moelink_eplb_replicate(const double *load, int32_t layers, int32_t experts, int32_t slots,
                                                  int32_t *out_phy2log, int32_t *out_replica, int32_t *out_counts);

/** Puts items into packs of items/packs each: the heaviest first, into the lightest pack that has room. When items == packs,
 *  item i goes to pack i. load [layers, items]; out_pack [layers, items]: an item's pack; out_place [layers, items]: its place in
 *  the pack. out_place may be NULL. Errors: INVALID_ARGUMENT (also when items is no multiple of packs). */
MOELINK_API moelink_status moelink_eplb_pack(const double *load, int32_t layers, int32_t items, int32_t packs, int32_t *out_pack,
                                             int32_t *out_place);

/** The whole algorithm: groups packed to nodes, experts replicated in each node, copies packed to the node's ranks; global when
 *  nodes does not divide groups. load [layers, experts]; out_phy2log [layers, slots]; out_log2phy [layers, experts, width] in
 *  the order in which copies were added, or NULL; out_counts [layers, experts] or NULL. A width of slots - experts + 1 always does.
 *  Errors: INVALID_ARGUMENT; TOO_SMALL when an expert has more than width copies. */
MOELINK_API moelink_status moelink_eplb_rebalance(const moelink_eplb_shape *shape, const double *load, int32_t *out_phy2log,
                                                  int32_t *out_log2phy, int32_t width, int32_t *out_counts);

/** The other two maps of any phy2log [layers, slots] (-1: empty slot): out_log2phy [layers, experts, width] with slots ascending, or
 *  NULL, and out_counts [layers, experts], or NULL. Experts without a copy get count 0.
 *  Errors: INVALID_ARGUMENT for an id that is no expert; TOO_SMALL when an expert has more than width copies (the text says how many). */
MOELINK_API moelink_status moelink_eplb_invert(const moelink_eplb_shape *shape, const int32_t *phy2log, int32_t *out_log2phy,
                                               int32_t width, int32_t *out_counts);

/** Reorders a map inside each rank so that an expert that was there keeps its slot; the others fill what is left, in order.
 *  previous, phy2log and out_phy2log are [layers, slots]; out_phy2log may be phy2log. -1 is kept in place like an expert.
 *  Source: preserve_intragpu_slots of vLLM. Errors: INVALID_ARGUMENT for an id that is no expert. */
MOELINK_API moelink_status moelink_eplb_preserve(const moelink_eplb_shape *shape, const int32_t *previous, const int32_t *phy2log,
                                                 int32_t *out_phy2log);

/* ---- The planner ------------------------------------------------------------------------------------------------------ */

enum moelink_eplb_plan_flags {
    /** Plan from scratch although a previous map is given; ranks are then named, and slots kept, so that fewest copies move. */
    MOELINK_EPLB_PLAN_F_FROM_SCRATCH = 1
};

/** What a plan is made from. Start from MOELINK_EPLB_PLAN_PARAMS_INIT.
 *
 *  A rank's time in a step is the load of its slots over its speed; a layer's time is the slowest rank's, summed over steps. */
typedef struct moelink_eplb_plan_params {
    uint32_t struct_size;
    uint32_t flags;             /**< MOELINK_EPLB_PLAN_F_* */
    const double *load;         /**< [steps, layers, experts] tokens, or any unit; 0 or more */
    const int32_t *previous;    /**< [layers, slots] the map in use, -1 for empty slots; NULL: none, plan from scratch */
    const double *rank_speed;   /**< [ranks] above 0; NULL: all 1 */
    const uint8_t *rank_active; /**< [ranks] 0: the rank is gone or going: its slots become -1 and nothing is copied from it.
                                     NULL: all active */
    const uint8_t *pinned;      /**< [layers, slots] not 0: the slot keeps what it has in previous (-1 too) unless its rank is not
                                     active; NULL: none. Needs previous */
    const double *distance;     /**< [ranks, ranks] cost of a copy from rank (row) to rank (column), 0 or more; NULL: 1 inside a
                                     node, node_distance between nodes */
    double node_distance;       /**< 1 or more; see distance. Default 4 */
    double target;              /**< 1 or more: a layer is good enough when its time is at most target x its bound. Default 1.01 */
    double move_cost;           /**< what moving must buy: a copy of cost 1 that lowers the layer's time by less than this
                                     fraction of its mean rank time is not made. Default 0 */
    double min_gain;            /**< the map stays as it is when the plan would lower the time, summed over layers, by less than
                                     this fraction. Default 0 */
    uint64_t expert_bytes;      /**< [bytes] of one expert's weights in one layer; 0: bytes are not counted */
    uint64_t max_bytes;         /**< [bytes] most that may cross ranks, over all layers; 0: no cap. Needs expert_bytes */
    int64_t max_copies;         /**< most copies that may cross ranks, over all layers; 0: no cap */
    int32_t max_pair_copies;    /**< most copies from one rank to another, a layer; 0: no cap */
    int32_t steps;              /**< 1 .. MOELINK_EPLB_MAX_STEPS; default 1 */
    uint64_t deadline_ns;       /**< [ns] from the start of the call: after that, layers keep what they have reached, and the result
                                     says so. A plan cut short depends on the machine: compute it on one rank and broadcast. 0: none */
} moelink_eplb_plan_params;
#define MOELINK_EPLB_PLAN_PARAMS_INIT \
    {(uint32_t)sizeof(moelink_eplb_plan_params), 0u, 0, 0, 0, 0, 0, 0, 4.0, 1.01, 0.0, 0.0, 0u, 0u, 0, 0, 1, 0u}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_plan_params_init(moelink_eplb_plan_params *params);

enum moelink_eplb_result_flags {
    MOELINK_EPLB_RESULT_SKIPPED = 1,  /**< the gain was below min_gain: the map is the previous one */
    MOELINK_EPLB_RESULT_DEADLINE = 2, /**< the deadline cut the search short */
    MOELINK_EPLB_RESULT_REPAIRED = 4, /**< previous lacked experts, or used slots of inactive ranks, or had two copies of an expert
                                           on a rank; mended first, whatever the caps and min_gain say */
    MOELINK_EPLB_RESULT_ANEW = 8      /**< some layer was planned from scratch */
};

/** One layer of a plan. These 64 bytes never change, so arrays of them are passed as a pointer. */
typedef struct moelink_eplb_layer_result {
    double bound;          /**< certificate: no map of this shape with no two copies of an expert on a rank has a lower time; it knows the
                                number of slots, speeds and active ranks, not pins, groups or caps */
    double time_before;    /**< of the previous map; 0 without one, or where it lacks an expert that has load */
    double time_after;     /**< of the plan */
    double balance_before; /**< mean rank time over time_before, both summed over steps: 1 is even; 0 where time_before is 0 for lack
                                of a map, 1 when there is no load */
    double balance_after;
    double cost;           /**< distance-weighted copies */
    int32_t copies;        /**< slots that got an expert that their rank did not hold, from another rank */
    int32_t lost;          /**< slots that got an expert that no active rank holds: to be loaded from elsewhere */
    int32_t local;         /**< slots that got an expert that their rank held in another slot */
    uint32_t flags;        /**< MOELINK_EPLB_RESULT_* */
} moelink_eplb_layer_result;

/** What a plan brings and costs. Start from MOELINK_EPLB_PLAN_RESULT_INIT. Times, costs and counts are sums, balances means over layers;
 *  each as in moelink_eplb_layer_result. */
typedef struct moelink_eplb_plan_result {
    uint32_t struct_size;
    uint32_t flags;                    /**< MOELINK_EPLB_RESULT_*, of any layer */
    moelink_eplb_layer_result *layers; /**< in: the caller's array of shape.layers, filled; or NULL */
    double bound;
    double time_before;                /**< 0 when any layer's is for lack of a map */
    double time_after;
    double gain;                       /**< predicted: 1 - time_after / time_before of the map returned; 0 when time_before is 0. When
                                            SKIPPED: of the plan that was not taken */
    double balance_before;
    double balance_after;
    double balance_bound;              /**< no map has a higher balance_after */
    double cost;
    int64_t copies;
    int64_t lost;
    int64_t local;
    int64_t node_copies;               /**< those of copies that cross nodes */
    uint64_t bytes;                    /**< [bytes] copies x expert_bytes */
    uint64_t node_bytes;               /**< [bytes] node_copies x expert_bytes */
    int32_t changed_layers;            /**< layers whose map differs from the previous one; all without one */
    int32_t largest_pair;              /**< most copies from one rank to another in a layer, with the sources that the planner chose: the
                                            nearest rank that holds the expert, the one least used by then among equals */
} moelink_eplb_plan_result;
#define MOELINK_EPLB_PLAN_RESULT_INIT \
    {(uint32_t)sizeof(moelink_eplb_plan_result), 0u, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0u, 0u, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_plan_result_init(moelink_eplb_plan_result *result);

/** Plans a map: no two copies of an expert on a rank, every expert at least once, nothing on inactive ranks; slots that cannot be
 *  filled within these rules are -1. With a previous map the planner starts from it and makes the moves that lower the time most for
 *  their cost: two ranks exchange experts; a slot takes over another expert's copy (a copy stolen, or an empty slot filled); and where
 *  that stays above target, a new plan with ranks relabelled to fit the previous one. Time never rises above the previous map's,
 *  except for repairs. Planning again with the same loads moves nothing. Without a previous map: from scratch.
 *  out_phy2log [layers, slots] may be params->previous. out may be NULL.
 *  Errors: INVALID_ARGUMENT: also for loads as described above, and when the active ranks have fewer slots than there are experts. */
MOELINK_API moelink_status moelink_eplb_plan(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params,
                                             int32_t *out_phy2log, moelink_eplb_plan_result *out);

/** Rates any map by the planner's measures: as moelink_eplb_plan would report it, had it been the plan. Of params: load, previous,
 *  rank_speed, rank_active, distance, node_distance, expert_bytes and steps. Two copies of an expert on a rank are allowed here.
 *  Errors: INVALID_ARGUMENT: also when an expert that has load has no copy on an active rank. */
MOELINK_API moelink_status moelink_eplb_rate(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params,
                                             const int32_t *phy2log, moelink_eplb_plan_result *out);

#ifdef __cplusplus
}
#endif
#endif
