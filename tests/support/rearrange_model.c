#include "rearrange_model.h"

#include <stdlib.h>
#include <string.h>

static int32_t *ints(rank_context *ctx, int64_t count) {
    int32_t *memory = malloc(sizeof *memory * (size_t)(count > 0 ? count : 1));
    RANK_CHECK(ctx, memory != NULL);
    return memory;
}

static int64_t all_slots(const rearrange_model *model) {
    return (int64_t)model->shape.layers * model->shape.slots;
}

rearrange_model model_make(rank_context *ctx, const model_options *options) {
    rearrange_model model;
    memset(&model, 0, sizeof model);
    moelink_eplb_shape_init(&model.shape);
    model.shape.layers = options->layers;
    model.shape.experts = options->experts;
    model.shape.ranks = ctx->size;
    model.shape.slots = options->slots * ctx->size;
    model.shape.threads = 1;
    model.slots = options->slots;
    model.overlap = options->overlap;
    model.old_map = ints(ctx, all_slots(&model));
    model.new_map = ints(ctx, all_slots(&model));
    model.map = ints(ctx, all_slots(&model));
    model.held = ints(ctx, (int64_t)options->layers * options->slots);
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    params.staging_experts = options->staging;
    params.flags = options->flags;
    params.chunk_bytes = 4096;
    params.timeout_ns = options->timeout_ns;
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, options->kind, &model.comm));
    RANK_OK(ctx, moelink_eplb_comm_init(model.comm, &params));
    for (int layer = 0; layer < options->layers; ++layer) {
        model.numbers[layer] = 3 + layer;
        model.layers[layer] = exchange_make(ctx, model.numbers[layer], model.slots, options->scale, options->place);
        exchange_register(ctx, model.comm, &model.layers[layer]);
        exchange_map(ctx->seed + 2 * (uint64_t)layer, ctx->size, model.slots, options->experts, model.old_map + layer * model.shape.slots);
        exchange_map(ctx->seed + 2 * (uint64_t)layer + 1, ctx->size, model.slots, options->experts,
                     model.new_map + layer * model.shape.slots);
    }
    model_fill(ctx, &model);
    return model;
}

void model_free(rank_context *ctx, rearrange_model *model) {
    moelink_eplb_comm_destroy(model->comm);
    for (int layer = 0; layer < model->shape.layers; ++layer) exchange_free(ctx, &model->layers[layer]);
    free(model->old_map);
    free(model->new_map);
    free(model->held);
    free(model->map);
}

void model_fill(rank_context *ctx, rearrange_model *model) {
    for (int layer = 0; layer < model->shape.layers; ++layer) {
        int32_t *held = model->held + layer * model->slots;
        memcpy(held, model->old_map + layer * model->shape.slots + ctx->rank * model->slots, sizeof *held * (size_t)model->slots);
        exchange_fill(ctx, &model->layers[layer], held);
    }
}

moelink_eplb_rearrange_params model_params(const rearrange_model *model) {
    moelink_eplb_rearrange_params params = MOELINK_EPLB_REARRANGE_PARAMS_INIT;
    params.old_map = model->old_map;
    params.new_map = model->new_map;
    params.old_count = params.new_count = all_slots(model);
    params.layers = model->numbers;
    params.overlap = model->overlap;
    return params;
}

moelink_eplb_rearrange_result model_result(const rearrange_model *model) {
    moelink_eplb_rearrange_result result = MOELINK_EPLB_REARRANGE_RESULT_INIT;
    result.map = model->map;
    return result;
}

void model_check(rank_context *ctx, rearrange_model *model, const moelink_eplb_rearrange_result *result) {
    for (int layer = 0; layer < model->shape.layers; ++layer) {
        int32_t *held = model->held + layer * model->slots;
        const int32_t *now = result->map + layer * model->shape.slots + ctx->rank * model->slots;
        for (int slot = 0; slot < model->slots; ++slot) held[slot] = now[slot] >= 0 ? now[slot] : held[slot];
        exchange_check(ctx, &model->layers[layer], held);
    }
}

