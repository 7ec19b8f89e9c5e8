#include "moe_case.h"

#include <stdlib.h>
#include <string.h>

static uint64_t span(uint64_t rows, uint64_t stride, uint64_t row_bytes) {
    return rows == 0 ? 0 : (rows - 1) * stride + row_bytes;
}

static unsigned any_shift(const moe_flight *flight, uint64_t *state, int unit) {
    return flight->round.plain || flight->aligned || random_chance(state, 50) ? 0u : (unsigned)(random_range(state, 0, 15) / unit * unit);
}

static uint64_t any_stride(const moe_flight *flight, uint64_t *state, uint64_t row_bytes, int unit) {
    if (flight->aligned) unit = 16;
    return row_bytes + (flight->round.plain || random_chance(state, 60) ? 0u : (uint64_t)(random_range(state, 1, 40) * unit));
}

/* Ranks need not agree on what they may use. */
static int32_t any_budget(const moe_round *round, uint64_t *state) {
    static const int32_t budgets[] = {0, 1, 3, 100000};
    return round->plain ? 0 : budgets[random_range(state, 0, 3)];
}

/* Rows of an own output and of combine's input, as many as a layout may hold. */
static uint64_t rows_bound(rank_context *ctx, const moe_flight *flight) {
    if (flight->round.layout == MOELINK_LAYOUT_RANK_MAJOR) return (uint64_t)(flight->capacity * ctx->size);
    if (flight->output_rows > 0) return (uint64_t)flight->output_rows;
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    RANK_OK(ctx, moelink_manager_sizes_of(flight->manager, &sizes));
    return (uint64_t)sizes.layout_rows;
}

/* Own outputs with room for what comes, or a little more, or all that could come. */
static int64_t any_output_rows(rank_context *ctx, const moe_flight *flight, uint64_t *state) {
    const moe_round *round = &flight->round;
    if (round->plain || round->layout == MOELINK_LAYOUT_RANK_MAJOR || random_chance(state, 50)) return 0;
    moe_rows rows;
    moe_rows_find(ctx, flight->geometry, round, flight->kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, flight->capacity, 0, &rows);
    int64_t result = rows.end;
    if (round->layout == MOELINK_LAYOUT_EXPERT_PADDED) {
        int64_t most = 0;
        for (int expert = 0; expert < rows.experts; ++expert) most = most < rows.expert_counts[expert] ? rows.expert_counts[expert] : most;
        result = (most + random_range(state, 0, 3)) * rows.experts + random_range(state, 0, rows.experts > 0 ? rows.experts - 1 : 0);
    } else {
        result += random_range(state, 0, 3);
    }
    moe_rows_free(&rows);
    return result;
}

static void prepare_loads(rank_context *ctx, moe_flight *flight) {
    uint64_t experts = (uint64_t)flight->geometry->experts;
    int64_t *staging = host_memory(ctx, experts * sizeof(*staging));
    for (uint64_t expert = 0; expert < experts; ++expert) staging[expert] = (int64_t)expert;
    flight->loads = guarded_make(ctx, experts * sizeof(*staging), 0);
    device_copy(ctx, flight->loads.data, staging, flight->loads.bytes);
    free(staging);
    flight->args.load_counts = (int64_t *)flight->loads.data;
}

/* The caller's ids in their own width; rows beyond the tokens name expert 0, so that reading them shows. */
static void write_ids(rank_context *ctx, const moe_flight *flight, void *out) {
    const moe_round *round = &flight->round;
    int64_t count = (int64_t)flight->bound * flight->geometry->top_k;
    int64_t *ids = host_memory(ctx, (uint64_t)count * 8);
    memset(ids, 0, (size_t)count * 8);
    moe_ids(flight->geometry, round, ctx->rank, ids);
    for (int64_t i = 0; i < count; ++i) {
        if (moe_ids_dtype(round, ctx->rank) == MOELINK_DTYPE_I64) {
            ((int64_t *)out)[i] = ids[i];
        } else {
            ((int32_t *)out)[i] = (int32_t)ids[i];
        }
    }
    free(ids);
}

