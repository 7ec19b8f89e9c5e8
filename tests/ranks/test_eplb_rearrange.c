/* Models rearranged in place between real ranks: every byte of every slot, at the end and wherever a call returns. */
#include "plan.h"
#include "rearrange_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void run(const model_options *options, int ranks, int threads, const char *name, rank_function function) {
    rank_options runner = plan_options(TEST_DEVICE, name, ranks, threads);
    runner.user = (void *)options;
    runner.seed = 11;
    PLAN_RUN(&runner, function);
}

static const model_options usual = {.layers = 2, .slots = 6, .experts = 16, .kind = MOELINK_EPLB_COMM_STAGED, .staging = 2, .scale = 5};

/* ---- Exact bytes ---- */

static void exact(rank_context *ctx) {
    rearrange_model model = model_make(ctx, ctx->user);
    moelink_eplb_rearrange_params params = model_params(&model);
    moelink_eplb_rearrange_result result = model_rearrange(ctx, &model, &params);
    RANK_CHECK(ctx, result.staging <= ((const model_options *)ctx->user)->staging);
    /* And back, with the slots that were empty, a round at a time. */
    int32_t *kept = model.old_map;
    model.old_map = model.new_map;
    model.new_map = kept;
    model_fill(ctx, &model);
    params = model_params(&model);
    params.flags = MOELINK_EPLB_REARRANGE_F_ROUNDS;
    params.staging = 1;
    result = model_rearrange(ctx, &model, &params);
    RANK_CHECK(ctx, result.staging <= 1);
    /* Nothing to do: nothing is done. */
    params.old_map = params.new_map;
    result = model_result(&model);
    RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &result));
    model_check_done(ctx, &model, &result);
    RANK_EQUAL(ctx, result.batches, 0);
    model_free(ctx, &model);
}

/* The sizes of vLLM's tests, for each kind, on weights that peers can read and that they cannot. */
static void test_published_matrix(void **state) {
    (void)state;
    static const int sizes[][4] = {{2, 1, 2, 3}, {2, 2, 3, 4}, {2, 4, 8, 16}, {4, 1, 2, 6}, {4, 2, 2, 5}, {4, 8, 8, 16}};
    static const int32_t kinds[] = {MOELINK_EPLB_COMM_STAGED, MOELINK_EPLB_COMM_READ, MOELINK_EPLB_COMM_READ};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        for (int way = 0; way < 3; ++way) {
            model_options options = {.layers = sizes[i][1], .slots = sizes[i][2], .experts = sizes[i][3], .kind = kinds[way], .scale = 3};
            options.place = way == 2 ? EXCHANGE_MEMORY : EXCHANGE_PLAIN;
            options.staging = 1 + (int)i % 3;
            options.flags = i % 2 == 0 ? MOELINK_EPLB_COMM_F_CHECKSUM : 0;
            run(&options, sizes[i][0], 0, "published sizes", exact);
            options.staging = 2 + (int)i % 3;
            options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
            run(&options, sizes[i][0], way == 2, "published sizes, overlapping", exact);
        }
    }
}

static void test_many_ranks(void **state) {
    (void)state;
    model_options options = {.layers = 2, .slots = 5, .experts = 30, .kind = MOELINK_EPLB_COMM_AUTO, .staging = 2, .scale = 2};
    run(&options, 8, 0, "8 processes", exact);
    run(&options, 8, 1, "8 threads", exact);
    run(&options, 1, 0, "1 rank", exact);
    options.experts = 4; /* hot ones */
    run(&options, 8, 1, "few experts", exact);
    options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
    run(&options, 8, 1, "few experts, overlapping", exact);
}

static void checked(rank_context *ctx) {
    rearrange_model model = model_make(ctx, ctx->user);
    const moelink_eplb_rearrange_params params = model_params(&model);
    const moelink_eplb_rearrange_result result = model_rearrange(ctx, &model, &params);
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    RANK_OK(ctx, moelink_eplb_comm_stats_of(model.comm, &stats));
    RANK_EQUAL(ctx, stats.checked_experts, result.received[MOELINK_EPLB_HOP_NODE]);
    RANK_CHECK(ctx, stats.checked_experts > 0);
    model_free(ctx, &model);
}

