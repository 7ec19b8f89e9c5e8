/* Random geometries and rounds of a manager, and one rank's run of a round with every check: what came is compared with what the
 * other ranks must have sent, and combine with a sum in double. All of it follows from seeds, so ranks need not talk. */
#ifndef MOELINK_TESTS_MOE_CASE_H
#define MOELINK_TESTS_MOE_CASE_H

#include "device.h"
#include "values.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MOE_MOST_EXPERTS = 512 };

/* What a manager is made for. */
typedef struct moe_geometry {
    uint64_t seed;
    int ranks;
    int max_tokens[RANKS_MAX]; /* what each rank puts into its config */
    int capacity;              /* the largest of them */
    int experts;
    int top_k;
    int payload_count;
    uint64_t row_bytes[MOELINK_MAX_PAYLOADS];
    uint64_t combine_row_bytes;
    int slots;
    uint32_t flags;  /* MOELINK_MANAGER_F_* */
    int mapped;      /* who owns which expert is in expert_ranks; else ranks own them in order */
    int32_t expert_ranks[MOE_MOST_EXPERTS];
    uint32_t layouts; /* as in the config: those that rounds draw from besides RANK_MAJOR */
    int32_t alignment;
    int64_t layout_rows;
    int vectors; /* all rows are whole 16-byte vectors; most ranks' tensors then lie at multiples of 16 bytes too */
} moe_geometry;

/* How the ids of a round are drawn. */
enum moe_ids { MOE_IDS_DISTINCT, MOE_IDS_ANY, MOE_IDS_MASKED, MOE_IDS_WILD, MOE_IDS_ONE_RANK, MOE_IDS_STYLES };

/* One dispatch and combine: what all ranks must know of it. */
typedef struct moe_round {
    uint64_t seed;
    uint64_t rows_seed; /* of payloads' and experts' rows, besides seed */
    int slot;
    int tokens[RANKS_MAX];
    int ids_style;
    int payload_count;
    uint64_t row_bytes[MOELINK_MAX_PAYLOADS]; /* of what travels */
    int sent[MOELINK_MAX_PAYLOADS];
    int combine;      /* 0: the round is abandoned after its dispatch */
    uint64_t hidden;  /* values in a row of combine */
    int32_t dtype;
    int weights;      /* sent along */
    int mode;
    int32_t invalid_id;
    int scale;        /* 0: experts' outputs are random. Else payload 0 holds `hidden` values and experts multiply by it */
    int quantize;     /* 0, or the dtype of scales: payload 0 is quantized inside dispatch, payload 1 is its scales */
    int exact;        /* the sums must come out exactly: F32 values of few bits */
    int again;        /* after it, its routing is repeated for other rows */
    int cached;       /* it repeats the routing of the round before it */
    int plain;        /* no odd addresses, strides or own buffers */
    int32_t layout;
    int32_t alignment;
} moe_round;

/* values: bound on tokens of one rank times values of one row, which sets how long a case takes. */
void moe_geometry_random(uint64_t seed, int ranks, uint64_t values, moe_geometry *out);
void moe_round_random(const moe_geometry *geometry, uint64_t seed, moe_round *out);

/* A round with payload 0 of `hidden` values, `tokens` on each rank, scale 1, and nothing odd; a geometry that fits it. */
void moe_round_plain(uint64_t seed, int ranks, int tokens, uint64_t hidden, int32_t dtype, moe_round *out);
void moe_geometry_plain(int ranks, int tokens, int top_k, int experts, uint64_t hidden, int32_t dtype, moe_geometry *out);

/* Any map of experts to ranks, some to none. */
void moe_geometry_map(uint64_t seed, moe_geometry *out);
/* -1: of no rank. */
int moe_owner(const moe_geometry *geometry, int64_t id);
/* As token_ranks. */
int moe_token_ranks(const moe_geometry *geometry, const int64_t *ids, unsigned char *marks);

/* payload_row_bytes and expert_ranks point into the geometry. */
moelink_manager_config moe_config(const moe_geometry *geometry, int rank);

/* The values of a round, of any rank. */
void moe_ids(const moe_geometry *geometry, const moe_round *round, int rank, int64_t *ids);
int32_t moe_ids_dtype(const moe_round *round, int rank);
void moe_weights(const moe_geometry *geometry, const moe_round *round, int rank, float *weights);
void moe_payload_row(const moe_round *round, int rank, int token, int payload, void *row); /* as it travels */
void moe_input_row(const moe_round *round, int rank, int token, int payload, void *row);   /* as the caller has it */
uint64_t moe_input_bytes(const moe_round *round, int payload);
void moe_expert_row(const moe_round *round, int source, int token, int rank, void *row);