static void prepare_routing(rank_context *ctx, moe_flight *flight, uint64_t *state) {
    const moe_round *round = &flight->round;
    int32_t ids_dtype = moe_ids_dtype(round, ctx->rank);
    int id_bytes = ids_dtype == MOELINK_DTYPE_I64 ? 8 : 4;
    uint64_t count = (uint64_t)flight->bound * (uint64_t)flight->geometry->top_k;
    flight->ids = guarded_make(ctx, count * (uint64_t)id_bytes, any_shift(flight, state, id_bytes));
    void *staging = host_memory(ctx, count * 8);
    write_ids(ctx, flight, staging);
    device_copy(ctx, flight->ids.data, staging, flight->ids.bytes);
    if (round->weights) {
        flight->weights = guarded_make(ctx, count * 4, any_shift(flight, state, 4));
        memset(staging, 0, count * 4);
        moe_weights(flight->geometry, round, ctx->rank, staging);
        device_copy(ctx, flight->weights.data, staging, flight->weights.bytes);
    }
    free(staging);
    moelink_dispatch_args_init(&flight->args);
    flight->args.slot = round->slot;
    flight->args.num_tokens = flight->bound;
    flight->args.topk_ids_dtype = ids_dtype;
    flight->args.topk_ids = count != 0 || random_chance(state, 50) ? flight->ids.data : NULL;
    if (round->weights && (count != 0 || random_chance(state, 50))) {
        flight->args.topk_weights = (const float *)flight->weights.data;
    }
    flight->args.invalid_id = round->invalid_id;
    if (flight->tokens_device.base != NULL) flight->args.num_tokens_device = (const int32_t *)flight->tokens_device.data;
    for (int rank = 0; rank < ctx->size; ++rank) flight->rank_tokens[rank] = round->tokens[rank];
    /* all ranks give the counts or none does */
    if (random_mix(round->seed, 400) % 2 == 0) flight->args.rank_tokens = flight->rank_tokens;
}

/* The caller's rows of a payload. */
static void prepare_input(rank_context *ctx, moe_flight *flight, int i, uint64_t *state) {
    const moe_round *round = &flight->round;
    moelink_rows *rows = &flight->payloads[i];
    int quantized = round->quantize != 0 && i == 0;
    int unit = quantized && ctx->device == MOELINK_DEVICE_CUDA ? 16 : 1;
    if (quantized) rows->dtype = MOELINK_DTYPE_BF16;
    rows->row_bytes = moe_input_bytes(round, i);
    rows->row_stride = any_stride(flight, state, rows->row_bytes, unit);
    flight->input[i] =
        guarded_make(ctx, span((uint64_t)flight->bound, rows->row_stride, rows->row_bytes), any_shift(flight, state, unit));
    unsigned char *staging = host_memory(ctx, flight->input[i].bytes);
    memset(staging, GUARDED_POISON, flight->input[i].bytes);
    for (int token = 0; token < flight->tokens; ++token) {
        moe_input_row(round, ctx->rank, token, i, staging + (uint64_t)token * rows->row_stride);
    }
    device_copy(ctx, flight->input[i].data, staging, flight->input[i].bytes);
    free(staging);
    rows->data = flight->bound != 0 || random_chance(state, 50) ? flight->input[i].data : NULL;
    if (rows->row_stride == rows->row_bytes && random_chance(state, 50)) rows->row_stride = 0;
}

static void prepare_payload(rank_context *ctx, moe_flight *flight, int i, uint64_t *state) {
    const moe_round *round = &flight->round;
    if (!round->sent[i]) return;
    moelink_rows *rows = &flight->payloads[i];
    int scales = round->quantize != 0 && i == 1;
    if (scales) {
        rows->dtype = round->quantize; /* dispatch makes them */
    } else {
        prepare_input(ctx, flight, i, state);
    }
    if (round->plain || random_chance(state, 60)) return;
    moelink_rows *own = &flight->outputs[i];
    int unit = (flight->in_place && i == 0) || (scales && round->quantize == MOELINK_DTYPE_F32) ? 4 : 1;
    own->row_bytes = round->row_bytes[i];
    own->row_stride = any_stride(flight, state, own->row_bytes, unit);
    flight->output[i] = guarded_make(ctx, span(rows_bound(ctx, flight), own->row_stride, own->row_bytes),
                                     any_shift(flight, state, unit));
    own->data = flight->output[i].data;
}