/* Experts of a layer that come to this rank from others. */
static int received(rank_context *ctx, const rearrange_model *model, int layer) {
    const int32_t *have = model->old_map + layer * model->shape.slots + ctx->rank * model->slots;
    const int32_t *want = model->new_map + layer * model->shape.slots + ctx->rank * model->slots;
    int count = 0;
    for (int slot = 0; slot < model->slots; ++slot) {
        int known = want[slot] < 0;
        for (int other = 0; other < model->slots; ++other) {
            known |= have[other] == want[slot] || (other < slot && want[other] == want[slot]);
        }
        count += !known;
    }
    return count;
}

void model_check_done(rank_context *ctx, rearrange_model *model, const moelink_eplb_rearrange_result *result) {
    model_check(ctx, model, result);
    RANK_EQUAL(ctx, result->position, result->batches);
    RANK_EQUAL(ctx, result->open, 0);
    RANK_CHECK(ctx, memcmp(result->map, model->new_map, sizeof *model->map * (size_t)all_slots(model)) == 0);
}

moelink_eplb_transfer *model_plan(rank_context *ctx, const rearrange_model *model, const moelink_eplb_rearrange_params *params,
                                  int staging) {
    moelink_eplb_transfer_params planned = MOELINK_EPLB_TRANSFER_PARAMS_INIT;
    moelink_eplb_transfer *plan = NULL;
    planned.old_map = params->old_map;
    planned.new_map = params->new_map;
    planned.staging = staging;
    planned.flags = params->overlap == MOELINK_EPLB_OVERLAP_ALWAYS ? MOELINK_EPLB_TRANSFER_F_OVERLAP : 0;
    RANK_OK(ctx, moelink_eplb_transfer_create(&model->shape, &planned, &plan));
    return plan;
}

void model_check_planned(rank_context *ctx, const rearrange_model *model, const moelink_eplb_transfer *plan,
                         const moelink_eplb_rearrange_result *result) {
    moelink_eplb_transfer_summary summary = MOELINK_EPLB_TRANSFER_SUMMARY_INIT;
    const moelink_eplb_move *moves;
    RANK_OK(ctx, moelink_eplb_transfer_summarize(plan, &summary));
    RANK_OK(ctx, moelink_eplb_transfer_moves(plan, &moves));
    RANK_EQUAL(ctx, result->batches, summary.batches);
    int32_t *map = ints(ctx, all_slots(model));
    memcpy(map, model->old_map, sizeof *map * (size_t)all_slots(model));
    for (int64_t i = 0; i < summary.move_count && moves[i].batch < result->position; ++i) {
        const int fills = moves[i].kind == MOELINK_EPLB_MOVE_COPY || moves[i].kind == MOELINK_EPLB_MOVE_COMMIT;
        if (fills) map[moves[i].layer * model->shape.slots + moves[i].to] = moves[i].expert;
    }
    for (int64_t i = 0; i < all_slots(model); ++i) {
        if (model->new_map[i] >= 0) RANK_EQUAL(ctx, result->map[i], map[i]); /* others become empty at their layer's end */
    }
    free(map);
}

moelink_eplb_rearrange_result model_rearrange(rank_context *ctx, rearrange_model *model, const moelink_eplb_rearrange_params *params) {
    moelink_eplb_rearrange_result result = model_result(model);
    RANK_OK(ctx, moelink_eplb_rearrange(model->comm, &model->shape, params, &result));
    model_check_done(ctx, model, &result);
    int64_t experts = 0;
    uint64_t bytes = 0, link_bytes = 0;
    for (int layer = 0; layer < model->shape.layers; ++layer) {
        const int count = received(ctx, model, layer);
        experts += count;
        bytes += (uint64_t)count * exchange_expert_bytes(&model->layers[layer]);
    }
    RANK_EQUAL(ctx, result.received[MOELINK_EPLB_HOP_GPU] + result.received[MOELINK_EPLB_HOP_NODE] + result.received[MOELINK_EPLB_HOP_NET],
               experts);
    RANK_EQUAL(ctx, result.received_bytes[MOELINK_EPLB_HOP_GPU] + result.received_bytes[MOELINK_EPLB_HOP_NODE] +
                        result.received_bytes[MOELINK_EPLB_HOP_NET], bytes);
    for (int link = 0; link < MOELINK_EPLB_LINKS; ++link) link_bytes += result.link_bytes[link];
    RANK_EQUAL(ctx, link_bytes, bytes);
    return result;
}
