/* Layers of as many tensors as there may be, most of them small: exact bytes whoever copies them, on CUDA the copy engines or
 * multiprocessors; and which of the two it is. */
#include "device.h"
#include "values.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#ifndef TEST_DEVICE
#define TEST_DEVICE MOELINK_DEVICE_HOST
#endif

enum { SLOTS = 4, LAYER = 5, PADDING = 0xEE, TENSORS = MOELINK_EPLB_MAX_TENSORS };

enum { NOTHING, INSIDE, ALL }; /* INSIDE: from the staging into slots, and between them */

typedef struct shape {
    int32_t kind, sm_budget;
    uint32_t flags;
    int tensors;
    uint64_t large; /* [bytes] of every tensor; 0: small ones of all kinds */
    int by_sms;     /* what multiprocessors are to copy */
} shape;

typedef struct weights {
    const shape *shape;
    moelink_memory *symmetric;
    unsigned char *memory, *image;
    uint64_t bytes;
    uint64_t at[TENSORS]; /* of slot 0 */
    moelink_eplb_tensor tensors[TENSORS];
} weights;

static weights weights_make(rank_context *ctx, const shape *shape) {
    weights made;
    memset(&made, 0, sizeof made);
    made.shape = shape;
    for (int i = 0; i < shape->tensors; ++i) {
        moelink_eplb_tensor *tensor = &made.tensors[i];
        const uint64_t odd = i % 5 == 0 ? 3 : 0, apart = i % 4 == 3 ? 12 : 0;
        tensor->rows = shape->large != 0 || i % 4 != 3 ? 1 : 5;
        tensor->row_bytes = shape->large != 0 ? shape->large : i % 7 == 0 ? 1 + (uint64_t)i / 7 : 16 * (1 + (uint64_t)i % 40) + odd;
        tensor->row_stride = tensor->row_bytes + (tensor->rows > 1 ? apart : 0);
        tensor->slot_stride = tensor->rows * tensor->row_stride + (i % 3 == 0 ? 16 : 0);
        made.at[i] = made.bytes + 64;
        made.bytes = (made.at[i] + SLOTS * tensor->slot_stride + 15) / 16 * 16;
    }
    made.bytes += 64;
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.bytes = made.bytes;
    void *mine = NULL;
    RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &made.symmetric));
    RANK_OK(ctx, moelink_memory_peer(made.symmetric, ctx->rank, &mine));
    made.memory = mine;
    made.image = host_memory(ctx, made.bytes);
    for (int i = 0; i < shape->tensors; ++i) made.tensors[i].base = made.memory + made.at[i];
    return made;
}

static void weights_free(rank_context *ctx, weights *weights) {
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_memory_destroy(weights->symmetric);
    free(weights->image);
}

/* What the memory holds when the slots have these experts. */
static void draw(weights *weights, const int32_t *experts) {
    memset(weights->image, PADDING, weights->bytes);
    for (int i = 0; i < weights->shape->tensors; ++i) {
        const moelink_eplb_tensor *tensor = &weights->tensors[i];
        for (int slot = 0; slot < SLOTS; ++slot) {
            unsigned char *at = weights->image + weights->at[i] + (uint64_t)slot * tensor->slot_stride;
            const uint64_t seed = (uint64_t)experts[slot] * TENSORS + (uint64_t)i;
            for (uint64_t row = 0; row < tensor->rows; ++row) {
                random_bytes(random_mix(seed, row), at + row * tensor->row_stride, tensor->row_bytes);
            }
        }
    }
}

static void fill(rank_context *ctx, weights *weights, const int32_t *experts) {
    draw(weights, experts);
    device_copy(ctx, weights->memory, weights->image, weights->bytes);
}

static void check(rank_context *ctx, weights *weights, const int32_t *experts) {
    draw(weights, experts);
    unsigned char *got = device_download(ctx, weights->memory, weights->bytes);
    for (uint64_t at = 0; at < weights->bytes; ++at) {
        if (got[at] == weights->image[at]) continue;
        RANK_FAIL(ctx, "byte %llu is %#x, must be %#x", (unsigned long long)at, got[at], weights->image[at]);
    }
    free(got);
}

static void slot_rows(const weights *weights, int slot, moelink_rows *rows) {
    for (int i = 0; i < weights->shape->tensors; ++i) {
        const moelink_eplb_tensor *tensor = &weights->tensors[i];
        unsigned char *at = (unsigned char *)tensor->base + (uint64_t)slot * tensor->slot_stride;
        rows[i] = (moelink_rows){at, tensor->row_bytes, tensor->row_stride, MOELINK_DTYPE_NONE, 0};
    }
}

