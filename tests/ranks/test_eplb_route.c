/* Which copy of its expert each token takes: every policy against a reference of its own, on the host and, included by
 * tests/gpu, on CUDA, where the host's answer must be met id for id. */
#include "plan.h"
#include "values.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_LAYERS = 3, MAX_EXPERTS = 300, MAX_SLOTS = 512, MAX_RANKS = 64, MAX_IDS = 1 << 15 };

struct scene {
    moelink_eplb_shape shape;
    int32_t phy2log[MAX_LAYERS * MAX_SLOTS];
    moelink_eplb_route_args args; /* without pointers */
    int bound;                    /* num_tokens_device is used: args.num_tokens is the bound, this the value; -1: not used */
    int in_place;
    int has_room;
    int has_counts;
    int64_t ids[MAX_IDS];
    int64_t room[MAX_RANKS];
};

/* Every expert somewhere, the rest of the slots at random, some of them empty. */
static void random_map(uint64_t *random, const moelink_eplb_shape *shape, int32_t *phy2log) {
    for (int layer = 0; layer < shape->layers; ++layer) {
        int32_t *map = phy2log + layer * shape->slots;
        int hot = random_range(random, 0, shape->experts - 1);
        for (int slot = 0; slot < shape->slots; ++slot) {
            if (slot < shape->experts) {
                map[slot] = slot;
            } else {
                map[slot] = random_chance(random, 10) ? -1 : random_chance(random, 20) ? hot : random_range(random, 0, shape->experts - 1);
            }
        }
        for (int slot = shape->slots - 1; slot > 0; --slot) {
            int other = random_range(random, 0, slot);
            int32_t kept = map[slot];
            map[slot] = map[other];
            map[other] = kept;
        }
    }
}

static void random_scene(uint64_t seed, struct scene *scene) {
    uint64_t random = seed;
    memset(scene, 0, sizeof(*scene));
    moelink_eplb_shape_init(&scene->shape);
    int large = random_chance(&random, 20);
    scene->shape.layers = random_range(&random, 1, MAX_LAYERS);
    scene->shape.ranks = random_range(&random, 1, large ? MAX_RANKS : 6);
    scene->shape.experts = random_range(&random, 1, large ? MAX_EXPERTS : 12);
    int each = (scene->shape.experts + scene->shape.ranks - 1) / scene->shape.ranks + random_range(&random, 0, 2);
    scene->shape.slots = each * scene->shape.ranks;
    random_map(&random, &scene->shape, scene->phy2log);
    moelink_eplb_route_args_init(&scene->args);
    scene->args.layer = random_range(&random, 0, scene->shape.layers - 1);
    scene->args.policy = random_range(&random, MOELINK_EPLB_ROUND_ROBIN, MOELINK_EPLB_CAPACITY);
    scene->args.top_k = random_range(&random, 1, 9);
    scene->args.num_tokens = random_chance(&random, 10) ? 0 : random_range(&random, 1, large ? 3000 : 200);
    scene->args.ids_dtype = random_chance(&random, 50) ? MOELINK_DTYPE_I32 : MOELINK_DTYPE_I64;
    scene->args.seed = random_next(&random) >> random_range(&random, 0, 63);
    scene->bound = random_chance(&random, 25) ? random_range(&random, -1, scene->args.num_tokens + 1) : -2;
    scene->in_place = random_chance(&random, 25);
    scene->has_room = random_chance(&random, 50);
    scene->has_counts = random_chance(&random, 75);
    for (int rank = 0; rank < MAX_RANKS; ++rank) scene->room[rank] = random_range(&random, -300, 300);
    int hot = random_range(&random, 0, scene->shape.experts - 1);
    for (int i = 0; i < scene->args.num_tokens * scene->args.top_k; ++i) {
        scene->ids[i] = random_chance(&random, 20) ? hot : random_range(&random, 0, scene->shape.experts - 1);
        if (random_chance(&random, 5)) scene->ids[i] = random_chance(&random, 50) ? -1 : scene->shape.experts;
        if (scene->args.ids_dtype == MOELINK_DTYPE_I64 && random_chance(&random, 2)) scene->ids[i] += INT64_C(1) << 32;
    }
}

