/* The load window: rings of several models, maps that change between passes, sums over steps and over ranks. Each rank computes what
 * every rank has recorded and adds it up anew. */
#include "plan.h"
#include "values.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MODELS = 2, WINDOW = 5, MAX_STEPS = 3, MAX_LOADS = 4096, MAX_SLOTS = 256, LAYERS = 3 };

/* Two models whose shapes have nothing in common; the second has empty slots. */
static moelink_eplb_shape shape_of(int model, int ranks) {
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.layers = model == 0 ? LAYERS : 1;
    shape.experts = model == 0 ? 5 * ranks : 3;
    shape.ranks = ranks;
    shape.slots = (model == 0 ? 7 : 4) * ranks;
    return shape;
}

/* Which expert a slot holds in the n-th map of a model; every expert has a slot. */
static int32_t expert_of(const moelink_eplb_shape *shape, int number, int layer, int slot) {
    int place = (slot + 3 * number + layer) % shape->slots;
    if (place < shape->experts) return place;
    return place % 4 == 0 ? -1 : (place * 5 + number) % shape->experts;
}

/* Tokens that a rank sends to a slot in a pass; now and then a negative count, which is 0. */
static int64_t count_of(int model, int rank, int pass, int layer, int slot) {
    uint64_t mixed = random_mix(random_mix((uint64_t)model * 1000 + (uint64_t)rank, (uint64_t)pass), (uint64_t)(layer * 1000 + slot));
    if (mixed % 23 == 0) return -5;
    return mixed % 7 == 0 ? (int64_t)(mixed >> 24) : (int64_t)(mixed >> 40) % 1000;
}

static int map_of(int pass) {
    return pass / 3;
}

struct expected {
    double expert_load[MAX_STEPS * MAX_LOADS], rank_load[MAX_LOADS], layer_balance[LAYERS], balance, balance_summed;
};

/* What the window holds after `passes` passes, of the ranks first .. last. */
static void expect(const moelink_eplb_shape *shape, int model, int first, int last, int passes, int steps, struct expected *out) {
    memset(out, 0, sizeof(*out));
    int held = passes < WINDOW ? passes : WINDOW, oldest = passes - held;
    for (int rank = first; rank <= last; ++rank) {
        for (int i = 0; i < held; ++i) {
            int step = 0;
            while (i >= held * (step + 1) / steps) ++step;
            for (int layer = 0; layer < shape->layers; ++layer) {
                for (int slot = 0; slot < shape->slots; ++slot) {
                    int32_t expert = expert_of(shape, map_of(oldest + i), layer, slot);
                    int64_t count = count_of(model, rank, oldest + i, layer, slot);
                    if (expert < 0 || count < 0) continue;
                    out->expert_load[(step * shape->layers + layer) * shape->experts + expert] += (double)count;
                    out->rank_load[layer * shape->ranks + slot / (shape->slots / shape->ranks)] += (double)count;
                }
            }
        }
    }
    double means = 0, largest = 0;
    for (int layer = 0; layer < shape->layers; ++layer) {
        double sum = 0, most = 0;
        for (int rank = 0; rank < shape->ranks; ++rank) {
            double load = out->rank_load[layer * shape->ranks + rank];
            sum += load;
            most = load > most ? load : most;
        }
        out->layer_balance[layer] = most > 0 ? sum / shape->ranks / most : 1;
        out->balance += out->layer_balance[layer] / shape->layers;
        means += sum / shape->ranks;
        largest += most;
    }
    out->balance_summed = largest > 0 ? means / largest : 1;
}

static void expect_near(rank_context *ctx, const char *name, const double *got, const double *expected, int count, double part) {
    for (int i = 0; i < count; ++i) {
        double off = got[i] - expected[i];
        if (off < 0) off = -off;
        if (!(off <= part * expected[i])) RANK_FAIL(ctx, "%s[%d] is %.17g, must be %.17g", name, i, got[i], expected[i]);
    }
}