/* Each rank gets the next one's first experts, and a second copy of one of its own. */
static void exchange_once(rank_context *ctx, moelink_eplb_comm *comm, weights *weights) {
    const int next = (ctx->rank + 1) % ctx->size, before = (ctx->rank + ctx->size - 1) % ctx->size;
    int32_t map[SLOTS * RANKS_MAX], after[SLOTS];
    moelink_rows rows[TENSORS];
    for (int i = 0; i < SLOTS * ctx->size; ++i) map[i] = i;
    fill(ctx, weights, map + SLOTS * ctx->rank);
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, map, SLOTS * ctx->size, LAYER));
    for (int slot = 0; slot < SLOTS; ++slot) {
        const int own = slot == SLOTS - 1;
        after[slot] = own ? SLOTS * ctx->rank : SLOTS * next + slot;
        RANK_OK(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, own ? ctx->rank : before, SLOTS * ctx->rank + (own ? 0 : slot)));
        slot_rows(weights, slot, rows);
        RANK_OK(ctx, moelink_eplb_comm_add_recv(comm, rows, weights->shape->tensors, own ? ctx->rank : next, after[slot]));
    }
    RANK_OK(ctx, moelink_eplb_comm_execute(comm));
    check(ctx, weights, after);
}

/* Every expert to another rank or slot: copies inside the rank that wait for each other. */
static void rearrange_once(rank_context *ctx, moelink_eplb_comm *comm, weights *weights, int turn) {
    int32_t from[SLOTS * RANKS_MAX], to[SLOTS * RANKS_MAX];
    const int32_t layer = LAYER;
    const int all = SLOTS * ctx->size;
    for (int i = 0; i < all; ++i) {
        from[i] = i;
        to[i] = (i + turn) % all;
    }
    fill(ctx, weights, from + SLOTS * ctx->rank);
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.layers = 1;
    shape.experts = shape.slots = all;
    shape.ranks = ctx->size;
    moelink_eplb_rearrange_params params = MOELINK_EPLB_REARRANGE_PARAMS_INIT;
    params.old_map = from;
    params.new_map = to;
    params.old_count = params.new_count = all;
    params.layers = &layer;
    params.overlap = turn % 2 == 0 ? MOELINK_EPLB_OVERLAP_ALWAYS : MOELINK_EPLB_OVERLAP_NEVER;
    moelink_eplb_rearrange_result result = MOELINK_EPLB_REARRANGE_RESULT_INIT;
    RANK_OK(ctx, moelink_eplb_rearrange(comm, &shape, &params, &result));
    check(ctx, weights, to + SLOTS * ctx->rank);
}

static void moves(rank_context *ctx) {
    const shape *shape = ctx->user;
    weights weights = weights_make(ctx, shape);
    moelink_eplb_comm *comm = NULL;
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    params.staging_experts = SLOTS;
    params.sm_budget = shape->sm_budget;
    params.flags = shape->flags;
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, shape->kind, &comm));
    RANK_OK(ctx, moelink_eplb_comm_init(comm, &params));
    RANK_OK(ctx, moelink_eplb_comm_register(comm, LAYER, weights.tensors, shape->tensors, SLOTS));
    moelink_stream stream = device_stream_create(ctx);
    RANK_OK(ctx, moelink_eplb_comm_set_stream(comm, stream));
    for (int round = 0; round < 3; ++round) {
        rank_scene(ctx, "round %d", round);
        exchange_once(ctx, comm, &weights);
    }
    for (int turn = 1; turn < SLOTS; ++turn) {
        rank_scene(ctx, "turned by %d", turn);
        rearrange_once(ctx, comm, &weights, turn);
    }
    rank_scene(ctx, "afterwards");
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    char reasons[1024];
    RANK_OK(ctx, moelink_eplb_comm_stats_of(comm, &stats));
    RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, reasons, sizeof reasons));
    RANK_EQUAL(ctx, stats.sm_copies > 0, shape->by_sms != NOTHING);
    /* Of each round SLOTS copies land and as many go on into slots. */
    RANK_CHECK(ctx, stats.sm_copies >= 3 * SLOTS * (uint64_t)shape->by_sms);
    RANK_CHECK(ctx, stats.sm_reads >= (shape->by_sms == ALL ? 3u * SLOTS : 0u));
    RANK_EQUAL(ctx, stats.sm_reads > 0, shape->by_sms == ALL);
    const int chosen = ctx->device == MOELINK_DEVICE_CUDA && shape->kind == MOELINK_EPLB_COMM_READ && shape->sm_budget >= 0 &&
                       (shape->sm_budget > 0 || (shape->flags & MOELINK_EPLB_COMM_F_ASYNC) == 0);
    RANK_EQUAL(ctx, info.sm_budget, chosen ? shape->sm_budget : -1);
    RANK_EQUAL(ctx, info.read_sms, !chosen ? 0 : shape->sm_budget > 0 ? shape->sm_budget : 16);
    if (chosen && shape->sm_budget == 0) {
        RANK_CHECK(ctx, info.sms >= 32 && info.sms <= 128); /* fewer than 128 where the device has no more */
    } else {
        RANK_EQUAL(ctx, info.sms, chosen ? shape->sm_budget : 0);
    }
    if (chosen) RANK_TEXT(ctx, reasons, "multiprocessors");
    device_stream_destroy(ctx, stream);
    moelink_eplb_comm_destroy(comm);
    weights_free(ctx, &weights);
}