static int used_tokens(const struct scene *scene) {
    if (scene->bound == -2) return scene->args.num_tokens;
    return scene->bound < 0 ? 0 : scene->bound > scene->args.num_tokens ? scene->args.num_tokens : scene->bound;
}

/* Runs the scene's call; ids [num_tokens, top_k] and counts [slots] are results. The counters begin at 7. */
static void call_route(rank_context *ctx, moelink_eplb_map *map, const struct scene *scene, moelink_stream stream, int64_t *out_ids, int64_t *out_counts) {
    const uint64_t id_bytes = scene->args.ids_dtype == MOELINK_DTYPE_I64 ? 8 : 4;
    const uint64_t ids = (uint64_t)scene->args.num_tokens * (uint64_t)scene->args.top_k;
    const uint64_t slots = (uint64_t)scene->shape.slots;
    guarded in = guarded_make(ctx, ids * id_bytes, (unsigned)id_bytes), out = guarded_make(ctx, ids * id_bytes, 0);
    guarded room = guarded_make(ctx, sizeof(scene->room), 8), counts = guarded_make(ctx, slots * 8, 8), tokens = guarded_make(ctx, 4, 4);
    unsigned char *staging = malloc(ids * 8 + 1);
    for (uint64_t i = 0; i < ids; ++i) {
        int32_t narrow = (int32_t)scene->ids[i];
        memcpy(staging + i * id_bytes, id_bytes == 8 ? (const void *)&scene->ids[i] : (const void *)&narrow, id_bytes);
    }
    device_copy(ctx, in.data, staging, ids * id_bytes);
    device_copy(ctx, room.data, scene->room, sizeof(scene->room));
    for (uint64_t slot = 0; slot < slots; ++slot) out_counts[slot] = 7;
    device_copy(ctx, counts.data, out_counts, slots * 8);
    int32_t bound = scene->bound;
    device_copy(ctx, tokens.data, &bound, 4);
    moelink_eplb_route_args args = scene->args;
    args.logical_ids = in.data;
    args.physical_ids = scene->in_place ? in.data : out.data;
    args.num_tokens_device = scene->bound != -2 ? (const int32_t *)tokens.data : NULL;
    args.rank_room = scene->has_room ? (const int64_t *)room.data : NULL;
    args.slot_counts = scene->has_counts ? (int64_t *)counts.data : NULL;
    RANK_OK(ctx, moelink_eplb_route(map, &args, stream));
    device_sync(ctx, stream);
    device_copy(ctx, staging, args.physical_ids, ids * id_bytes);
    device_copy(ctx, out_counts, counts.data, slots * 8);
    for (uint64_t i = 0; i < ids; ++i) {
        int32_t narrow;
        memcpy(&narrow, staging + i * id_bytes, 4);
        if (id_bytes == 8) {
            memcpy(&out_ids[i], staging + i * 8, 8);
        } else {
            out_ids[i] = narrow;
        }
    }
    guarded *all[] = {&in, &out, &room, &counts, &tokens};
    for (int i = 0; i < 5; ++i) {
        guarded_check(ctx, all[i], "route");
        guarded_free(ctx, all[i]);
    }
    free(staging);
}

static int copies_of(const struct scene *scene, int64_t expert, int32_t *slots) {
    const int32_t *map = scene->phy2log + scene->args.layer * scene->shape.slots;
    int copies = 0;
    for (int slot = 0; slot < scene->shape.slots; ++slot) {
        if (map[slot] == expert) slots[copies++] = slot;
    }
    return copies;
}

static int rank_of(const struct scene *scene, int slot) {
    return slot / (scene->shape.slots / scene->shape.ranks);
}

