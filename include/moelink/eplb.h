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
#include <moelink/group.h>

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
    /** Plan from scratch although a previous map is given; ranks are then named, and slots kept, so that few copies move. Does not know
     *  max_pair_copies. */
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
    const double *rank_speed;   /**< [ranks] 1e-6 .. 1e6, read for active ranks; NULL: all 1 */
    const uint8_t *rank_active; /**< [ranks] 0: the rank is gone or going: its slots become -1 and nothing is copied from it.
                                     NULL: all active */
    const uint8_t *pinned;      /**< [layers, slots] not 0: the slot keeps what it has in previous (-1 too) unless its rank is not
                                     active; NULL: none. Needs previous */
    const double *distance;     /**< [ranks, ranks] cost of a copy from rank (row) to rank (column), 0 or more; NULL: 1 inside a
                                     node, node_distance between nodes */
    double node_distance;       /**< 1 or more; see distance. Default 4 */
    double target;              /**< 1 or more: a layer is good enough when its time is at most target x its bound. Default 1.01 */
    double move_cost;           /**< what moving must buy: a copy of cost 1 that lowers the layer's time by less than this
                                     fraction of its mean rank time is not made. Default 0.0001 */
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
    {(uint32_t)sizeof(moelink_eplb_plan_params), 0u, 0, 0, 0, 0, 0, 0, 4.0, 1.01, 1e-4, 0.0, 0u, 0u, 0, 0, 1, 0u}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_plan_params_init(moelink_eplb_plan_params *params);

enum moelink_eplb_result_flags {
    MOELINK_EPLB_RESULT_SKIPPED = 1,  /**< the gain was below min_gain: the map is the previous one, with repairs only */
    MOELINK_EPLB_RESULT_DEADLINE = 2, /**< the deadline cut the search short */
    MOELINK_EPLB_RESULT_REPAIRED = 4, /**< previous lacked experts, or used slots of inactive ranks, or had two copies of an expert
                                           on a rank; mended first, whatever the caps and min_gain say */
    MOELINK_EPLB_RESULT_ANEW = 8      /**< some layer was planned from scratch */
};

/** One layer of a plan. These 64 bytes never change, so arrays of them are passed as a pointer. */
typedef struct moelink_eplb_layer_result {
    double bound;          /**< certificate: no map of this shape with all experts and no two copies of one on a rank has a lower time; it
                                knows the number of slots, speeds and active ranks, not pins, groups or caps */
    double time_before;    /**< of the previous map; 0 without one, or where it lacks an expert that has load */
    double time_after;     /**< of the plan */
    double balance_before; /**< time with the load spread over all speeds evenly (with equal speeds: the mean rank time) over
                                time_before, both summed over steps: at most 1; 1 without load; 0 for lack of a map */
    double balance_after;
    double cost;           /**< distance-weighted copies */
    int32_t copies;        /**< slots that got an expert that their rank did not hold, from another rank */
    int32_t lost;          /**< slots that got an expert that no active rank holds: to be loaded from elsewhere */
    int32_t local;         /**< slots that got an expert that their rank held in another slot */
    uint32_t flags;        /**< MOELINK_EPLB_RESULT_* */
} moelink_eplb_layer_result;

/** What a plan brings and costs. Start from MOELINK_EPLB_PLAN_RESULT_INIT. Each figure as in moelink_eplb_layer_result: times, costs and
 *  counts are sums over layers, balances means. */