static void check_report(rank_context *ctx, moelink_eplb_load *load, int model, int passes, int steps, int reduced, moelink_stream stream) {
    static __thread struct expected expected;
    static __thread double expert_load[MAX_STEPS * MAX_LOADS], rank_load[MAX_LOADS];
    double layer_balance[LAYERS];
    moelink_eplb_shape shape = shape_of(model, ctx->size);
    expect(&shape, model, reduced ? 0 : ctx->rank, reduced ? ctx->size - 1 : ctx->rank, passes, steps, &expected);
    moelink_eplb_load_report report = MOELINK_EPLB_LOAD_REPORT_INIT;
    report.expert_load = expert_load;
    report.rank_load = rank_load;
    report.layer_balance = layer_balance;
    rank_scene(ctx, "model %d, %d passes, %d steps, %s", model, passes, steps, reduced ? "all ranks" : "own");
    if (reduced) {
        RANK_OK(ctx, moelink_eplb_load_reduce(load, model, steps, stream, &report));
    } else {
        RANK_OK(ctx, moelink_eplb_load_read(load, model, steps, stream, &report));
    }
    RANK_EQUAL(ctx, report.recorded, passes);
    RANK_EQUAL(ctx, report.passes, passes < WINDOW ? passes : WINDOW);
    expect_near(ctx, "expert_load", expert_load, expected.expert_load, steps * shape.layers * shape.experts, 0);
    expect_near(ctx, "rank_load", rank_load, expected.rank_load, shape.layers * shape.ranks, 0);
    expect_near(ctx, "layer_balance", layer_balance, expected.layer_balance, shape.layers, 1e-12);
    expect_near(ctx, "balance", &report.balance, &expected.balance, 1, 1e-12);
    expect_near(ctx, "balance_summed", &report.balance_summed, &expected.balance_summed, 1, 1e-12);
    report = (moelink_eplb_load_report)MOELINK_EPLB_LOAD_REPORT_INIT; /* nothing is wanted */
    RANK_OK(ctx, moelink_eplb_load_read(load, model, steps, stream, &report));
}

static void make_map(const moelink_eplb_shape *shape, int number, int32_t *phy2log) {
    for (int i = 0; i < shape->layers * shape->slots; ++i) phy2log[i] = expert_of(shape, number, i / shape->slots, i % shape->slots);
}

static void windows(rank_context *ctx) {
    moelink_stream stream = device_stream_create(ctx);
    moelink_eplb_load *load = NULL;
    moelink_eplb_map *maps[MODELS];
    static __thread int32_t phy2log[LAYERS * MAX_SLOTS];
    RANK_OK(ctx, moelink_eplb_load_create(ctx->group, WINDOW, &load));
    for (int model = 0; model < MODELS; ++model) {
        moelink_eplb_shape shape = shape_of(model, ctx->size);
        int32_t number = -1;
        make_map(&shape, 0, phy2log);
        RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &shape, phy2log, &maps[model]));
        RANK_OK(ctx, moelink_eplb_load_add(load, maps[model], &number));
        RANK_EQUAL(ctx, number, model);
        check_report(ctx, load, model, 0, 2, 1, stream);
    }
    for (int pass = 0; pass < 13; ++pass) {
        for (int model = 0; model < MODELS; ++model) {
            moelink_eplb_shape shape = shape_of(model, ctx->size);
            const int slots = shape.layers * shape.slots;
            if (pass > 0 && map_of(pass) != map_of(pass - 1)) {
                make_map(&shape, map_of(pass), phy2log);
                for (int layer = 0; layer < shape.layers; ++layer) {
                    RANK_OK(ctx, moelink_eplb_map_update(maps[model], layer, 1, phy2log + layer * shape.slots, stream));
                }
            }
            int64_t *counts = malloc((size_t)slots * 8);
            for (int i = 0; i < slots; ++i) counts[i] = count_of(model, ctx->rank, pass, i / shape.slots, i % shape.slots);
            if (pass % 3 == 2) {
                RANK_OK(ctx, moelink_eplb_load_record(load, model, counts, MOELINK_EPLB_LOAD_F_HOST_COUNTS, stream));
            } else {
                guarded device = guarded_make(ctx, (uint64_t)slots * 8, 8);
                device_copy(ctx, device.data, counts, (uint64_t)slots * 8);
                uint32_t flags = pass % 3 == 0 ? MOELINK_EPLB_LOAD_F_CLEAR : 0;
                RANK_OK(ctx, moelink_eplb_load_record(load, model, (int64_t *)device.data, flags, stream));
                device_sync(ctx, stream);
                int64_t *after = malloc((size_t)slots * 8);
                device_copy(ctx, after, device.data, (uint64_t)slots * 8);
                for (int i = 0; i < slots; ++i) RANK_EQUAL(ctx, after[i], flags != 0 ? 0 : counts[i]);
                guarded_check(ctx, &device, "counts");
                guarded_free(ctx, &device);
                free(after);
            }
            free(counts);
            check_report(ctx, load, model, pass + 1, 1 + pass % MAX_STEPS, pass % 2, stream);
        }
    }
    RANK_OK(ctx, moelink_eplb_load_clear(load, 0, stream));
    check_report(ctx, load, 0, 0, 1, 1, stream);
    check_report(ctx, load, 1, 13, 3, 1, stream);
    moelink_eplb_map_destroy(maps[0]); /* the window keeps it alive */
    check_report(ctx, load, 0, 0, 3, 0, stream);
    moelink_eplb_load_destroy(load);
    moelink_eplb_map_destroy(maps[1]);
    device_stream_destroy(ctx, stream);
    rank_scene(ctx, "%s", "");
}