/* Splits by capacity must follow from the counts: tokens in order fill the copies in order; of each expert no copy that got tokens
 * is more than one above another one (so for the expert split last; all of them when one alone has copies); and a second
 * copy on a rank gets none. */
static void check_shares(rank_context *ctx, const struct scene *scene, const int64_t *got) {
    static int64_t level[MAX_RANKS], share[MAX_SLOTS];
    int32_t slots[MAX_SLOTS];
    int ids = used_tokens(scene) * scene->args.top_k, last = -1;
    memset(share, 0, sizeof(share));
    for (int rank = 0; rank < scene->shape.ranks; ++rank) level[rank] = scene->has_room ? -scene->room[rank] : 0;
    for (int i = 0; i < ids; ++i) {
        if (got[i] < 0) continue;
        share[got[i]] += 1;
        level[rank_of(scene, (int)got[i])] += 1;
    }
    for (int expert = 0; expert < scene->shape.experts; ++expert) {
        int copies = copies_of(scene, expert, slots), place = 0;
        int64_t left = share[slots[0]], total = 0;
        for (int i = 0; i < ids; ++i) {
            if (scene->ids[i] != expert) continue;
            while (left == 0 && place + 1 < copies) left = share[slots[++place]];
            RANK_EQUAL(ctx, got[i], slots[place]);
            left -= 1;
            total += 1;
        }
        for (int copy = 1; copy < copies; ++copy) {
            if (rank_of(scene, slots[copy]) == rank_of(scene, slots[copy - 1])) RANK_EQUAL(ctx, share[slots[copy]], 0);
        }
        if (copies > 1 && total > 0) last = expert;
    }
    if (last < 0) return;
    int copies = copies_of(scene, last, slots);
    for (int a = 0; a < copies; ++a) {
        for (int b = 0; b < copies && share[slots[a]] > 0; ++b) {
            RANK_CHECK(ctx, level[rank_of(scene, slots[a])] <= level[rank_of(scene, slots[b])] + 1);
        }
    }
}

static void check_route(rank_context *ctx, const struct scene *scene, const int64_t *got, const int64_t *counts) {
    static int64_t expected_counts[MAX_SLOTS];
    int32_t slots[MAX_SLOTS];
    for (int slot = 0; slot < scene->shape.slots; ++slot) expected_counts[slot] = 7;
    const int used = used_tokens(scene) * scene->args.top_k;
    for (int i = 0; i < scene->args.num_tokens * scene->args.top_k; ++i) {
        if (i >= used) {
            int64_t poison = 0;
            memset(&poison, GUARDED_POISON, 8);
            if (scene->args.ids_dtype == MOELINK_DTYPE_I32) poison = (int32_t)poison;
            RANK_EQUAL(ctx, got[i], scene->in_place ? scene->ids[i] : poison);
            continue;
        }
        int copies = copies_of(scene, scene->ids[i], slots), found = 0;
        if (scene->ids[i] < 0 || copies == 0) {
            RANK_EQUAL(ctx, got[i], -1);
            continue;
        }
        for (int copy = 0; copy < copies; ++copy) found += slots[copy] == got[i];
        RANK_EQUAL(ctx, found, 1);
        expected_counts[got[i]] += scene->has_counts;
        if (scene->args.policy == MOELINK_EPLB_ROUND_ROBIN) {
            uint32_t turn = (uint32_t)scene->args.seed + (uint32_t)(i / scene->args.top_k);
            RANK_EQUAL(ctx, got[i], slots[turn % (uint32_t)copies]);
        }
    }
    for (int slot = 0; slot < scene->shape.slots; ++slot) RANK_EQUAL(ctx, counts[slot], expected_counts[slot]);
    if (scene->args.policy == MOELINK_EPLB_CAPACITY) check_shares(ctx, scene, got);
}

