/* Rearrangements that go wrong: a rank killed at each step, a late rank, input that cannot be. */
#include "rearrange_model.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static void run(const char *name, int ranks, uint64_t seed, rank_function function, void *user) {
    rank_options options;
    memset(&options, 0, sizeof options);
    options.size = ranks;
    options.seed = seed;
    options.name = name;
    options.user = user;
    assert_int_equal(ranks_run(&options, function), 0);
}

static const model_options usual = {.layers = 3, .slots = 5, .experts = 14, .kind = MOELINK_EPLB_COMM_STAGED, .staging = 2, .scale = 40};

/* ---- A rank is killed ---- */

struct murder {
    model_options options;
    int victim;
    const char *unit; /* "round" or "batch" */
    int number;       /* the first of them at which it may happen */
    const char *step; /* the start of the message at which it does */
};

static void kill_at(void *user, int32_t level, const char *text) {
    const struct murder *murder = user;
    const size_t unit = strlen(murder->unit);
    int number = 0, rank = -1, at = 0;
    (void)level;
    if (strncmp(text, murder->unit, unit) != 0 || sscanf(text + unit, " %d: rank %d %n", &number, &rank, &at) != 2) return;
    if (number < murder->number || rank != murder->victim) return;
    if (strncmp(text + unit + at, murder->step, strlen(murder->step)) == 0) raise(SIGKILL);
}

static void killed(rank_context *ctx) {
    struct murder murder = *(const struct murder *)ctx->user;
    rearrange_model model = model_make(ctx, &murder.options);
    moelink_eplb_rearrange_params params = model_params(&model);
    moelink_eplb_rearrange_result result = model_result(&model);
    moelink_eplb_transfer *plan = model_plan(ctx, &model, &params, murder.options.staging);
    rank_scene(ctx, "%s %d: rank %d %s, overlap %u", murder.unit, murder.number, murder.victim, murder.step, murder.options.overlap);
    if (ctx->rank == murder.victim) {
        RANK_OK(ctx, moelink_log_set_level(MOELINK_LOG_DEBUG));
        moelink_log_set_callback(kill_at, &murder);
    }
    moelink_status status = moelink_eplb_rearrange(model.comm, &model.shape, &params, &result);
    RANK_CHECK(ctx, ctx->rank != murder.victim);
    if (status > MOELINK_ERR_TIMEOUT && status != MOELINK_ERR_INVALID_STATE) {
        RANK_FAIL(ctx, "%s: %s", moelink_status_name(status), moelink_last_error());
    }
    RANK_CHECK(ctx, result.position < result.batches);
    /* What the result says is what there is: old or new in each slot, whole; and what there was to do. */
    model_check(ctx, &model, &result);
    model_check_planned(ctx, &model, plan, &result);
    moelink_eplb_transfer_destroy(plan);
    const int64_t position = result.position;
    params.position = position;
    status = moelink_eplb_rearrange(model.comm, &model.shape, &params, &result);
    RANK_CHECK(ctx, status < MOELINK_OK);
    RANK_EQUAL(ctx, result.position, position);
    for (int layer = 0; layer < model.shape.layers; ++layer) exchange_check(ctx, &model.layers[layer], model.held + layer * model.slots);
    model_free(ctx, &model);
}

static void test_killed(void **state) {
    (void)state;
    static const struct {
        const char *unit;
        int number;
        const char *step;
    } deaths[] = {{"round", 1, "begins"},      {"round", 3, "has sent its offers"},   {"round", 3, "has the offer of"},
                  {"round", 4, "has expert"},  {"round", 2, "votes"},                 {"round", 5, "knows that all agree"},
                  {"round", 3, "is done"},     {"batch", 2, "fills its slots"},       {"batch", 3, "has filled its slots"}};
    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; ++i) {
        for (int way = 0; way < 4; ++way) {
            struct murder murder = {.options = usual, .victim = (int)(i + (size_t)way) % 4};
            murder.unit = deaths[i].unit;
            murder.number = deaths[i].number;
            murder.step = deaths[i].step;
            murder.options.kind = way % 2 == 0 ? MOELINK_EPLB_COMM_STAGED : MOELINK_EPLB_COMM_READ;
            murder.options.place = way % 2 == 0 ? EXCHANGE_PLAIN : EXCHANGE_MEMORY;
            murder.options.staging = 1 + (int)i % 2;
            if (way >= 2) {
                murder.options.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
                murder.options.staging *= 2;
            }
            rank_options options;
            memset(&options, 0, sizeof options);
            options.size = 4;
            options.user = &murder;
            options.no_finalize = 1;
            options.dying = &murder.victim;
            options.dying_count = 1;
            options.seed = 5;
            options.name = murder.step;
            assert_int_equal(ranks_run(&options, killed), 0);
        }
    }
}