static void run(const shape *shape, int size, const char *name, rank_function function) {
    rank_options options;
    memset(&options, 0, sizeof options);
    options.size = size;
    options.device = TEST_DEVICE;
    options.user = (void *)shape;
    options.name = name;
    assert_int_equal(ranks_run(&options, function), 0);
}

static void test_many_small(void **state) {
    (void)state;
    static const int32_t kinds[] = {MOELINK_EPLB_COMM_READ, MOELINK_EPLB_COMM_STAGED};
    const int cuda = TEST_DEVICE == MOELINK_DEVICE_CUDA;
    for (int kind = 0; kind < 2; ++kind) {
        static const int32_t budgets[] = {-1, 0, 1, 8};
        const int reads = cuda && kinds[kind] == MOELINK_EPLB_COMM_READ;
        for (int i = 0; i < (reads ? 4 : 2); ++i) {
            const shape shape = {kinds[kind], budgets[i], 0, TENSORS, 0, reads && budgets[i] >= 0 ? ALL : NOTHING};
            run(&shape, 2, "many small tensors", moves);
            run(&shape, 3, "many small tensors", moves);
        }
    }
    const shape checked = {MOELINK_EPLB_COMM_READ, 0, MOELINK_EPLB_COMM_F_CHECKSUM, TENSORS, 0, cuda ? ALL : NOTHING};
    run(&checked, 2, "with checksums", moves);
    const shape beside = {MOELINK_EPLB_COMM_READ, 0, MOELINK_EPLB_COMM_F_ASYNC, TENSORS, 0, NOTHING};
    run(&beside, 2, "beside a model", moves);
}

static void test_few_large(void **state) {
    (void)state;
    const int cuda = TEST_DEVICE == MOELINK_DEVICE_CUDA;
    const shape chosen = {MOELINK_EPLB_COMM_READ, 0, 0, 2, (2 << 20) + 5, cuda ? INSIDE : NOTHING};
    run(&chosen, 2, "large tensors", moves);
    const shape asked = {MOELINK_EPLB_COMM_READ, cuda ? 8 : -1, 0, 2, (2 << 20) + 5, cuda ? ALL : NOTHING};
    run(&asked, 2, "large tensors", moves);
}

/* --- refusals --- */

static void refuse(rank_context *ctx, int32_t kind, int32_t budget, const char *text) {
    moelink_eplb_comm *comm = NULL;
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    params.sm_budget = budget;
    RANK_STATUS(ctx, moelink_eplb_comm_query(ctx->group, kind, &params, 1000, &info, NULL, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), text);
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, kind, &comm));
    RANK_STATUS(ctx, moelink_eplb_comm_init(comm, &params), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), text);
    params.sm_budget = ctx->rank == 0 ? budget : -1; /* one rank alone is enough */
    RANK_STATUS(ctx, moelink_eplb_comm_init(comm, &params), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "rank 0: params.sm_budget is");
    params.sm_budget = ctx->rank == 0 ? 0 : -1; /* ranks may differ */
    RANK_OK(ctx, moelink_eplb_comm_init(comm, &params));
    RANK_OK(ctx, moelink_eplb_comm_ensure(comm, &params));
    params.sm_budget = ctx->rank == 0 ? -1 : 0;
    RANK_STATUS(ctx, moelink_eplb_comm_ensure(comm, &params), MOELINK_ERR_INVALID_STATE);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_eplb_comm_destroy(comm);
}

static void refusals(rank_context *ctx) {
    const int cuda = ctx->device == MOELINK_DEVICE_CUDA;
    refuse(ctx, MOELINK_EPLB_COMM_READ, -2, "params.sm_budget is -2, neither -1, 0 nor a number");
    refuse(ctx, MOELINK_EPLB_COMM_READ, 1 << 20, cuda ? "1048576, and the device has" : "1048576, and the group is on the host");
    refuse(ctx, MOELINK_EPLB_COMM_STAGED, 4, cuda ? "4, and staged copies no rows by multiprocessors" : "4, and the group is on the host");
}

static void test_refusals(void **state) {
    (void)state;
    run(NULL, 2, "refusals", refusals);
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_small),
        cmocka_unit_test(test_few_large),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("experts of many tensors", tests, NULL, NULL);
}