static moelink_group *host_group(rank_context *ctx) {
    moelink_group *group = NULL;
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.device = MOELINK_DEVICE_HOST;
    RANK_OK(ctx, moelink_group_create_threads(1, &params, &group));
    return group;
}

/* On CUDA: the host device gives the same. */
static void check_against_host(rank_context *ctx, const struct scene *scene, const int64_t *got, const int64_t *counts) {
    static int64_t ids[MAX_IDS], host_counts[MAX_SLOTS];
    rank_context host = *ctx;
    host.device = MOELINK_DEVICE_HOST;
    host.group = host_group(ctx);
    moelink_eplb_map *map = NULL;
    RANK_OK(ctx, moelink_eplb_map_create(host.group, &scene->shape, scene->phy2log, &map));
    call_route(&host, map, scene, NULL, ids, host_counts);
    for (int i = 0; i < scene->args.num_tokens * scene->args.top_k; ++i) RANK_EQUAL(ctx, got[i], ids[i]);
    for (int slot = 0; slot < scene->shape.slots; ++slot) RANK_EQUAL(ctx, counts[slot], host_counts[slot]);
    moelink_eplb_map_destroy(map);
    moelink_group_destroy(host.group);
}

static void random_scenes(rank_context *ctx) {
    static struct scene scene;
    static int64_t got[MAX_IDS], counts[MAX_SLOTS];
    moelink_stream stream = device_stream_create(ctx);
    int scenes = (int)test_number("MOELINK_TEST_CASES", 300);
    for (int i = 0; i < scenes; ++i) {
        uint64_t seed = test_number("MOELINK_TEST_SEED", 1) + (uint64_t)i;
        random_scene(seed, &scene);
        rank_scene(ctx, "seed %llu: policy %d, %d experts in %d slots of %d ranks, %d tokens x %d, bound %d", (unsigned long long)seed, scene.args.policy,
                   scene.shape.experts, scene.shape.slots, scene.shape.ranks, scene.args.num_tokens, scene.args.top_k, scene.bound);
        moelink_eplb_map *map = NULL;
        RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &scene.shape, scene.phy2log, &map));
        call_route(ctx, map, &scene, stream, got, counts);
        check_route(ctx, &scene, got, counts);
        if (ctx->device == MOELINK_DEVICE_CUDA) check_against_host(ctx, &scene, got, counts);
        moelink_eplb_map_destroy(map);
    }
    device_stream_destroy(ctx, stream);
    rank_scene(ctx, "%s", "");
}