/* ---- A rank is late ---- */

enum { ROUND_NS = 600 * 1000 * 1000 };

static void sleep_at(void *user, int32_t level, const char *text) {
    int *naps = user;
    int round = 0, rank = -1, end = 0;
    (void)level;
    if (sscanf(text, "round %d: rank %d begins%n", &round, &rank, &end) != 2 || end == 0 || *naps == 0 || round < 4) return;
    --*naps;
    struct timespec t = {0, ROUND_NS + ROUND_NS / 2};
    nanosleep(&t, NULL);
}

/* Every rank hears that the round has failed, nobody has kept any of it, and a second call goes on from there, with what
 * was staged over several batches. */
static void late(rank_context *ctx) {
    model_options options = usual;
    options.overlap = *(const uint32_t *)ctx->user;
    options.staging = options.overlap == MOELINK_EPLB_OVERLAP_ALWAYS ? 2 : 1;
    options.experts = 20; /* one for each slot: nothing but rings */
    options.timeout_ns = ROUND_NS;
    rearrange_model model = model_make(ctx, &options);
    moelink_eplb_rearrange_params params = model_params(&model);
    moelink_eplb_transfer *plan = model_plan(ctx, &model, &params, options.staging);
    int naps = ctx->rank == 1 ? 2 : 0, failed = 0;
    int32_t open = 0, all_open[RANKS_MAX];
    moelink_status status = MOELINK_NOT_READY;
    if (ctx->rank == 1) {
        RANK_OK(ctx, moelink_log_set_level(MOELINK_LOG_DEBUG));
        moelink_log_set_callback(sleep_at, &naps);
    }
    for (int calls = 0; status != MOELINK_OK && calls < 40; ++calls) {
        RANK_CHECK(ctx, rank_meet(ctx, 20000));
        moelink_eplb_rearrange_result result = model_result(&model);
        status = moelink_eplb_rearrange(model.comm, &model.shape, &params, &result);
        if (status == MOELINK_OK) {
            model_check_done(ctx, &model, &result);
            break;
        }
        RANK_EQUAL(ctx, status, MOELINK_ERR_TIMEOUT);
        if (result.batches == 0) continue; /* not even the ranks' agreement was in time */
        ++failed;
        model_check(ctx, &model, &result);
        model_check_planned(ctx, &model, plan, &result);
        open += result.open;
        params.position = result.position;
    }
    moelink_log_set_callback(NULL, NULL);
    moelink_eplb_transfer_destroy(plan);
    RANK_EQUAL(ctx, status, MOELINK_OK);
    RANK_CHECK(ctx, failed >= 2);
    RANK_OK(ctx, moelink_group_allgather(ctx->group, &open, all_open, sizeof open));
    open = 0;
    for (int rank = 0; rank < ctx->size; ++rank) open += all_open[rank];
    RANK_CHECK(ctx, open > 0);
    model_free(ctx, &model);
}

static void test_late(void **state) {
    (void)state;
    for (uint32_t overlap = MOELINK_EPLB_OVERLAP_NEVER; overlap <= MOELINK_EPLB_OVERLAP_ALWAYS; ++overlap) run("late", 4, 5, late, &overlap);
}

/* ---- What cannot be ---- */