static void test_checksums(void **state) {
    (void)state;
    model_options options = usual;
    options.flags = MOELINK_EPLB_COMM_F_CHECKSUM;
    run(&options, 3, 0, "checksums", checked);
}

/* ---- Batches that overlap ---- */

/* As many as the plan says, whenever that is asked for or is worth it, and the staging is used to the full. */
static void overlapping(rank_context *ctx) {
    rearrange_model model = model_make(ctx, ctx->user);
    moelink_eplb_rearrange_params params = model_params(&model);
    moelink_eplb_transfer_summary summary = MOELINK_EPLB_TRANSFER_SUMMARY_INIT;
    const int32_t staging = ((const model_options *)ctx->user)->staging;
    moelink_eplb_transfer *plan = model_plan(ctx, &model, &params, staging);
    RANK_OK(ctx, moelink_eplb_transfer_summarize(plan, &summary));
    moelink_eplb_transfer_destroy(plan);
    RANK_CHECK(ctx, summary.early_batches > 2);

    moelink_eplb_rearrange_result result = model_rearrange(ctx, &model, &params);
    RANK_EQUAL(ctx, result.batches, summary.batches);
    RANK_EQUAL(ctx, result.overlapped, summary.early_batches);
    int32_t staged[RANKS_MAX], most = 0;
    RANK_OK(ctx, moelink_group_allgather(ctx->group, &result.staging, staged, sizeof *staged));
    for (int rank = 0; rank < ctx->size; ++rank) most = staged[rank] > most ? staged[rank] : most;
    RANK_EQUAL(ctx, most, staging / 2 * 2);

    static const struct {
        uint32_t overlap, flags;
        int32_t staging;
    } apart[] = {{MOELINK_EPLB_OVERLAP_NEVER, 0, 0},
                 {MOELINK_EPLB_OVERLAP_AUTO, 0, 0}, /* a few bytes */
                 {MOELINK_EPLB_OVERLAP_ALWAYS, MOELINK_EPLB_REARRANGE_F_ROUNDS, 0},
                 {MOELINK_EPLB_OVERLAP_ALWAYS, 0, 1}};
    for (size_t i = 0; i < sizeof apart / sizeof *apart; ++i) {
        model_fill(ctx, &model);
        params.overlap = apart[i].overlap;
        params.flags = apart[i].flags;
        params.staging = apart[i].staging;
        result = model_rearrange(ctx, &model, &params);
        RANK_EQUAL(ctx, result.overlapped, 0);
    }
    model_free(ctx, &model);
}

/* Experts large enough for it to be chosen. */
static void large(rank_context *ctx) {
    rearrange_model model = model_make(ctx, ctx->user);
    const moelink_eplb_rearrange_params params = model_params(&model);
    RANK_CHECK(ctx, 8 * exchange_expert_bytes(&model.layers[0]) > 64u << 20);
    const moelink_eplb_rearrange_result result = model_rearrange(ctx, &model, &params);
    RANK_CHECK(ctx, result.overlapped > 0);
    model_free(ctx, &model);
}

static void test_overlapping(void **state) {
    (void)state;
    model_options options = {.layers = 4, .slots = 5, .experts = 14, .kind = MOELINK_EPLB_COMM_READ, .scale = 300};
    options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
    for (int staging = 2; staging <= 5; ++staging) {
        options.staging = staging;
        options.place = staging % 2 == 0 ? EXCHANGE_MEMORY : EXCHANGE_PLAIN;
        options.flags = staging == 4 ? MOELINK_EPLB_COMM_F_CHECKSUM : 0;
        run(&options, 4, staging == 3, "overlapping", overlapping);
    }
    options = (model_options){.layers = 2, .slots = 3, .experts = 5, .kind = MOELINK_EPLB_COMM_READ, .staging = 8, .scale = 90000};
    options.place = EXCHANGE_MEMORY;
    run(&options, 2, 0, "large experts", large);
}

/* ---- As planned ---- */