/* A call captured once follows map updates and new ids. */
static void graphs(rank_context *ctx) {
    if (ctx->device != MOELINK_DEVICE_CUDA) return;
    static struct scene scene;
    static int64_t got[MAX_IDS], counts[MAX_SLOTS];
    moelink_stream stream = device_stream_create(ctx);
    for (int policy = MOELINK_EPLB_ROUND_ROBIN; policy <= MOELINK_EPLB_CAPACITY; ++policy) {
        random_scene(5, &scene);
        scene.args.policy = policy;
        scene.args.num_tokens = 100;
        scene.args.top_k = 4;
        scene.args.ids_dtype = MOELINK_DTYPE_I64;
        scene.bound = -2;
        scene.in_place = scene.has_room = 0;
        scene.has_counts = 1;
        const uint64_t bytes = 400 * 8, count_bytes = (uint64_t)scene.shape.slots * 8;
        moelink_eplb_map *map = NULL;
        RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &scene.shape, scene.phy2log, &map));
        guarded in = guarded_make(ctx, bytes, 0), out = guarded_make(ctx, bytes, 0), counters = guarded_make(ctx, count_bytes, 0);
        moelink_eplb_route_args args = scene.args;
        args.logical_ids = in.data;
        args.physical_ids = out.data;
        args.slot_counts = (int64_t *)counters.data;
        device_capture_begin(ctx, stream);
        RANK_OK(ctx, moelink_eplb_route(map, &args, stream));
        RANK_STATUS(ctx, moelink_eplb_map_update(map, 0, 1, scene.phy2log, stream), MOELINK_ERR_INVALID_STATE);
        device_graph *graph = device_capture_end(ctx, stream);
        uint64_t random = 9;
        for (int replay = 0; replay < 20; ++replay) {
            rank_scene(ctx, "policy %d, replay %d", policy, replay);
            random_map(&random, &scene.shape, scene.phy2log);
            RANK_OK(ctx, moelink_eplb_map_update(map, 0, scene.shape.layers, scene.phy2log, stream));
            for (int i = 0; i < 400; ++i) scene.ids[i] = random_range(&random, -1, scene.shape.experts - 1);
            device_sync(ctx, stream);
            device_copy(ctx, in.data, scene.ids, bytes);
            for (int slot = 0; slot < scene.shape.slots; ++slot) counts[slot] = 7;
            device_copy(ctx, counters.data, counts, count_bytes);
            device_replay(ctx, graph, stream);
            device_sync(ctx, stream);
            device_copy(ctx, got, out.data, bytes);
            device_copy(ctx, counts, counters.data, count_bytes);
            check_route(ctx, &scene, got, counts);
            check_against_host(ctx, &scene, got, counts);
        }
        device_graph_destroy(ctx, graph);
        guarded_check(ctx, &out, "ids");
        guarded_check(ctx, &counters, "counters");
        guarded_free(ctx, &in);
        guarded_free(ctx, &out);
        guarded_free(ctx, &counters);
        moelink_eplb_map_destroy(map);
    }
    device_stream_destroy(ctx, stream);
}

/* An update of some layers changes those only. */
static void updates(rank_context *ctx) {
    static struct scene scene;
    static int64_t got[MAX_IDS], counts[MAX_SLOTS];
    moelink_stream stream = device_stream_create(ctx);
    uint64_t random = 3;
    memset(&scene, 0, sizeof(scene));
    moelink_eplb_shape_init(&scene.shape);
    scene.shape.layers = 3;
    scene.shape.experts = 12;
    scene.shape.ranks = 4;
    scene.shape.slots = 20;
    moelink_eplb_route_args_init(&scene.args);
    scene.args.policy = MOELINK_EPLB_CAPACITY;
    scene.args.num_tokens = 150;
    scene.args.top_k = 3;
    scene.bound = -2;
    scene.has_counts = 1;
    for (int i = 0; i < 450; ++i) scene.ids[i] = random_range(&random, -1, 11);
    random_map(&random, &scene.shape, scene.phy2log);
    moelink_eplb_map *map = NULL;
    RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &scene.shape, scene.phy2log, &map));
    moelink_eplb_shape one = scene.shape;
    for (int round = 0; round < 6; ++round) {
        int layer = round % 3;
        one.layers = 1;
        random_map(&random, &one, scene.phy2log + layer * one.slots);
        RANK_OK(ctx, moelink_eplb_map_update(map, layer, 1, scene.phy2log + layer * one.slots, stream));
        for (scene.args.layer = 0; scene.args.layer < 3; ++scene.args.layer) {
            call_route(ctx, map, &scene, stream, got, counts);
            check_route(ctx, &scene, got, counts);
        }
    }
    /* What is refused changes nothing. */
    int32_t kept = scene.phy2log[one.slots + 1];
    scene.phy2log[one.slots + 1] = scene.shape.experts;
    RANK_STATUS(ctx, moelink_eplb_map_update(map, 0, 3, scene.phy2log, stream), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "layer 1, slot 1");
    scene.phy2log[one.slots + 1] = kept;
    int32_t *second = scene.phy2log + one.slots;
    for (int slot = 0; slot < one.slots; ++slot) second[slot] = second[slot] == 0 ? -1 : second[slot];
    RANK_STATUS(ctx, moelink_eplb_map_update(map, 1, 1, second, stream), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "no slot for expert 0 in layer 1");
    RANK_STATUS(ctx, moelink_eplb_map_update(map, 2, 2, scene.phy2log, stream), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "layers 2 .. 3");
    RANK_STATUS(ctx, moelink_eplb_map_update(map, 0, 1, NULL, stream), MOELINK_ERR_INVALID_ARGUMENT);
    moelink_eplb_map_destroy(map);
    device_stream_destroy(ctx, stream);
}

