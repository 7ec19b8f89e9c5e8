/* A layer of experts' weights on every rank, filled so that each byte follows from expert, layer and place, and rounds of an
 * exchange between two maps of its slots. All of it follows from the maps, so ranks need not talk. */
#ifndef MOELINK_TESTS_EXCHANGE_H
#define MOELINK_TESTS_EXCHANGE_H

#include "device.h"
#include "values.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EXCHANGE_TENSORS = 4, EXCHANGE_MAX_SLOTS = 512, EXCHANGE_PADDING = 0xEE };

/* Where a rank's weights lie. */
enum exchange_place {
    EXCHANGE_PLAIN,   /* memory of the device's own allocator */
    EXCHANGE_MEMORY,  /* symmetric memory over ctx->group: collective */
    EXCHANGE_PLACES
};

/* One layer: a row-major matrix, a column-major one with padding, a tensor of 7 bytes an expert, and one whose slots lie between
 * each other's rows. */
typedef struct exchange_layer {
    int number;
    int slots; /* of this rank */
    uint64_t scale; /* rows of the first tensor */
    unsigned char *memory;
    uint64_t bytes;
    moelink_memory *symmetric;
    moelink_eplb_tensor tensors[EXCHANGE_TENSORS];
    unsigned char *host; /* [bytes] for checks */
} exchange_layer;

exchange_layer exchange_make(rank_context *ctx, int number, int slots, uint64_t scale, int place);
void exchange_free(rank_context *ctx, exchange_layer *layer);
/* experts [slots] of this rank; -1: bytes that are no expert's. Padding too. */
void exchange_fill(rank_context *ctx, exchange_layer *layer, const int32_t *experts);
/* Fails the rank unless every slot holds its expert's bytes and nothing was written around them. */
void exchange_check(rank_context *ctx, exchange_layer *layer, const int32_t *experts);
/* The same for survivors of a lost round: each slot holds one or the other, whole; -2 - index of the first slot that holds neither,
 * else how many hold the second where the two differ. */
int exchange_which(rank_context *ctx, exchange_layer *layer, const int32_t *one, const int32_t *other);
void exchange_rows(const exchange_layer *layer, int slot, moelink_rows *rows);
uint64_t exchange_expert_bytes(const exchange_layer *layer);
/* What one takes where it is staged. */
uint64_t exchange_staged_bytes(const exchange_layer *layer);

/* Maps [ranks * slots]: every expert somewhere, extra copies and -1 at random; the same for the same seed. */
void exchange_map(uint64_t seed, int ranks, int slots, int experts, int32_t *map);

/* Queues what leads from one map to another for this rank: one receive for each expert that it lacks (from a rank that differs from
 * receiver to receiver), sends to all who lack what it has. Returns the number of receives. */
int exchange_queue(rank_context *ctx, moelink_eplb_comm *comm, const exchange_layer *layer, const int32_t *from, const int32_t *to);
/* After the round: fills the slots of experts that this rank had or has now received. `before` are this rank's bytes before it. */
void exchange_settle(rank_context *ctx, exchange_layer *layer, const int32_t *from, const int32_t *to, const unsigned char *before);
/* This rank's bytes, to be freed. */
unsigned char *exchange_copy(rank_context *ctx, const exchange_layer *layer);
/* Two maps of `slots` slots a rank of which every slot of the second is received from the next rank. */
void exchange_two_maps(int ranks, int slots, int32_t *from, int32_t *to);
/* Context, queue, execute, settle, check. */
void exchange_run(rank_context *ctx, moelink_eplb_comm *comm, exchange_layer *layer, const int32_t *from, const int32_t *to);
/* A round with DIRECT. Every rank has one expert in the layer's slot 0 and sends it to all, itself too; each receives all into the
 * landing's rows, one slot a rank; it has the layer's number. */
void exchange_direct(rank_context *ctx, moelink_eplb_comm *comm, exchange_layer *layer, exchange_layer *landing);
/* A communicator of ctx->group, initialised, with room for `experts` staged ones. */
moelink_eplb_comm *exchange_comm(rank_context *ctx, int32_t kind, int experts, uint32_t flags);
/* MOELINK_EPLB_COMM_* of its state. */
int32_t exchange_state(rank_context *ctx, const moelink_eplb_comm *comm);
void exchange_register(rank_context *ctx, moelink_eplb_comm *comm, const exchange_layer *layer);

#ifdef __cplusplus
}
#endif
#endif