static void refuse_position(rank_context *ctx, const rearrange_model *model, moelink_eplb_rearrange_params params, int64_t position,
                            int64_t batches) {
    moelink_eplb_rearrange_result result = model_result(model);
    char text[100];
    params.position = position;
    snprintf(text, sizeof text, "params.position is %d; this plan has %d batches", (int)position, (int)batches);
    RANK_STATUS(ctx, moelink_eplb_rearrange(model->comm, &model->shape, &params, &result), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), text);
}

/* A rearrangement that plans while it moves does what is planned as a whole, and knows the whole however soon it ends. */
static void as_planned(rank_context *ctx) {
    const model_options *options = ctx->user;
    rearrange_model model = model_make(ctx, options);
    moelink_eplb_rearrange_params params = model_params(&model);
    moelink_eplb_rearrange_result result = model_result(&model);
    /* One layer stays, and of one slots only become empty. */
    memcpy(model.new_map, model.old_map, sizeof *model.new_map * 2 * (size_t)model.shape.slots);
    model.new_map[0] = -1;
    moelink_eplb_transfer *plan = model_plan(ctx, &model, &params, options->staging);
    moelink_eplb_transfer_summary summary = MOELINK_EPLB_TRANSFER_SUMMARY_INIT;
    RANK_OK(ctx, moelink_eplb_transfer_summarize(plan, &summary));
    RANK_EQUAL(ctx, summary.changed_layers, model.shape.layers - (model.old_map[0] < 0) - 1);
    RANK_CHECK(ctx, summary.batches > 4);
    refuse_position(ctx, &model, params, summary.batches + 1, summary.batches);
    refuse_position(ctx, &model, params, -1, summary.batches);
    for (int threads = 1; threads <= 2; ++threads) {
        model.shape.threads = threads;
        params.step_ns = 1;
        params.position = 0;
        int calls = 0;
        do {
            result = model_result(&model);
            RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &result));
            RANK_CHECK(ctx, result.position > params.position);
            model_check_planned(ctx, &model, plan, &result);
            model_check(ctx, &model, &result);
            params.position = result.position;
            ++calls;
        } while (result.position < result.batches);
        RANK_CHECK(ctx, calls > 2);
        model_check_done(ctx, &model, &result);
        model_fill(ctx, &model);
        params.step_ns = 0;
        params.position = 0;
        result = model_rearrange(ctx, &model, &params);
        model_check_planned(ctx, &model, plan, &result);
        model_fill(ctx, &model);
    }
    moelink_eplb_transfer_destroy(plan);
    model_free(ctx, &model);
}

static void test_as_planned(void **state) {
    (void)state;
    model_options options = usual;
    options.layers = 6;
    for (int staging = 1; staging <= 3; ++staging) {
        options.staging = staging;
        options.overlap = MOELINK_EPLB_OVERLAP_NEVER;
        run(&options, 3, 0, "as planned", as_planned);
        options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
        run(&options, 3, 0, "as planned, overlapping", as_planned);
    }
}

/* ---- Parts ---- */

/* Every expert of the new map is somewhere in every layer. */
static void check_complete(rank_context *ctx, const rearrange_model *model) {
    for (int layer = 0; layer < model->shape.layers; ++layer) {
        const int32_t *wanted = model->new_map + layer * model->shape.slots, *now = model->map + layer * model->shape.slots;
        for (int i = 0; i < model->shape.slots; ++i) {
            int found = wanted[i] < 0;
            for (int j = 0; j < model->shape.slots; ++j) found |= now[j] == wanted[i];
            if (!found) RANK_FAIL(ctx, "expert %d is nowhere in layer %d", wanted[i], layer);
        }
    }
}