static void refusals(rank_context *ctx) {
    static const int32_t phy2log[] = {0, 1, 1, 0};
    int32_t ids[4] = {0, 1, 1, -1}, out[4] = {9, 9, 9, 9};
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.experts = 2;
    shape.slots = 4;
    shape.ranks = 2;
    moelink_eplb_map *map = NULL;
    RANK_STATUS(ctx, moelink_eplb_map_create(NULL, &shape, phy2log, &map), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_map_create(ctx->group, NULL, phy2log, &map), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_map_create(ctx->group, &shape, NULL, &map), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_map_create(ctx->group, &shape, phy2log, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_CHECK(ctx, map == NULL);
    uint64_t bytes = 0;
    RANK_OK(ctx, moelink_eplb_map_query(&shape, &bytes));
    RANK_CHECK(ctx, bytes >= 4 * (4 + 4 + 3));
    RANK_STATUS(ctx, moelink_eplb_map_query(&shape, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &shape, phy2log, &map));
    moelink_eplb_route_args good = MOELINK_EPLB_ROUTE_ARGS_INIT;
    good.num_tokens = 2;
    good.top_k = 2;
    good.logical_ids = ids;
    good.physical_ids = out;
    static const struct {
        size_t offset;
        int32_t value;
        const char *text;
    } wrong[] = {
        {offsetof(moelink_eplb_route_args, struct_size), 0, "struct_size"},
        {offsetof(moelink_eplb_route_args, layer), 1, "layer is 1"},
        {offsetof(moelink_eplb_route_args, layer), -1, "layer is -1"},
        {offsetof(moelink_eplb_route_args, policy), 0, "policy is 0"},
        {offsetof(moelink_eplb_route_args, policy), 4, "policy is 4"},
        {offsetof(moelink_eplb_route_args, num_tokens), -1, "num_tokens is -1"},
        {offsetof(moelink_eplb_route_args, num_tokens), 1 << 30, "1073741824 tokens with 2 ids"},
        {offsetof(moelink_eplb_route_args, top_k), 0, "top_k is 0"},
        {offsetof(moelink_eplb_route_args, ids_dtype), MOELINK_DTYPE_F32, "ids_dtype is 1"},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); ++i) {
        moelink_eplb_route_args args = good;
        memcpy((char *)&args + wrong[i].offset, &wrong[i].value, 4);
        RANK_STATUS(ctx, moelink_eplb_route(map, &args, NULL), MOELINK_ERR_INVALID_ARGUMENT);
        RANK_TEXT(ctx, moelink_last_error(), wrong[i].text);
    }
    moelink_eplb_route_args args = good;
    args.logical_ids = NULL;
    RANK_STATUS(ctx, moelink_eplb_route(map, &args, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    args = good;
    args.physical_ids = NULL;
    RANK_STATUS(ctx, moelink_eplb_route(map, &args, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    args.num_tokens = 0;
    RANK_OK(ctx, moelink_eplb_route(map, &args, NULL));
    RANK_STATUS(ctx, moelink_eplb_route(NULL, &good, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_eplb_route(map, NULL, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    for (int i = 0; i < 4; ++i) RANK_EQUAL(ctx, out[i], 9);
    moelink_eplb_map_destroy(map);
    moelink_eplb_map_destroy(NULL);
}

/* Two experts with copies share a rank; the best split of both is found by trying all. */
static void near_the_best(rank_context *ctx) {
    static const int32_t phy2log[] = {0, 1, 1, 2, 0, 1, 0, 3};
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.experts = 4;
    shape.slots = 8;
    shape.ranks = 4;
    moelink_eplb_map *map = NULL;
    RANK_OK(ctx, moelink_eplb_map_create(ctx->group, &shape, phy2log, &map));
    uint64_t random = 17;
    for (int round = 0; round < 200; ++round) {
        int64_t ids[400], counts[8] = {0}, n[4] = {0}, room[4];
        for (int i = 0; i < 400; ++i) {
            ids[i] = random_chance(&random, 40) ? round % 4 : random_range(&random, -1, 3);
            if (ids[i] >= 0) ++n[ids[i]];
        }
        for (int rank = 0; rank < 4; ++rank) room[rank] = random_range(&random, 0, 100);
        moelink_eplb_route_args args = MOELINK_EPLB_ROUTE_ARGS_INIT;
        args.policy = MOELINK_EPLB_CAPACITY;
        args.num_tokens = 400;
        args.top_k = 1;
        args.ids_dtype = MOELINK_DTYPE_I64;
        args.seed = (uint64_t)round;
        args.logical_ids = args.physical_ids = ids;
        args.rank_room = room;
        args.slot_counts = counts;
        RANK_OK(ctx, moelink_eplb_route(map, &args, NULL));
        /* Expert 0 is on ranks 0, 2, 3; expert 1 on 0, 1, 2. */
        int64_t got = -1000, best = 1000000;
        for (int rank = 0; rank < 4; ++rank) {
            int64_t level = counts[2 * rank] + counts[2 * rank + 1] - room[rank];
            got = level > got ? level : got;
        }
        for (int64_t a = 0; a <= n[0]; ++a) {
            for (int64_t b = 0; a + b <= n[0]; ++b) {
                for (int64_t c = 0; c <= n[1]; ++c) {
                    int64_t base[4] = {a + c - room[0], n[2] - room[1], b - room[2], n[0] - a - b + n[3] - room[3]};
                    /* The rest of expert 1 goes to ranks 1 and 2, as even as that can be. */
                    int64_t rest = n[1] - c, high = base[1] > base[2] ? base[1] : base[2];
                    int64_t both = base[1] + base[2] + rest;
                    int64_t even = both >= 0 ? (both + 1) / 2 : -(-both / 2);
                    int64_t most = high > even ? high : even;
                    most = base[0] > most ? base[0] : most;
                    most = base[3] > most ? base[3] : most;
                    best = most < best ? most : best;
                }
            }
        }
        rank_scene(ctx, "round %d: largest level %lld, best %lld", round, (long long)got, (long long)best);
        RANK_CHECK(ctx, got >= best);
        RANK_CHECK(ctx, got <= best + 3);
    }
    moelink_eplb_map_destroy(map);
}

static void run(rank_function function, const char *name) {
    rank_options options = plan_options(TEST_DEVICE, name, 1, 0);
    PLAN_RUN(&options, function);
}

static void test_random_scenes(void **state) {
    (void)state;
    run(random_scenes, "random routes");
}

static void test_updates(void **state) {
    (void)state;
    run(updates, "updates of a map");
}

static void test_graphs(void **state) {
    (void)state;
    run(graphs, "routes in graphs");
}

/* Of the interface, not of a device. */
static void test_refusals(void **state) {
    (void)state;
    rank_options options = plan_options(MOELINK_DEVICE_HOST, "refusals", 1, 0);
    PLAN_RUN(&options, refusals);
}

static void test_near_the_best(void **state) {
    (void)state;
    rank_options options = plan_options(MOELINK_DEVICE_HOST, "splits", 1, 0);
    PLAN_RUN(&options, near_the_best);
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_scenes), cmocka_unit_test(test_updates),       cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_near_the_best),
    };
    return cmocka_run_group_tests_name("routes", tests, NULL, NULL);
}