static void refused(rank_context *ctx, rearrange_model *model, const moelink_eplb_shape *shape, const moelink_eplb_rearrange_params *params,
                    moelink_status status, const char *part) {
    moelink_eplb_rearrange_result result = model_result(model);
    result.position = 77;
    model->map[0] = 77;
    RANK_STATUS(ctx, moelink_eplb_rearrange(model->comm, shape, params, &result), status);
    RANK_TEXT(ctx, moelink_last_error(), part);
    RANK_TEXT(ctx, moelink_eplb_comm_error(model->comm), part);
    RANK_EQUAL(ctx, result.position, 77);
    RANK_EQUAL(ctx, model->map[0], 77);
    for (int layer = 0; layer < model->shape.layers; ++layer) exchange_check(ctx, &model->layers[layer], model->held + layer * model->slots);
}

static void refusals(rank_context *ctx) {
    rearrange_model model = model_make(ctx, &usual);
    const moelink_eplb_rearrange_params good = model_params(&model);
    moelink_eplb_rearrange_params params = good;
    moelink_eplb_shape shape = model.shape;
    const moelink_status invalid = MOELINK_ERR_INVALID_ARGUMENT;

    params.old_count -= 1;
    refused(ctx, &model, &shape, &params, invalid, "old_map has 29 elements; 3 layers of 2 ranks with 5 slots each make 30");
    params = good, params.new_count = 0;
    refused(ctx, &model, &shape, &params, invalid, "new_map has 0 elements");
    params = good, params.old_map = NULL;
    refused(ctx, &model, &shape, &params, invalid, "old_map is NULL");
    params = good, params.staging = 3;
    refused(ctx, &model, &shape, &params, invalid, "params.staging is 3; the communicator stages 2 experts");
    params = good, params.flags = 64;
    refused(ctx, &model, &shape, &params, invalid, "params.flags has 0x40");
    params = good, params.position = 1000;
    refused(ctx, &model, &shape, &params, invalid, "params.position is 1000; this plan has");
    params = good, params.struct_size = 0;
    refused(ctx, &model, &shape, &params, invalid, "struct_size is 0");
    params = good, params.layers = NULL;
    refused(ctx, &model, &shape, &params, invalid, "layer 0 is not registered");
    const int32_t twice[] = {model.numbers[0], model.numbers[1], model.numbers[0]};
    params = good, params.layers = twice;
    refused(ctx, &model, &shape, &params, invalid, "is in params.layers twice");
    params = good, params.overlap = 3;
    refused(ctx, &model, &shape, &params, invalid, "params.overlap is 3");
    params = good, params.old_ranks = 1, params.old_count = 15;
    refused(ctx, &model, &shape, &params, invalid, "needs a rank_mapping");
    shape.ranks = 1;
    refused(ctx, &model, &shape, &good, invalid, "shape has 1 ranks and the communicator's group 2");
    shape = model.shape, shape.slots = 8;
    params = good, params.old_count = params.new_count = 24;
    refused(ctx, &model, &shape, &params, invalid, "layer 3 is registered with 5 slots on rank 0, and shape has 4 slots a rank");
    shape = model.shape;
    refused(ctx, &model, NULL, &good, invalid, "shape is NULL");
    refused(ctx, &model, &shape, NULL, invalid, "params is NULL");
    RANK_STATUS(ctx, moelink_eplb_rearrange(model.comm, &shape, &good, NULL), invalid);
    RANK_STATUS(ctx, moelink_eplb_rearrange(NULL, &shape, &good, NULL), invalid);

    /* An expert that nobody has. */
    const int32_t kept = model.new_map[2];
    shape.experts = 15;
    model.new_map[2] = 14;
    refused(ctx, &model, &shape, &good, invalid, "new_map has expert 14 in layer 0, slot 2");
    params = good, params.flags = MOELINK_EPLB_REARRANGE_F_SKIP_LOST | MOELINK_EPLB_REARRANGE_F_PROFILE;
    moelink_eplb_rearrange_result result = model_result(&model);
    RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &shape, &params, &result));
    RANK_EQUAL(ctx, result.lost, ctx->rank == 0);
    RANK_EQUAL(ctx, result.map[2], -1);
    model.new_map[2] = kept;

    /* In the last layer too, before anything of the first has moved. */
    int32_t *last = model.new_map + 2 * model.shape.slots + 7;
    const int32_t known = *last;
    *last = 14;
    for (uint32_t overlap = MOELINK_EPLB_OVERLAP_NEVER; overlap <= MOELINK_EPLB_OVERLAP_ALWAYS; ++overlap) {
        params = good, params.overlap = overlap;
        refused(ctx, &model, &shape, &params, invalid, "new_map has expert 14 in layer 2, slot 7");
        params.position = 1000;
        refused(ctx, &model, &shape, &params, invalid, "new_map has expert 14 in layer 2, slot 7");
    }
    *last = known;
    shape = model.shape;

    /* What one rank does wrong, all ranks hear of. */
    params = good, params.staging = ctx->rank == 1 ? -1 : 0;
    refused(ctx, &model, &shape, &params, invalid, "rank 1: params.staging is -1");
    params = good, params.staging = ctx->rank == 1 ? 1 : 2;
    refused(ctx, &model, &shape, &params, MOELINK_ERR_MISMATCH, "rank 1 passes other maps");
    params = good, params.overlap = ctx->rank == 1 ? MOELINK_EPLB_OVERLAP_NEVER : MOELINK_EPLB_OVERLAP_ALWAYS;
    refused(ctx, &model, &shape, &params, MOELINK_ERR_MISMATCH, "rank 1 passes other maps");
    int32_t *other = model.new_map + 7;
    const int32_t was = *other;
    if (ctx->rank == 1) *other = was == 0 ? 1 : 0;
    refused(ctx, &model, &shape, &good, MOELINK_ERR_MISMATCH, "rank 1 passes other maps");
    *other = was;
    moelink_rows rows[EXCHANGE_TENSORS];
    exchange_rows(&model.layers[0], 0, rows);
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(model.comm, NULL, 0, 3));
    if (ctx->rank == 1) RANK_OK(ctx, moelink_eplb_comm_add_send(model.comm, rows, EXCHANGE_TENSORS, 1, 0));
    if (ctx->rank == 1) RANK_OK(ctx, moelink_eplb_comm_add_recv(model.comm, rows, EXCHANGE_TENSORS, 1, 0));
    refused(ctx, &model, &shape, &good, MOELINK_ERR_INVALID_STATE, "rank 1: the communicator is not READY");
    RANK_OK(ctx, moelink_eplb_comm_execute(model.comm));

    /* Experts of unequal size are refused by the tensor's name before anything can be moved. */
    moelink_eplb_tensor tensors[EXCHANGE_TENSORS];
    memcpy(tensors, model.layers[1].tensors, sizeof tensors);
    if (ctx->rank == 1) tensors[2].row_bytes = 6;
    RANK_STATUS(ctx, moelink_eplb_comm_register(model.comm, 4, tensors, EXCHANGE_TENSORS, model.slots), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "tensor 2 of layer 4 has 1 rows of 7 bytes an expert on rank 0 and 1 of 6 on rank 1");

    /* After all that it works. */
    model_rearrange(ctx, &model, &good);
    model_free(ctx, &model);
}

static void direct(rank_context *ctx) {
    model_options options = usual;
    options.flags = MOELINK_EPLB_COMM_F_DIRECT;
    rearrange_model model = model_make(ctx, &options);
    const moelink_eplb_rearrange_params params = model_params(&model);
    refused(ctx, &model, &model.shape, &params, MOELINK_ERR_INVALID_STATE, "DIRECT");
    RANK_OK(ctx, moelink_eplb_comm_cleanup(model.comm));
    refused(ctx, &model, &model.shape, &params, MOELINK_ERR_INVALID_STATE, "not initialised");
    model_free(ctx, &model);
}

static void test_refusals(void **state) {
    (void)state;
    run("refusals", 2, 2, refusals, NULL);
    run("direct", 2, 2, direct, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_killed), cmocka_unit_test(test_late), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests_name("rearrangements that fail", tests, NULL, NULL);
}