static void in_parts(rank_context *ctx) {
    const model_options *options = ctx->user;
    rearrange_model model = model_make(ctx, options);
    const uint64_t bytes = exchange_expert_bytes(&model.layers[0]);
    moelink_eplb_rearrange_params params = model_params(&model);
    moelink_eplb_rearrange_result result = model_result(&model), last = result;
    params.flags = MOELINK_EPLB_REARRANGE_F_PROFILE;
    RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &last));
    for (int way = 0; way < 2; ++way) {
        params.flags = 0;
        params.position = 0;
        params.step_bytes = way == 0 ? 2 * bytes : 0;
        params.step_ns = way == 0 ? 0 : 1;
        int calls = 0;
        int64_t received = 0;
        do {
            result = model_result(&model);
            RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &result));
            RANK_CHECK(ctx, result.position > params.position);
            RANK_EQUAL(ctx, result.open, 0);
            model_check(ctx, &model, &result);
            check_complete(ctx, &model);
            received += result.received[MOELINK_EPLB_HOP_NODE];
            params.position = result.position;
            ++calls;
        } while (result.position < result.batches);
        model_check_done(ctx, &model, &result);
        RANK_EQUAL(ctx, received, last.received[MOELINK_EPLB_HOP_NODE]);
        RANK_CHECK(ctx, calls > 2);
        /* Done: going on from the end does nothing. */
        RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &result));
        RANK_EQUAL(ctx, result.received[MOELINK_EPLB_HOP_NODE], 0);
        model_check_done(ctx, &model, &result);
        model_fill(ctx, &model);
    }
    model_free(ctx, &model);
}

static void test_parts(void **state) {
    (void)state;
    model_options options = usual;
    for (int staging = 1; staging <= 3; ++staging) {
        options.staging = staging;
        run(&options, 4, 0, "in parts", in_parts);
    }
    options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
    run(&options, 4, 0, "in parts, overlapping", in_parts);
}

/* ---- Profile ---- */

static void never(void *user, int32_t layer, int32_t local_slots, const int32_t *before, const int32_t *after) {
    (void)layer, (void)local_slots, (void)before, (void)after;
    ++*(int *)user;
}

static void profile(rank_context *ctx) {
    rearrange_model model = model_make(ctx, ctx->user);
    int calls = 0;
    moelink_eplb_rearrange_params params = model_params(&model);
    moelink_eplb_rearrange_result said = model_result(&model);
    params.flags = MOELINK_EPLB_REARRANGE_F_PROFILE;
    params.committed = never;
    params.user = &calls;
    RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &said));
    RANK_EQUAL(ctx, calls, 0);
    RANK_EQUAL(ctx, said.position, said.batches);
    for (int link = 0; link < MOELINK_EPLB_LINKS; ++link) RANK_EQUAL(ctx, said.link_bytes[link], 0);
    for (int layer = 0; layer < model.shape.layers; ++layer) exchange_check(ctx, &model.layers[layer], model.held + layer * model.slots);
    params.flags = 0;
    params.committed = NULL;
    const moelink_eplb_rearrange_result real = model_rearrange(ctx, &model, &params);
    RANK_EQUAL(ctx, said.batches, real.batches);
    RANK_EQUAL(ctx, said.sent, real.sent);
    RANK_EQUAL(ctx, said.staging, real.staging);
    RANK_EQUAL(ctx, said.staging_bytes, real.staging_bytes);
    RANK_CHECK(ctx, memcmp(said.received, real.received, sizeof said.received) == 0);
    RANK_CHECK(ctx, memcmp(said.received_bytes, real.received_bytes, sizeof said.received_bytes) == 0);
    int64_t sums[2] = {real.sent, real.received[MOELINK_EPLB_HOP_NODE]}, all[2 * RANKS_MAX], sent = 0, received = 0;
    RANK_OK(ctx, moelink_group_allgather(ctx->group, sums, all, sizeof sums));
    for (int rank = 0; rank < ctx->size; ++rank) sent += all[2 * rank], received += all[2 * rank + 1];
    RANK_EQUAL(ctx, sent, received);
    model_free(ctx, &model);
}

static void test_profile(void **state) {
    (void)state;
    run(&usual, 2, 0, "profile", profile);
    run(&usual, 4, 1, "profile", profile);
    model_options options = usual;
    options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
    options.staging = 4;
    run(&options, 4, 0, "profile, overlapping", profile);
}

/* ---- Callbacks ---- */

struct told {
    rank_context *ctx;
    rearrange_model *model;
    int layers[MODEL_MAX_LAYERS];
    int calls;
};