/* One rank's buffers of one round. */
typedef struct moe_flight {
    moelink_manager *manager;
    const moe_geometry *geometry;
    moe_round round;
    int kind;
    moelink_stream stream;
    int in_place;     /* combine reads payload 0 where it arrived */
    int refuses;      /* NCCL quantizes nothing: the dispatch is first refused, then the round goes without */
    int replayed;     /* by a graph, whose dispatches tell the host no counts */
    int halves;       /* dispatch and combine are two calls each */
    int aligned;      /* tensors and strides are multiples of 16 bytes */
    int64_t capacity; /* rows from one source */
    int tokens, bound;
    void *staging;
    int64_t output_rows; /* of each own output; 0: not said */
    guarded loads; /* load_counts: each entry begins with its index */
    guarded ids, weights, tokens_device, input[MOELINK_MAX_PAYLOADS], output[MOELINK_MAX_PAYLOADS], expert, result;
    moelink_rows payloads[MOELINK_MAX_PAYLOADS], outputs[MOELINK_MAX_PAYLOADS], received[MOELINK_MAX_PAYLOADS];
    int64_t rank_tokens[RANKS_MAX];
    moelink_dispatch_args args;
    moelink_dispatched dispatched;
    moelink_combine_args combine;
} moe_flight;

/* A row as it must lie on this rank. */
typedef struct moe_place {
    int64_t row;
    int source, token;
    int k;     /* -1 but in the EXPERT layouts */
    int local; /* the token has an expert here */
} moe_place;

/* All of them, in order, and what must be said of them. */
typedef struct moe_rows {
    int64_t count;
    moe_place *places;
    int32_t recv_counts[RANKS_MAX];
    int experts;            /* of this rank */
    int64_t *expert_counts; /* EXPERT layouts */
    int64_t *expert_first;
    int64_t end;            /* of the rows in use */
} moe_rows;

/* capacity: rows from one source in RANK_MAJOR; expert_rows: of each expert in EXPERT_PADDED. */
void moe_rows_find(rank_context *ctx, const moe_geometry *geometry, const moe_round *round, int gathers, int64_t capacity,
                   int64_t expert_rows, moe_rows *out);
void moe_rows_free(moe_rows *rows);

/* A dispatch into another layout than RANK_MAJOR: everything that it says and every row. Called by moe_flight_check_dispatch. */
void moe_layout_check(rank_context *ctx, moe_flight *flight);
/* Counts on the host, and load_counts, of any dispatch. */
void moe_counts_check(rank_context *ctx, moe_flight *flight);

/* Allocates and fills; local choices (own buffers, strides, odd addresses, counts on the device, ...) come from the seed. */
void moe_flight_prepare(rank_context *ctx, moe_flight *flight, moelink_manager *manager, int kind,
                        const moe_geometry *geometry, const moe_round *round, moelink_stream stream);
/* Fills the inputs of a plain round again, for other values and ids, in stream order, from pinned staging of the flight. */
void moe_flight_refill(rank_context *ctx, moe_flight *flight, uint64_t seed);
void moe_flight_dispatch(rank_context *ctx, moe_flight *flight, moelink_manager *manager);
/* Waits for the stream and compares everything that was received. */
void moe_flight_check_dispatch(rank_context *ctx, moe_flight *flight);
/* Does the experts' work on the host and uploads it. */
void moe_flight_experts(rank_context *ctx, moe_flight *flight);
void moe_flight_combine(rank_context *ctx, moe_flight *flight, moelink_manager *manager);
void moe_flight_check_combine(rank_context *ctx, moe_flight *flight);
void moe_flight_free(rank_context *ctx, moe_flight *flight);

/* To be called between allocations and the first dispatch. CUDA ranks that are threads share a driver: once NCCL has let GPUs
 * reach each other, to allocate may wait for a peer's running kernel, which waits for what this rank launches next. Processes
 * stay as far apart as they are. */
void moe_meet_threads(rank_context *ctx);

/* Fails the rank unless the manager is in this state and generation. */
void moe_expect_state(rank_context *ctx, const char *file, int line, const moelink_manager *manager, int32_t state, uint64_t generation);
#define MOE_EXPECT_STATE(ctx, manager, state, generation) moe_expect_state((ctx), __FILE__, __LINE__, (manager), (state), (generation))

/* All of it, and that the manager saw no fault. */
void moe_round_run(rank_context *ctx, moelink_manager *manager, int kind, const moe_geometry *geometry, const moe_round *round,
                   moelink_stream stream);

/* A few random rounds of the geometry, on the default or a given stream: the manager works. */
void moe_work(rank_context *ctx, moelink_manager *manager, int kind, const moe_geometry *geometry, uint64_t seed,
              moelink_stream stream);

#ifdef __cplusplus
}
#endif
#endif