/* Route counts, record takes and clears them: both in one graph on CUDA. */
static void from_routes(rank_context *ctx) {
    enum { TOKENS = 64, PASSES = 4 };
    moelink_stream stream = device_stream_create(ctx);
    moelink_eplb_shape shape = shape_of(0, ctx->size);
    static __thread int32_t phy2log[LAYERS * MAX_SLOTS];
    make_map(&shape, 0, phy2log);
    moelink_eplb_map *map = NULL;
    moelink_eplb_load *load = NULL;
    int32_t model = -1;
    RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &shape, phy2log, &map));
    RANK_OK(ctx, moelink_eplb_load_create(ctx->group, 100, &load));
    RANK_OK(ctx, moelink_eplb_load_add(load, map, &model));
    guarded ids = guarded_make(ctx, TOKENS * 4, 0), out = guarded_make(ctx, TOKENS * 4, 0);
    guarded counts = guarded_make(ctx, (uint64_t)(shape.layers * shape.slots) * 8, 0);
    device_set(ctx, counts.data, 0, counts.bytes);
    int32_t host_ids[TOKENS];
    for (int i = 0; i < TOKENS; ++i) host_ids[i] = (i * i + ctx->rank) % shape.experts;
    device_copy(ctx, ids.data, host_ids, sizeof(host_ids));
    moelink_eplb_route_args args = MOELINK_EPLB_ROUTE_ARGS_INIT;
    args.num_tokens = TOKENS;
    args.top_k = 1;
    args.policy = MOELINK_EPLB_CAPACITY;
    args.logical_ids = ids.data;
    args.physical_ids = out.data;
    device_graph *graph = NULL;
    for (int pass = 0; pass < PASSES; ++pass) {
        if (graph == NULL) {
            if (ctx->device == MOELINK_DEVICE_CUDA) device_capture_begin(ctx, stream);
            for (args.layer = 0; args.layer < shape.layers; ++args.layer) {
                args.slot_counts = (int64_t *)counts.data + args.layer * shape.slots;
                RANK_OK(ctx, moelink_eplb_route(map, &args, stream));
            }
            RANK_OK(ctx, moelink_eplb_load_record(load, model, (int64_t *)counts.data, MOELINK_EPLB_LOAD_F_CLEAR, stream));
            if (ctx->device == MOELINK_DEVICE_CUDA) {
                moelink_eplb_load_report report = MOELINK_EPLB_LOAD_REPORT_INIT;
                RANK_STATUS(ctx, moelink_eplb_load_read(load, model, 1, stream, &report), MOELINK_ERR_INVALID_STATE);
                RANK_STATUS(ctx, moelink_eplb_load_record(load, model, (int64_t *)host_ids, MOELINK_EPLB_LOAD_F_HOST_COUNTS, stream),
                            MOELINK_ERR_INVALID_STATE);
                graph = device_capture_end(ctx, stream);
            }
        }
        if (graph != NULL) device_replay(ctx, graph, stream);
    }
    static __thread double loads[MAX_LOADS];
    moelink_eplb_load_report report = MOELINK_EPLB_LOAD_REPORT_INIT;
    report.expert_load = loads;
    RANK_OK(ctx, moelink_eplb_load_reduce(load, model, 1, stream, &report));
    RANK_EQUAL(ctx, report.passes, PASSES);
    for (int layer = 0; layer < shape.layers; ++layer) {
        for (int expert = 0; expert < shape.experts; ++expert) {
            int expected = 0;
            for (int rank = 0; rank < ctx->size; ++rank) {
                for (int i = 0; i < TOKENS; ++i) expected += (i * i + rank) % shape.experts == expert;
            }
            RANK_EQUAL(ctx, loads[layer * shape.experts + expert], expected * PASSES);
        }
    }
    device_graph_destroy(ctx, graph);
    guarded_check(ctx, &counts, "counts");
    guarded_free(ctx, &ids);
    guarded_free(ctx, &out);
    guarded_free(ctx, &counts);
    moelink_eplb_load_destroy(load);
    moelink_eplb_map_destroy(map);
    device_stream_destroy(ctx, stream);
}