static void tell(void *user, int32_t layer, int32_t local_slots, const int32_t *before, const int32_t *after) {
    struct told *told = user;
    rearrange_model *model = told->model;
    const int index = layer - model->numbers[0];
    int32_t *held = model->held + index * model->slots;
    RANK_EQUAL(told->ctx, local_slots, model->slots);
    RANK_CHECK(told->ctx, memcmp(before, after, sizeof *before * (size_t)local_slots) != 0);
    for (int slot = 0; slot < local_slots; ++slot) {
        if (before[slot] >= 0) RANK_EQUAL(told->ctx, before[slot], held[slot]);
        held[slot] = after[slot] >= 0 ? after[slot] : held[slot];
    }
    device_sync(told->ctx, NULL); /* the weights come in order of the communicator's stream */
    exchange_check(told->ctx, &model->layers[index], held);
    told->layers[told->calls++] = index;
}

static void callbacks(rank_context *ctx) {
    rearrange_model model = model_make(ctx, ctx->user);
    struct told told = {.ctx = ctx, .model = &model};
    /* A layer without a change on this rank is not told of. */
    memcpy(model.new_map + model.shape.slots + ctx->size / 2 * model.slots, model.old_map + model.shape.slots + ctx->size / 2 * model.slots,
           sizeof *model.new_map * (size_t)model.slots);
    moelink_eplb_rearrange_params params = model_params(&model);
    params.committed = tell;
    params.user = &told;
    moelink_eplb_rearrange_result result = model_result(&model);
    RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &result));
    model_check_done(ctx, &model, &result);
    RANK_EQUAL(ctx, told.calls, model.shape.layers - (ctx->rank == ctx->size / 2));
    for (int i = 1; i < told.calls; ++i) RANK_CHECK(ctx, told.layers[i] > told.layers[i - 1]);
    /* In parts: after every call the caller knows all that has changed. */
    model_fill(ctx, &model);
    params.step_ns = 1;
    do {
        told.calls = 0;
        result = model_result(&model);
        RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &result));
        for (int i = 0; i < model.shape.layers * model.slots; ++i) {
            const int32_t now = model.map[i / model.slots * model.shape.slots + ctx->rank * model.slots + i % model.slots];
            if (now >= 0) RANK_EQUAL(ctx, model.held[i], now);
        }
        params.position = result.position;
    } while (result.position < result.batches);
    model_free(ctx, &model);
}

static void test_callbacks(void **state) {
    (void)state;
    model_options options = usual;
    options.layers = 4;
    options.experts = 8;
    run(&options, 3, 0, "callbacks", callbacks);
    options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
    run(&options, 3, 0, "callbacks, overlapping", callbacks);
}

/* ---- Other numbers of ranks ---- */

static void rank_maps(rank_context *ctx) {
    const model_options *options = ctx->user;
    const int few = ctx->size / 2, width = options->slots;
    rearrange_model model = model_make(ctx, options);
    const int64_t count = (int64_t)model.shape.layers * few * width;
    int32_t *small = malloc(sizeof *small * (size_t)count);
    int32_t mapping[RANKS_MAX], back[RANKS_MAX];
    RANK_CHECK(ctx, small != NULL);
    /* Up: old rank r of the few becomes rank few + r, the others join. */
    for (int rank = 0; rank < few; ++rank) mapping[rank] = few + rank;
    for (int layer = 0; layer < model.shape.layers; ++layer) {
        int32_t *acting = model.old_map + layer * model.shape.slots;
        exchange_map(ctx->seed + 50 + (uint64_t)layer, few, width, options->experts, small + layer * few * width);
        for (int i = 0; i < few * width; ++i) acting[i] = -1, acting[few * width + i] = small[layer * few * width + i];
    }
    model_fill(ctx, &model);
    moelink_eplb_rearrange_params params = model_params(&model);
    params.old_map = small;
    params.old_count = count;
    params.old_ranks = few;
    params.rank_mapping = mapping;
    model_rearrange(ctx, &model, &params);
    /* Down: the odd ranks leave, the even ones close up. */
    memcpy(model.old_map, model.new_map, sizeof *model.old_map * (size_t)model.shape.layers * (size_t)model.shape.slots);
    for (int rank = 0; rank < ctx->size; ++rank) back[rank] = rank % 2 == 0 ? rank / 2 : -1;
    for (int layer = 0; layer < model.shape.layers; ++layer) {
        for (int i = 0; i < model.shape.slots; ++i) {
            const int to = back[i / width];
            model.new_map[layer * model.shape.slots + i] = to < 0 ? -1 : small[(layer * few + to) * width + i % width];
        }
    }
    params = model_params(&model);
    params.new_map = small;
    params.new_count = count;
    params.new_ranks = few;
    params.rank_mapping = back;
    model_rearrange(ctx, &model, &params);
    free(small);
    model_free(ctx, &model);
}

