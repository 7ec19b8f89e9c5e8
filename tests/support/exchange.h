/* Experts of made-up bytes in the slots of each rank's layer, and rounds of a weight-exchange communicator that move them: on the
 * host device and on CUDA. */
#ifndef MOELINK_TESTS_EXCHANGE_H
#define MOELINK_TESTS_EXCHANGE_H

#include "ranks.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { EXCHANGE_TENSORS = 4, EXCHANGE_EMPTY = 0x5c };

/* One layer: a dense tensor of some rows, a column-major one whose columns lie apart, a long row and a scale of one byte. */
typedef struct exchange {
    rank_context *ctx;
    int slots; /* of each rank */
    uint64_t bytes;
    unsigned char *memory; /* of the device: all slots of this rank, with what lies between rows */
    unsigned char *image;  /* what must be there, in host memory */
    moelink_eplb_tensor tensors[EXCHANGE_TENSORS];
} exchange;

/* wide: [bytes] of the long row. */
void exchange_open(exchange *layer, rank_context *ctx, int slots, uint64_t wide);
void exchange_close(exchange *layer);

/* Fills this rank's slots as map [ranks * slots] says; -1: empty. What lies between rows has a value of its own too. */
void exchange_write(exchange *layer, const int32_t *map);
/* Fails the rank unless every byte, also between the rows, is as after exchange_write. */
void exchange_check(exchange *layer, const int32_t *map, const char *when);

/* Registers the layer. Collective. */
void exchange_register(exchange *layer, moelink_eplb_comm *comm, int32_t number);
/* Queues what takes this rank from map `from` to map `to`: each expert comes from the first slot that holds it, or from this rank
 * itself; an expert is received once, so no rank may get it in two slots that change. */
void exchange_queue(exchange *layer, moelink_eplb_comm *comm, int32_t number, const int32_t *from, const int32_t *to);

/* A map [ranks * slots] of `experts` experts, none of them twice on a rank; experts is at least slots, and all have a slot where
 * they fit. */
void exchange_draw(uint64_t *state, int ranks, int slots, int experts, int32_t *map);

#ifdef __cplusplus
}
#endif
#endif
