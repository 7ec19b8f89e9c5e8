/* A model of several layers on every rank, and a rearrangement of it whose every byte is checked. */
#ifndef MOELINK_TESTS_REARRANGE_MODEL_H
#define MOELINK_TESTS_REARRANGE_MODEL_H

#include "exchange.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MODEL_MAX_LAYERS = 64 };

typedef struct rearrange_model {
    moelink_eplb_shape shape; /* as the ranks act */
    int slots;                /* a rank */
    exchange_layer layers[MODEL_MAX_LAYERS]; /* registered as 3, 4, ... */
    int32_t numbers[MODEL_MAX_LAYERS];
    int32_t *old_map, *new_map; /* [layers, slots of all ranks] as the ranks act */
    int32_t *held;              /* [layers, slots of this rank] what the slots' bytes are */
    int32_t *map;               /* [layers, slots of all ranks] for results */
    uint32_t overlap;
    moelink_eplb_comm *comm;
} rearrange_model;

typedef struct model_options {
    int layers, slots, experts; /* slots a rank */
    int32_t kind;
    int place;      /* EXCHANGE_* */
    int staging;    /* of the communicator */
    uint32_t flags; /* of the communicator */
    uint32_t overlap; /* of params */
    uint64_t scale;
    uint64_t timeout_ns; /* 0: the group's */
} model_options;

/* Collective. Old and new maps are random; the weights are those of the old one. */
rearrange_model model_make(rank_context *ctx, const model_options *options);
void model_free(rank_context *ctx, rearrange_model *model);
/* New weights after old_map was changed. */
void model_fill(rank_context *ctx, rearrange_model *model);

/* Params for the model's maps; params.layers are the model's. */
moelink_eplb_rearrange_params model_params(const rearrange_model *model);
moelink_eplb_rearrange_result model_result(const rearrange_model *model);

/* Takes the map in force from a result, and fails the rank unless every slot holds what that says, whole, and what it held
 * before where it says -1. */
void model_check(rank_context *ctx, rearrange_model *model, const moelink_eplb_rearrange_result *result);
/* Fails the rank unless the result is of a finished rearrangement: the new map is in force, every expert counted. */
void model_check_done(rank_context *ctx, rearrange_model *model, const moelink_eplb_rearrange_result *result);
/* The plan that a rearrangement with these params carries out; the caller destroys it. */
moelink_eplb_transfer *model_plan(rank_context *ctx, const rearrange_model *model, const moelink_eplb_rearrange_params *params,
                                  int staging);
/* Fails the rank unless the result's map is what so many batches of the plan make of the old map, and the total is the plan's. */
void model_check_planned(rank_context *ctx, const rearrange_model *model, const moelink_eplb_transfer *plan,
                         const moelink_eplb_rearrange_result *result);
/* Rearranges, and checks what a finished one has to be. */
moelink_eplb_rearrange_result model_rearrange(rank_context *ctx, rearrange_model *model, const moelink_eplb_rearrange_params *params);

#ifdef __cplusplus
}
#endif
#endif