static void test_rank_maps(void **state) {
    (void)state;
    model_options options = usual;
    options.experts = 10;
    run(&options, 4, 0, "rank maps", rank_maps);
    options.kind = MOELINK_EPLB_COMM_READ;
    options.place = EXCHANGE_MEMORY;
    run(&options, 4, 0, "rank maps", rank_maps);
    options.experts = 5;
    run(&options, 2, 0, "rank maps", rank_maps);
}

/* ---- Staging ---- */

/* DeepSeek-V3.2 at EP8: 58 layers, 256 experts in 36 slots a rank, each expert scaled down; maps from the planner, before and after
 * traffic has changed. */
static void deepseek(rank_context *ctx) {
    const model_options *options = ctx->user;
    rearrange_model model = model_make(ctx, options);
    const int64_t loads = (int64_t)model.shape.layers * model.shape.experts;
    double *load = malloc(sizeof *load * (size_t)loads);
    uint64_t seed = 1;
    RANK_CHECK(ctx, load != NULL);
    for (int64_t i = 0; i < loads; ++i) load[i] = random_range(&seed, 1, 100000);
    RANK_OK(ctx, moelink_eplb_rebalance(&model.shape, load, model.old_map, NULL, 0, NULL));
    for (int64_t i = 0; i < loads; ++i) load[i] = random_range(&seed, 1, 100000);
    RANK_OK(ctx, moelink_eplb_rebalance(&model.shape, load, model.new_map, NULL, 0, NULL));
    free(load);
    model_fill(ctx, &model);
    const moelink_eplb_rearrange_params params = model_params(&model);
    const moelink_eplb_rearrange_result result = model_rearrange(ctx, &model, &params);
    const uint64_t expert = exchange_expert_bytes(&model.layers[0]);
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    RANK_OK(ctx, moelink_eplb_comm_describe(model.comm, &info, NULL, 0));
    RANK_EQUAL(ctx, result.staging, 4);
    RANK_EQUAL(ctx, result.staging_bytes, 4 * expert);
    RANK_EQUAL(ctx, info.staging_bytes, 4 * exchange_staged_bytes(&model.layers[0]));
    RANK_CHECK(ctx, result.received[MOELINK_EPLB_HOP_NODE] > 58 * 20); /* nearly all of it moves */
    model_free(ctx, &model);
}

static void test_staging(void **state) {
    (void)state;
    model_options options = {.layers = 58, .slots = 36, .experts = 256, .kind = MOELINK_EPLB_COMM_READ, .staging = 4, .scale = 4};
    options.place = EXCHANGE_MEMORY;
    run(&options, 8, 0, "DeepSeek-V3.2, EP8", deepseek);
    options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
    run(&options, 8, 0, "DeepSeek-V3.2, EP8, overlapping", deepseek);
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_matrix), cmocka_unit_test(test_many_ranks), cmocka_unit_test(test_checksums),
        cmocka_unit_test(test_parts),            cmocka_unit_test(test_profile),    cmocka_unit_test(test_callbacks),
        cmocka_unit_test(test_rank_maps),        cmocka_unit_test(test_staging),    cmocka_unit_test(test_overlapping),
        cmocka_unit_test(test_as_planned),
    };
    return cmocka_run_group_tests_name("rearrangement", tests, NULL, NULL);
}