typedef struct moelink_eplb_plan_result {
    uint32_t struct_size;
    uint32_t flags;                    /**< MOELINK_EPLB_RESULT_*, of any layer */
    moelink_eplb_layer_result *layers; /**< in: the caller's array of shape.layers, filled; or NULL */
    int32_t *sources;                  /**< in: the caller's [layers, slots], filled with the slot of previous from which each slot's
                                            weights come: itself when unchanged, one of its own rank, or of the nearest rank that
                                            holds the expert, of equals the one that serves this rank least; -1 for empty slots, lost
                                            experts, and without a previous map. Or NULL */
    double bound;
    double time_before;                /**< 0 when any layer's is for lack of a map */
    double time_after;
    double gain;                       /**< predicted: 1 - time_after / time_before of the map returned; 0 when time_before is 0. When
                                            SKIPPED: of the plan that was not taken */
    double balance_before;
    double balance_after;
    double balance_bound;              /**< no map that bound speaks of has a higher balance_after */
    double cost;
    int64_t copies;
    int64_t lost;
    int64_t local;
    int64_t node_copies;               /**< those of copies that cross nodes */
    uint64_t bytes;                    /**< [bytes] copies x expert_bytes */
    uint64_t node_bytes;               /**< [bytes] node_copies x expert_bytes */
    int32_t changed_layers;            /**< layers whose map differs from the previous one; all without one */
    int32_t largest_pair;              /**< most copies from one rank to another in a layer, with these sources */
} moelink_eplb_plan_result;
#define MOELINK_EPLB_PLAN_RESULT_INIT \
    {(uint32_t)sizeof(moelink_eplb_plan_result), 0u, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0u, 0u, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_plan_result_init(moelink_eplb_plan_result *result);

/** Plans a map: no two copies of an expert on a rank, every expert at least once, nothing on inactive ranks; slots that cannot be
 *  filled within these rules are -1. With a previous map the planner starts from it and makes the moves that lower the time most for
 *  their cost: two ranks exchange experts; a slot takes over another expert's copy (a copy stolen, or an empty slot filled); and where
 *  that stays above target, a new plan with ranks relabelled to fit the previous one. Time never rises above the previous map's,
 *  except for repairs and from scratch. Planning again with the same loads moves nothing, caps and deadlines apart, and pins
 *  in hierarchical plans. Without a previous map: from scratch.
 *  out_phy2log [layers, slots] may be params->previous. out may be NULL.
 *  Errors: INVALID_ARGUMENT: also for loads as described above, and when the active ranks have fewer slots than there are experts. */
MOELINK_API moelink_status moelink_eplb_plan(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params,
                                             int32_t *out_phy2log, moelink_eplb_plan_result *out);

/** Rates any map by the planner's measures: as moelink_eplb_plan would report it, had it been the plan. Of params: load, previous,
 *  rank_speed, rank_active, distance, node_distance, expert_bytes, steps and max_pair_copies (sources keep to it where
 *  they can). Two copies of an expert on a rank are allowed here.
 *  Errors: INVALID_ARGUMENT: also when an expert that has load has no copy on an active rank. */
MOELINK_API moelink_status moelink_eplb_rate(const moelink_eplb_shape *shape, const moelink_eplb_plan_params *params,
                                             const int32_t *phy2log, moelink_eplb_plan_result *out);

/* ---- Maps on a device, and the choice of copies ----------------------------------------------------------------------- */

/** The map in use, all layers, with the tables that kernels need, in the memory of a group's device. Threads: one at a time; its
 *  streams are ordered by the caller, as if they were one. */
typedef struct moelink_eplb_map moelink_eplb_map;

/** [bytes] that a map of this shape takes on its device. Allocates nothing. Local. Threads: any. Errors: INVALID_ARGUMENT. */
MOELINK_API moelink_status moelink_eplb_map_query(const moelink_eplb_shape *shape, uint64_t *out_bytes);

/** Makes a map of phy2log [layers, slots] on the group's device; phy2log is host memory. Every expert needs a slot in every layer.
 *  Of the group only the device is used; shape.ranks need not be its size. *out is the caller's. Local, host-blocking; loads
 *  all kernels. Errors: INVALID_ARGUMENT (the text names layer, slot or expert), OUT_OF_MEMORY, NO_DRIVER. */
MOELINK_API moelink_status moelink_eplb_map_create(moelink_group *group, const moelink_eplb_shape *shape, const int32_t *phy2log,
                                                   moelink_eplb_map **out);

/** Replaces `layers` layers from first_layer on by phy2log [layers, slots]: host memory, not pinned, read during the call. Addresses
 *  stay, so captured graphs see the new map. Local, stream-ordered, not capturable. Errors: INVALID_ARGUMENT as for create, and
 *  INVALID_STATE while the stream is captured; the map is then as before. */
MOELINK_API moelink_status moelink_eplb_map_update(moelink_eplb_map *map, int32_t first_layer, int32_t layers, const int32_t *phy2log,
                                                   moelink_stream stream);

/** Drops the handle; load windows that use the map keep it alive. Waits for this rank's device. NULL is fine. Local. */
MOELINK_API void moelink_eplb_map_destroy(moelink_eplb_map *map);

/** How a token's copy of its expert is chosen. Experts with one copy have no choice. Every policy is a function of its arguments:
 *  host and CUDA give the same slots. */
enum moelink_eplb_policy {
    /** Token t takes copy ((seed + t) mod 2^32) mod copies, in the order of slots. Source: the replica choice that vLLM had first. */
    MOELINK_EPLB_ROUND_ROBIN = 1,
    /** A copy by a hash of seed, token and expert: even for any pattern of tokens. */
    MOELINK_EPLB_HASHED = 2,
    /** The call's tokens are counted and each expert's split over its copies by water-filling, so that the ranks' loads from this
     *  call, less the room that each has, come out about as even as the copies allow: what the linear program of deepseek-ai/LPLB
     *  solves, here by rounds over the experts. Sources that each balance their own tokens balance the sum. */
    MOELINK_EPLB_CAPACITY = 3
};

/** Start from MOELINK_EPLB_ROUTE_ARGS_INIT. "Device" is the map's device. */
typedef struct moelink_eplb_route_args {
    uint32_t struct_size;
    int32_t layer;                    /**< 0 .. layers-1 */
    int32_t policy;                   /**< MOELINK_EPLB_ROUND_ROBIN, _HASHED or _CAPACITY */
    int32_t num_tokens;               /**< 0 or more; num_tokens * top_k is below 2^31 */
    int32_t top_k;                    /**< 1 or more */
    int32_t ids_dtype;                /**< MOELINK_DTYPE_I32 or _I64, of both arrays */
    uint64_t seed;                    /**< where turns begin; the rank's number is a good one: ranks then begin at different copies */
    const int32_t *num_tokens_device; /**< NULL, or device memory read by the kernel instead of num_tokens, which is then the bound */
    const void *logical_ids;          /**< [num_tokens, top_k] device; those that are no expert become -1 */
    void *physical_ids;               /**< [num_tokens, top_k] device, written; may be logical_ids. Rows beyond the tokens stay */
    const int64_t *rank_room;         /**< [ranks] device: tokens that each rank can take, compared with each other (any sign;
                                           beyond 2^40 from 0 they count as that); NULL: all the same. Read by CAPACITY */
    int64_t *slot_counts;             /**< NULL, or [slots] device: the tokens of each slot are added, for a load window */
} moelink_eplb_route_args;
#define MOELINK_EPLB_ROUTE_ARGS_INIT \
    {(uint32_t)sizeof(moelink_eplb_route_args), 0, MOELINK_EPLB_HASHED, 0, 0, MOELINK_DTYPE_I32, 0u, 0, 0, 0, 0, 0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_route_args_init(moelink_eplb_route_args *args);

/** Turns logical expert ids into slots of the map, and counts them. Local, stream-ordered, graph-capturable, nothing is allocated;
 *  on the host device done on return. Errors: INVALID_ARGUMENT, DEVICE. */
MOELINK_API moelink_status moelink_eplb_route(moelink_eplb_map *map, const moelink_eplb_route_args *args, moelink_stream stream);

/* ---- The load window -------------------------------------------------------------------------------------------------- */

/** Loads of the last passes, for one or more models (a model and its draft heads), each with a ring of its own. Counts come by
 *  slot and become loads of experts and ranks as they are recorded, by the map that holds at that point of the stream: so a new
 *  map changes nothing that was counted. Counters have 64 bits and stop at the largest value. Threads: as a map; reduce is a
 *  call on the group too. */
typedef struct moelink_eplb_load moelink_eplb_load;

/** [bytes] of device memory that one model of this shape takes in a window. Allocates nothing. Local. Threads: any.
 *  Errors: INVALID_ARGUMENT. */
MOELINK_API moelink_status moelink_eplb_load_query(const moelink_eplb_shape *shape, int32_t window, uint64_t *out_bytes);

/** Makes a window of the last `window` passes (1 .. 65536), without a model. *out is the caller's and keeps the group alive. Local.
 *  Errors: INVALID_ARGUMENT. */
MOELINK_API moelink_status moelink_eplb_load_create(moelink_group *group, int32_t window, moelink_eplb_load **out);

/** Adds a model: *out_model is 0 for the first, then 1 and so on; ranks add theirs in one order. The map is kept alive. Local,
 *  host-blocking. Errors: INVALID_ARGUMENT for a map on another device, OUT_OF_MEMORY. */
MOELINK_API moelink_status moelink_eplb_load_add(moelink_eplb_load *load, moelink_eplb_map *map, int32_t *out_model);

enum moelink_eplb_load_flags {
    MOELINK_EPLB_LOAD_F_CLEAR = 1,      /**< the counts become 0 once they are read */
    MOELINK_EPLB_LOAD_F_HOST_COUNTS = 2 /**< the counts are host memory, on a CUDA group too; there not with CLEAR and not
                                             capturable. Pinned memory must stay until the stream has come past the call */
};

/** Records one pass of a model: counts [layers, slots], tokens that this rank sent to each slot, in device memory unless flags say
 *  otherwise; negative ones count as 0, those of empty slots are dropped. The oldest pass leaves a full window. A pass without
 *  tokens counts as a pass. Local, stream-ordered, graph-capturable, without host synchronisation. Errors: INVALID_ARGUMENT,
 *  UNSUPPORTED for unknown flags, INVALID_STATE for host counts while the stream is captured, DEVICE. */
MOELINK_API moelink_status moelink_eplb_load_record(moelink_eplb_load *load, int32_t model, int64_t *counts, uint32_t flags,
                                                    moelink_stream stream);

/** What is in a model's window. The arrays are the caller's host memory; NULL for what is not wanted. Start from
 *  MOELINK_EPLB_LOAD_REPORT_INIT. Balance is the mean over the largest load of a rank: 1 is even, and 1 without any load. */
typedef struct moelink_eplb_load_report {
    uint32_t struct_size;
    int32_t passes;        /**< of this rank in the window */
    uint64_t recorded;     /**< passes of this rank since the model was added or cleared */
    double *expert_load;   /**< in: [steps, layers, experts], as moelink_eplb_plan takes it; exact below 2^53 */
    double *rank_load;     /**< in: [layers, ranks] */
    double *layer_balance; /**< in: [layers] */
    double balance;        /**< mean of the layers' balances */
    double balance_summed; /**< sum of the layers' means over the sum of their largest: a layer weighs as much as its load. Source:
                                the balancedness that vLLM logs */
} moelink_eplb_load_report;
#define MOELINK_EPLB_LOAD_REPORT_INIT {(uint32_t)sizeof(moelink_eplb_load_report), 0, 0u, 0, 0, 0, 0.0, 0.0}
/** Local, never fails. Threads: any. */
MOELINK_API void moelink_eplb_load_report_init(moelink_eplb_load_report *report);

/** Adds up this rank's window. expert_load comes in `steps` parts (1 .. MOELINK_EPLB_MAX_STEPS) of the window's passes, the oldest
 *  first, as even as they divide; the other figures are over the whole window. Waits for the stream; allocates when steps is above
 *  1 and more than ever before. Local, host-blocking.
 *  Errors: INVALID_ARGUMENT, OUT_OF_MEMORY, INVALID_STATE while the stream is captured, DEVICE. */
MOELINK_API moelink_status moelink_eplb_load_read(moelink_eplb_load *load, int32_t model, int32_t steps, moelink_stream stream,
                                                  moelink_eplb_load_report *out);

/** As moelink_eplb_load_read, of all ranks of the window's group together: every rank gets the same loads, hence computes the same
 *  plan. Through the group's connections. Collective, host-blocking. Errors: as read, on all ranks alike; MISMATCH when models'
 *  shapes or steps differ (the text names both); TIMEOUT, PEER_EXITED. */
MOELINK_API moelink_status moelink_eplb_load_reduce(moelink_eplb_load *load, int32_t model, int32_t steps, moelink_stream stream,
                                                    moelink_eplb_load_report *out);

/** Empties a model's window. Local, stream-ordered, graph-capturable. Errors: INVALID_ARGUMENT, DEVICE. */
MOELINK_API moelink_status moelink_eplb_load_clear(moelink_eplb_load *load, int32_t model, moelink_stream stream);

/** Drops the handle. Waits for this rank's device. NULL is fine. Local. */
MOELINK_API void moelink_eplb_load_destroy(moelink_eplb_load *load);

/* ---- Files --------------------------------------------------------------------------------------------------------------
 * Plans and traces are text of lines, with a version in the first and a checksum in the last; docs/eplb.md has the grammar. A
 * file is written beside its name and then takes it, so nobody reads half of one. What is wrong in one is named PATH:LINE:COLUMN.
 * Errors of all: INVALID_ARGUMENT (a bad file too), UNSUPPORTED for a newer version, INVALID_STATE when the system refuses the
 * file (the text has its words). Local, host-blocking. Threads: any; one trace by one thread at a time. */

/** Writes a map phy2log [layers, slots] and its shape; shape.threads is left out. */
MOELINK_API moelink_status moelink_eplb_plan_save(const char *path, const moelink_eplb_shape *shape, const int32_t *phy2log);

/** Reads a plan's shape and, unless out_phy2log is NULL, its map [layers, slots] into `capacity` elements.
 *  Errors: also TOO_SMALL (the text names both numbers). */
MOELINK_API moelink_status moelink_eplb_plan_load(const char *path, moelink_eplb_shape *out_shape, int32_t *out_phy2log,
                                                  uint64_t capacity);

/** Loads [layers, experts] of a model step by step, each with a name, to plan from later and elsewhere. */
typedef struct moelink_eplb_trace moelink_eplb_trace;

/** Makes a trace without steps. *out is the caller's. */
MOELINK_API moelink_status moelink_eplb_trace_create(int32_t layers, int32_t experts, moelink_eplb_trace **out);

/** Reads a trace. Also reads lines of NAME,LOAD,LOAD,...: a step of a trace of one layer each. *out is the caller's. */
MOELINK_API moelink_status moelink_eplb_trace_load(const char *path, moelink_eplb_trace **out);

MOELINK_API moelink_status moelink_eplb_trace_save(const moelink_eplb_trace *trace, const char *path);

/** Adds a step; loads [layers, experts] are finite and 0 or more. The name is one line of 0 to 255 bytes. Both are copied. */
MOELINK_API moelink_status moelink_eplb_trace_append(moelink_eplb_trace *trace, const char *name, const double *load);

/** Any output may be NULL. */
MOELINK_API moelink_status moelink_eplb_trace_sizes(const moelink_eplb_trace *trace, int32_t *out_steps, int32_t *out_layers,
                                                    int32_t *out_experts);

/** A step's name and loads [layers, experts]; both are the trace's and valid until it is appended to or destroyed. Either output
 *  may be NULL. */
MOELINK_API moelink_status moelink_eplb_trace_step(const moelink_eplb_trace *trace, int32_t step, const char **out_name,
                                                   const double **out_load);

/** NULL is fine. */
MOELINK_API void moelink_eplb_trace_destroy(moelink_eplb_trace *trace);

#ifdef __cplusplus
}
#endif
#endif