static void prepare_combine(rank_context *ctx, moe_flight *flight, uint64_t *state) {
    const moe_round *round = &flight->round;
    int size = (int)dtype_bytes(round->dtype);
    uint64_t row_bytes = round->hidden * (uint64_t)size;
    moelink_combine_args_init(&flight->combine);
    flight->combine.slot = round->slot;
    if (flight->halves) flight->combine.flags = MOELINK_COMBINE_F_SEND_ONLY;
    flight->combine.mode = round->mode;
    flight->combine.sm_budget = any_budget(round, state);
    flight->combine.input.row_bytes = flight->combine.output.row_bytes = row_bytes;
    flight->combine.input.dtype = flight->combine.output.dtype = round->dtype;
    uint64_t stride = any_stride(flight, state, row_bytes, size);
    flight->result = guarded_make(ctx, span((uint64_t)flight->bound, stride, row_bytes), any_shift(flight, state, size));
    flight->combine.output.data = flight->result.data;
    flight->combine.output.row_stride = stride;
    if (flight->in_place) return;
    stride = any_stride(flight, state, row_bytes, size);
    flight->expert =
        guarded_make(ctx, span(rows_bound(ctx, flight), stride, row_bytes), any_shift(flight, state, size));
    flight->combine.input.data = flight->expert.data;
    flight->combine.input.row_stride = stride;
}

void moe_flight_prepare(rank_context *ctx, moe_flight *flight, moelink_manager *manager, int kind,
                        const moe_geometry *geometry, const moe_round *round, moelink_stream stream) {
    memset(flight, 0, sizeof(*flight));
    flight->manager = manager;
    flight->geometry = geometry;
    flight->round = *round;
    flight->kind = kind;
    flight->stream = stream;
    if ((geometry->flags & MOELINK_MANAGER_F_NCCL) != 0) {
        /* NCCL sums by itself; but experts' rows are weighed before they travel */
        if (round->layout < MOELINK_LAYOUT_EXPERT_MAJOR) flight->round.mode = MOELINK_COMBINE_SUM;
        flight->refuses = flight->round.quantize != 0;
        flight->round.quantize = 0;
    }
    flight->tokens = flight->bound = round->tokens[ctx->rank];
    uint64_t state = random_mix(round->seed, 7000 + (uint64_t)ctx->rank);
    flight->halves = !round->plain && random_chance(&state, 30);
    flight->aligned = geometry->vectors && random_chance(&state, 75);
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    RANK_OK(ctx, moelink_manager_sizes_of(manager, &sizes));
    flight->capacity = sizes.slots_per_rank;
    RANK_CHECK(ctx, flight->capacity >= geometry->capacity);
    int gathers = kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER;
    if (!round->plain && !gathers && random_chance(&state, 25)) {
        int32_t count = flight->tokens;
        flight->bound = random_range(&state, flight->tokens, geometry->capacity);
        flight->tokens_device = guarded_make(ctx, 4, 0);
        device_copy(ctx, flight->tokens_device.data, &count, 4);
    }
    int same_rows = round->sent[0] && round->row_bytes[0] == round->hidden * dtype_bytes(round->dtype);
    flight->in_place =
        round->combine && same_rows && (round->plain ? random_mix(round->seed, 8) % 2 == 0 : random_chance(&state, 60));
    round = &flight->round;
    prepare_routing(ctx, flight, &state);
    if (geometry->layouts != 0 && random_chance(&state, 60)) prepare_loads(ctx, flight);
    flight->args.layout = round->layout;
    flight->args.alignment = round->alignment;
    flight->output_rows = any_output_rows(ctx, flight, &state);
    if (random_chance(&state, 50)) flight->args.rank_tokens_count = ctx->size;
    for (int i = 0; i < round->payload_count; ++i) prepare_payload(ctx, flight, i, &state);
    flight->args.payload_count = round->payload_count;
    flight->args.payloads = flight->payloads;
    for (int i = 0; i < round->payload_count; ++i) {
        if (flight->outputs[i].data != NULL) flight->args.outputs = flight->outputs;
    }
    flight->args.output_rows = flight->output_rows;
    if (round->cached) {
        flight->args.topk_ids = NULL;
        flight->args.topk_weights = NULL;
        flight->args.num_tokens_device = NULL;
        flight->args.flags |= MOELINK_DISPATCH_F_CACHED_ROUTING;
    }
    if (flight->halves) flight->args.flags |= MOELINK_DISPATCH_F_SEND_ONLY;
    if (round->quantize) flight->args.quantize = MOELINK_QUANTIZE_F8E4M3_BLOCK128;
    flight->args.sm_budget = any_budget(round, &state);
    if (round->combine) prepare_combine(ctx, flight, &state);
    moelink_dispatched_init(&flight->dispatched);
    flight->dispatched.payloads = flight->received;
}