/* Counts that no int64 can hold in sum stay at the largest. */
static void saturation(rank_context *ctx) {
    static const int32_t phy2log[] = {0, 0};
    int64_t counts[] = {INT64_MAX - 1, 5};
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.experts = 1;
    shape.slots = 2;
    moelink_eplb_map *map = NULL;
    moelink_eplb_load *load = NULL;
    int32_t model = 0;
    double sum = 0;
    RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &shape, phy2log, &map));
    RANK_OK(ctx, moelink_eplb_load_create(ctx->group, 2, &load));
    RANK_OK(ctx, moelink_eplb_load_add(load, map, &model));
    moelink_eplb_load_report report = MOELINK_EPLB_LOAD_REPORT_INIT;
    report.expert_load = &sum;
    for (int pass = 0; pass < 3; ++pass) RANK_OK(ctx, moelink_eplb_load_record(load, 0, counts, MOELINK_EPLB_LOAD_F_HOST_COUNTS, NULL));
    RANK_OK(ctx, moelink_eplb_load_reduce(load, 0, 1, NULL, &report));
    RANK_CHECK(ctx, sum == (double)INT64_MAX);
    RANK_CHECK(ctx, report.balance == 1);
    moelink_eplb_load_destroy(load);
    moelink_eplb_map_destroy(map);
}

static void refusals(rank_context *ctx) {
    static const int32_t phy2log[] = {0, 1, 1, 0};
    int64_t counts[4] = {0};
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.experts = 2;
    shape.slots = 4;
    shape.ranks = 2;
    moelink_eplb_map *map = NULL;
    moelink_eplb_load *load = NULL;
    int32_t model = -1;
    uint64_t bytes = 0;
    moelink_eplb_load_report report = MOELINK_EPLB_LOAD_REPORT_INIT;
    RANK_STATUS(ctx, moelink_eplb_load_create(ctx->group, 0, &load), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_load_create(ctx->group, 65537, &load), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "65537");
    RANK_STATUS(ctx, moelink_eplb_load_create(NULL, 5, &load), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_load_create(ctx->group, 5, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_OK(ctx, moelink_eplb_load_query(&shape, 1000, &bytes));
    RANK_CHECK(ctx, bytes >= 1000 * 8 * (2 + 2));
    RANK_STATUS(ctx, moelink_eplb_load_query(&shape, 0, &bytes), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_OK(ctx, moelink_eplb_load_create(ctx->group, 5, &load));
    RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &shape, phy2log, &map));
    RANK_STATUS(ctx, moelink_eplb_load_add(load, NULL, &model), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_load_add(load, map, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_load_record(load, 0, counts, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "model is 0");
    RANK_OK(ctx, moelink_eplb_load_add(load, map, &model));
    RANK_STATUS(ctx, moelink_eplb_load_record(load, 1, counts, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_load_record(load, 0, NULL, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_load_record(load, 0, counts, 8, NULL), MOELINK_ERR_UNSUPPORTED);
    RANK_STATUS(ctx, moelink_eplb_load_read(load, 0, 0, NULL, &report), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_load_read(load, 0, 1, NULL, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_load_clear(load, -1, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    /* One rank's mistake is told to all of them, and the group goes on. */
    RANK_STATUS(ctx, moelink_eplb_load_reduce(load, ctx->rank == 1 ? 7 : 0, 1, NULL, &report), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "rank 1: model is 7");
    RANK_STATUS(ctx, moelink_eplb_load_reduce(load, 0, ctx->rank == 1 ? 3 : 2, NULL, &report), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "steps: rank 0 has 2 and rank 1 has 3");
    RANK_OK(ctx, moelink_eplb_load_reduce(load, 0, 1, NULL, &report));
    RANK_EQUAL(ctx, report.recorded, 0);
    moelink_eplb_load_destroy(load);
    moelink_eplb_load_destroy(NULL);
    moelink_eplb_map_destroy(map);
}

static void run(rank_function function, const char *name, int ranks, int threads) {
    rank_options options = plan_options(TEST_DEVICE, name, ranks, threads);
    PLAN_RUN(&options, function);
}

static void test_windows(void **state) {
    (void)state;
    run(windows, "windows", 1, 0);
    run(windows, "windows", 3, 0);
    run(windows, "windows", 4, 1);
}

static void test_from_routes(void **state) {
    (void)state;
    run(from_routes, "counts of routes", 2, 0);
}

static void test_saturation(void **state) {
    (void)state;
    run(saturation, "saturation", 2, 1);
}

static void test_refusals(void **state) {
    (void)state;
    rank_options options = plan_options(MOELINK_DEVICE_HOST, "refusals", 2, 1);
    PLAN_RUN(&options, refusals);
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_from_routes),
        cmocka_unit_test(test_saturation),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("load window", tests, NULL, NULL);
}