void moe_flight_refill(rank_context *ctx, moe_flight *flight, uint64_t seed) {
    moe_round *round = &flight->round;
    uint64_t row_bytes = round->row_bytes[0], tokens = (uint64_t)flight->tokens;
    const moe_round before = *round;
    int same;
    do { /* every rank comes to the same seed, one that keeps the type of all ranks' ids */
        round->seed = seed;
        seed = random_mix(seed, 55);
        same = 1;
        for (int rank = 0; rank < ctx->size; ++rank) same &= moe_ids_dtype(round, rank) == moe_ids_dtype(&before, rank);
    } while (!same);
    round->ids_style = (int)(seed % MOE_IDS_STYLES);
    uint64_t ids_at = ((uint64_t)flight->bound * row_bytes + 15u) & ~(uint64_t)15u;
    uint64_t weights_at = (ids_at + flight->ids.bytes + 15u) & ~(uint64_t)15u;
    if (flight->staging == NULL) flight->staging = device_alloc_pinned(ctx, weights_at + flight->weights.bytes);
    unsigned char *staging = flight->staging;
    for (uint64_t token = 0; token < tokens; ++token)
        moe_payload_row(round, ctx->rank, (int)token, 0, staging + token * row_bytes);
    write_ids(ctx, flight, staging + ids_at);
    if (round->weights) moe_weights(flight->geometry, round, ctx->rank, (float *)(staging + weights_at));
    device_copy_async(ctx, flight->input[0].data, staging, tokens * row_bytes, flight->stream);
    device_copy_async(ctx, flight->ids.data, staging + ids_at, flight->ids.bytes, flight->stream);
    if (round->weights) device_copy_async(ctx, flight->weights.data, staging + weights_at, flight->weights.bytes, flight->stream);
}

static void must_refuse(rank_context *ctx, moe_flight *flight, moelink_manager *manager) {
    moelink_dispatch_args args = flight->args;
    moelink_rows payloads[MOELINK_MAX_PAYLOADS];
    memcpy(payloads, flight->payloads, sizeof(payloads));
    args.quantize = MOELINK_QUANTIZE_F8E4M3_BLOCK128;
    args.payloads = payloads;
    args.outputs = NULL;
    payloads[0].dtype = MOELINK_DTYPE_BF16;
    payloads[0].row_bytes *= 2;
    payloads[0].row_stride = 0;
    payloads[1].data = NULL;
    payloads[1].dtype = MOELINK_DTYPE_E8M0;
    RANK_EQUAL(ctx, moelink_dispatch(manager, &args, flight->stream, &flight->dispatched), MOELINK_ERR_UNSUPPORTED);
    RANK_CHECK(ctx, strstr(moelink_last_error(), "quantize") != NULL);
}

void moe_flight_dispatch(rank_context *ctx, moe_flight *flight, moelink_manager *manager) {
    if (flight->refuses) must_refuse(ctx, flight, manager);
    moelink_dispatched_init(&flight->dispatched);
    flight->dispatched.payloads = flight->received;
    RANK_OK(ctx, moelink_dispatch(manager, &flight->args, flight->stream, &flight->dispatched));
    if (flight->halves) RANK_OK(ctx, moelink_dispatch_receive(manager, flight->round.slot, flight->stream));
    RANK_EQUAL(ctx, flight->dispatched.ranks, ctx->size);
    RANK_EQUAL(ctx, flight->dispatched.slots_per_rank, flight->capacity);
    if (flight->round.layout == MOELINK_LAYOUT_RANK_MAJOR) RANK_EQUAL(ctx, flight->dispatched.row_capacity, flight->capacity * ctx->size);
    int exactly = flight->round.layout == MOELINK_LAYOUT_PACKED && flight->args.rank_tokens != NULL &&
                  flight->kind == MOELINK_MANAGER_ALLGATHER_REDUCESCATTER;
    flight->combine.input_rows = flight->dispatched.row_capacity;
    for (int rank = 0; exactly && rank < ctx->size; ++rank) {
        flight->combine.input_rows = (rank == 0 ? 0 : flight->combine.input_rows) + flight->rank_tokens[rank];
    }
    if (flight->in_place) {
        flight->combine.input.data = flight->received[0].data;
        flight->combine.input.row_stride = flight->received[0].row_stride;
    }
}

void moe_flight_combine(rank_context *ctx, moe_flight *flight, moelink_manager *manager) {
    RANK_OK(ctx, moelink_combine(manager, &flight->combine, flight->stream));
    if (flight->halves) RANK_OK(ctx, moelink_combine_receive(manager, flight->round.slot, flight->stream));
}

void moe_flight_free(rank_context *ctx, moe_flight *flight) {
    guarded_check(ctx, &flight->ids, "topk_ids");
    guarded_check(ctx, &flight->weights, "topk_weights");
    guarded_check(ctx, &flight->expert, "combine input");
    guarded_check(ctx, &flight->result, "combine output");
    guarded_check(ctx, &flight->loads, "load_counts");
    guarded_free(ctx, &flight->loads);
    guarded_free(ctx, &flight->ids);
    guarded_free(ctx, &flight->weights);
    guarded_free(ctx, &flight->tokens_device);
    guarded_free(ctx, &flight->expert);
    guarded_free(ctx, &flight->result);
    for (int i = 0; i < flight->round.payload_count; ++i) {
        guarded_check(ctx, &flight->input[i], "payload");
        guarded_check(ctx, &flight->output[i], "own output");
        guarded_free(ctx, &flight->input[i]);
        guarded_free(ctx, &flight->output[i]);
    }
    device_free_pinned(ctx, flight->staging);
    memset(flight, 0, sizeof(*flight));
}

void moe_meet_threads(rank_context *ctx) {
    if (ctx->threads && ctx->device == MOELINK_DEVICE_CUDA) RANK_OK(ctx, moelink_group_barrier(ctx->group));
}

static void run_once(rank_context *ctx, moelink_manager *manager, int kind, const moe_geometry *geometry, const moe_round *round,
                     moelink_stream stream) {
    moe_flight flight;
    rank_scene(ctx, "%s, geometry %llu, round %llu%s, %s: %d tokens, top_k %d, experts %d, hidden %llu, dtype %d",
               moelink_manager_kind_name(kind), (unsigned long long)geometry->seed, (unsigned long long)round->seed,
               round->cached ? " again" : "", moelink_layout_name(round->layout),
               round->tokens[ctx->rank], geometry->top_k, geometry->experts, (unsigned long long)round->hidden, round->dtype);
    moe_flight_prepare(ctx, &flight, manager, kind, geometry, round, stream);
    moe_meet_threads(ctx);
    moe_flight_dispatch(ctx, &flight, manager);
    moe_flight_check_dispatch(ctx, &flight);
    if (round->combine) {
        moe_flight_experts(ctx, &flight);
        moe_flight_combine(ctx, &flight, manager);
        moe_flight_check_combine(ctx, &flight);
    } else {
        RANK_OK(ctx, moelink_manager_abandon(manager, round->slot));
    }
    RANK_OK(ctx, moelink_manager_fault(manager));
    moe_flight_free(ctx, &flight);
    rank_scene(ctx, "%s", "");
}

void moe_round_run(rank_context *ctx, moelink_manager *manager, int kind, const moe_geometry *geometry, const moe_round *round,
                   moelink_stream stream) {
    run_once(ctx, manager, kind, geometry, round, stream);
    if (!round->again || !round->combine) return;
    moe_round other = *round;
    other.cached = 1;
    other.rows_seed = 1;
    run_once(ctx, manager, kind, geometry, &other, stream);
}

void moe_work(rank_context *ctx, moelink_manager *manager, int kind, const moe_geometry *geometry, uint64_t seed,
              moelink_stream stream) {
    for (uint64_t i = 0; i < 3; ++i) {
        moe_round round;
        moe_round_random(geometry, random_mix(seed, i), &round);
        round.combine = 1;
        moe_round_run(ctx, manager, kind, geometry, &round, stream);
    }
}

void moe_expect_state(rank_context *ctx, const char *file, int line, const moelink_manager *manager, int32_t state, uint64_t generation) {
    int32_t got = -1;
    uint64_t number = 99;
    RANK_OK(ctx, moelink_manager_state_of(manager, &got, &number));
    if (got == state && number == generation) return;
    rank_fail(ctx, file, line, "state %d and generation %llu, expected %d and %llu", got, (unsigned long long)number, state,
              (unsigned long long)generation);
}
