/* Live rows, and the rings that others are staged in, read over a network between processes that map nothing of each other: exact
 * bytes, what is refused and why, peers that die, nothing left behind. With MOELINK_TEST_FAKE_UCX or MOELINK_TEST_FAKE_NIXL (a path)
 * that network is the tests' own, which does as told, and the other is not there. Else it is this machine's UCX or, with
 * MOELINK_NIXL_LIBRARY, its NIXL, where tests of reading are skipped unless it reads without the peer's CPU. */
#include "countdown.h"
#include "exchange.h"
#include "leftovers.h"
#include "rearrange_model.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <cmocka.h>

enum { SLOTS = 3, EXPERTS = 9, VICTIM = 1 };

struct plan {
    int32_t kind;
    int place;
    uint32_t flags;
    uint64_t scale;
    int step;         /* of the victim; -1: nobody dies */
    const char *fake; /* told to the fake once the layer is registered */
    const char *why;  /* staged, with this reason; NULL: read */
};

static const struct plan plain = {MOELINK_EPLB_COMM_READ, EXCHANGE_PLAIN, 0, 40, -1, NULL, NULL};
static const int32_t kinds[] = {MOELINK_EPLB_COMM_READ, MOELINK_EPLB_COMM_STAGED};

static int run_ranks(int size, int threads, const struct plan *plan, const char *name, rank_function function) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.user = (void *)plan;
    options.name = name;
    options.seed = 11;
    return ranks_run(&options, function);
}

#define NOWHERE "/nowhere/library.so"

/* What is tested: "UCX" or "NIXL". */
static const char *network;
static int is_fake;

static int is_nixl(void) { return strcmp(network, "NIXL") == 0; }

/* A text of errors and descriptions about it. */
static const char *of_network(const char *format) {
    static char text[256];
    snprintf(text, sizeof(text), format, network);
    return text;
}

static int forget(void **state) {
    (void)state;
    return unsetenv("MOELINK_FAKE_NETWORK");
}

static void on_signal(int number) { (void)number; }

static moelink_eplb_comm *make(rank_context *ctx, const struct plan *plan, int experts) {
    return exchange_comm(ctx, plan->kind, experts, plan->flags | MOELINK_EPLB_COMM_F_NO_MAP);
}

/* Nobody reads any more when the communicator and its layers go. */
static void end(rank_context *ctx, moelink_eplb_comm *comm, exchange_layer *layers, int count) {
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    moelink_eplb_comm_destroy(comm);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    for (int i = 0; i < count; ++i) exchange_free(ctx, &layers[i]);
}

/* A communicator with one small layer, and what it says of itself. */
typedef struct described {
    moelink_eplb_comm *comm;
    exchange_layer layer;
    moelink_eplb_comm_info info;
    char reasons[4096];
} described;

static void describe(rank_context *ctx, int slots, described *one) {
    const moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    one->info = info;
    one->comm = make(ctx, ctx->user, slots);
    one->layer = exchange_make(ctx, 0, slots, 4, EXCHANGE_PLAIN);
    exchange_register(ctx, one->comm, &one->layer);
    RANK_OK(ctx, moelink_eplb_comm_describe(one->comm, &one->info, one->reasons, sizeof(one->reasons)));
}

/* --- can this machine's UCX read? --- */

static void probe(rank_context *ctx) {
    described one;
    describe(ctx, 1, &one);
    if (one.info.read_peers == 0) RANK_FAIL(ctx, "%s", one.reasons);
    end(ctx, one.comm, &one.layer, 1);
}

/* Whether ranks can do it; if not, says why. In processes of their own, so that this one never loads a network. */
static int succeeds(int size, rank_function function, const char *so) {
    static char report[8192];
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.user = (void *)&plain;
    options.no_finalize = 1;
    options.report = report;
    options.report_bytes = sizeof(report);
    if (ranks_run(&options, function) == 0) return 1;
    print_message("%s:\n%s\n", so, report);
    return 0;
}

static int can_read(void) {
    static int known = -1;
    if (known < 0) known = succeeds(2, probe, "nothing here reads without the peer's CPU, so reads are not tested");
    return known;
}

static void load(rank_context *ctx) {
    char text[512];
    if (moelink_device_library("ucx", text, sizeof(text)) != MOELINK_OK) RANK_FAIL(ctx, "%s", text);
    RANK_TEXT(ctx, text, "UCX ");
}

#define NEEDS_READS() \
    do {              \
        if (!can_read()) skip(); \
    } while (0)

/* --- exact bytes --- */

static void expect_ways(rank_context *ctx, moelink_eplb_comm *comm, const struct plan *plan, uint64_t expert_bytes) {
    char reasons[4096];
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, reasons, sizeof(reasons)));
    RANK_OK(ctx, moelink_eplb_comm_stats_of(comm, &stats));
    const int reads = plan->why == NULL, staged = plan->kind == MOELINK_EPLB_COMM_STAGED;
    RANK_EQUAL(ctx, info.read_peers, reads && !staged ? ctx->size - 1 : 0);
    RANK_EQUAL(ctx, info.staged_peers, reads && !staged ? 0 : ctx->size - 1);
    RANK_EQUAL(ctx, stats.failed_rounds, 0);
    RANK_EQUAL(ctx, stats.received_bytes[MOELINK_EPLB_LINK_LOCAL], 0);
    RANK_EQUAL(ctx, stats.received_bytes[MOELINK_EPLB_LINK_PEER], 0);
    RANK_EQUAL(ctx, stats.received_bytes[reads ? MOELINK_EPLB_LINK_HOST : MOELINK_EPLB_LINK_NETWORK], 0);
    RANK_EQUAL(ctx, stats.received_bytes[reads ? MOELINK_EPLB_LINK_NETWORK : MOELINK_EPLB_LINK_HOST], stats.experts_received * expert_bytes);
    RANK_CHECK(ctx, stats.experts_received > 0);
    if (staged) {
        RANK_TEXT(ctx, reasons, reads ? of_network("is staged over %s ") : "is staged over the group's connections: UCX: ");
    } else {
        RANK_TEXT(ctx, reasons, reads ? of_network("is read over %s ") : "is staged: tensor 0 of layer 3: params.flags has NO_MAP; ");
    }
    if (!reads) RANK_TEXT(ctx, reasons, plan->why);
}

static void moves(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    int32_t maps[2][EXCHANGE_MAX_SLOTS];
    exchange_layer layers[2];
    if (signal(SIGFPE, on_signal) == SIG_ERR) RANK_FAIL(ctx, "signal");
    moelink_eplb_comm *comm = make(ctx, plan, SLOTS);
    RANK_CHECK(ctx, signal(SIGFPE, SIG_DFL) == on_signal); /* networks take signals over when they are loaded */
    for (int i = 0; i < 2; ++i) {
        layers[i] = exchange_make(ctx, 3 + i, SLOTS, plan->scale, plan->place);
        if (plan->fake != NULL) setenv("MOELINK_FAKE_NETWORK", plan->fake, 1);
        exchange_register(ctx, comm, &layers[i]);
        exchange_register(ctx, comm, &layers[i]); /* again: new keys */
    }
    for (int round = 0; round < 4; ++round) {
        exchange_layer *layer = &layers[round % 2];
        rank_scene(ctx, "round %d", round);
        for (int i = 0; i < 2; ++i) exchange_map(ctx->seed + (uint64_t)(2 * round + i), ctx->size, SLOTS, EXPERTS, maps[i]);
        exchange_fill(ctx, layer, maps[0] + ctx->rank * SLOTS);
        exchange_run(ctx, comm, layer, maps[0], maps[1]);
    }
    expect_ways(ctx, comm, plan, exchange_expert_bytes(&layers[0]));
    end(ctx, comm, layers, 2);
}

static void test_reads(void **state) {
    (void)state;
    NEEDS_READS();
    for (int ranks = 3; ranks <= 6; ++ranks) {
        for (int place = 0; place < EXCHANGE_PLACES; ++place) {
            struct plan plan = plain;
            plan.place = place;
            plan.flags = ranks == 4 ? MOELINK_EPLB_COMM_F_CHECKSUM : 0;
            plan.scale = ranks == 5 ? 3000 : 40; /* many pieces */
            for (int kind = 0; kind < 2; ++kind) {
                plan.kind = kinds[kind];
                assert_int_equal(run_ranks(ranks, 0, &plan, "reads", moves), 0);
            }
        }
    }
}

/* --- into memory that the network does not know --- */

static void lands_anywhere(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    exchange_layer layer = exchange_make(ctx, 3, 1, plan->scale, EXCHANGE_PLAIN);
    exchange_layer landing = exchange_make(ctx, layer.number, ctx->size, plan->scale, EXCHANGE_PLAIN);
    moelink_eplb_comm *comm = make(ctx, plan, 0);
    exchange_register(ctx, comm, &layer);
    for (int round = 0; round < 2; ++round) exchange_direct(ctx, comm, &layer, &landing);
    exchange_free(ctx, &landing);
    end(ctx, comm, &layer, 1);
}

static void test_direct(void **state) {
    (void)state;
    NEEDS_READS();
    struct plan plan = plain;
    plan.flags = MOELINK_EPLB_COMM_F_DIRECT;
    plan.scale = 500;
    assert_int_equal(run_ranks(3, 0, &plan, "direct", lands_anywhere), 0);
}

/* --- other memory for a layer, where earlier memory was --- */

static void registers_again(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    int32_t from[64], to[64];
    char reasons[4096];
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    exchange_two_maps(ctx->size, SLOTS, from, to);
    moelink_eplb_comm *comm = make(ctx, plan, SLOTS);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, plan->scale, EXCHANGE_PLAIN);
    exchange_register(ctx, comm, &layer);
    for (int turn = 0; turn < 5; ++turn) {
        rank_scene(ctx, "turn %d", turn);
        exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
        exchange_run(ctx, comm, &layer, from, to);
        RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, reasons, sizeof(reasons)));
        if (info.read_peers != ctx->size - 1) RANK_FAIL(ctx, "%s", reasons);
        exchange_layer other = exchange_make(ctx, 0, SLOTS, plan->scale + (uint64_t)(turn % 2), EXCHANGE_PLAIN);
        exchange_register(ctx, comm, &other);
        exchange_free(ctx, &layer); /* register is collective, so nobody reads it any more; the next may lie there */
        layer = other;
    }
    end(ctx, comm, &layer, 1);
}

static void test_registered_again(void **state) {
    (void)state;
    NEEDS_READS();
    assert_int_equal(run_ranks(3, 0, &plain, "registered again", registers_again), 0);
}

/* --- batches of a rearrangement, several under way --- */

static void rearranged(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    const model_options options = {.layers = 3, .slots = 5, .experts = 14, .kind = plan->kind, .staging = 4, .flags = MOELINK_EPLB_COMM_F_NO_MAP,
                                   .overlap = MOELINK_EPLB_OVERLAP_ALWAYS, .scale = plan->scale};
    rearrange_model model = model_make(ctx, &options);
    const moelink_eplb_rearrange_params params = model_params(&model);
    const moelink_eplb_rearrange_result result = model_rearrange(ctx, &model, &params);
    RANK_CHECK(ctx, result.overlapped > 2);
    RANK_EQUAL(ctx, result.link_bytes[MOELINK_EPLB_LINK_HOST], 0);
    RANK_CHECK(ctx, result.link_bytes[MOELINK_EPLB_LINK_NETWORK] > 0);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    model_free(ctx, &model);
}

static void test_rearranged(void **state) {
    (void)state;
    NEEDS_READS();
    for (int kind = 0; kind < 2; ++kind) {
        struct plan plan = plain;
        plan.kind = kinds[kind];
        plan.scale = 500;
        assert_int_equal(run_ranks(4, 0, &plan, "rearranged", rearranged), 0);
    }
}

/* --- ranks of one process need no mapping --- */

static void threads_read(rank_context *ctx) {
    int32_t map[] = {0, 1, 2, 3}, next[] = {2, 3, 0, 1};
    moelink_eplb_comm *comm = make(ctx, &plain, 2);
    exchange_layer layer = exchange_make(ctx, 0, 2, 4, EXCHANGE_PLAIN);
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    exchange_register(ctx, comm, &layer);
    exchange_fill(ctx, &layer, map + 2 * ctx->rank);
    exchange_run(ctx, comm, &layer, map, next);
    RANK_OK(ctx, moelink_eplb_comm_stats_of(comm, &stats));
    RANK_EQUAL(ctx, stats.received_bytes[MOELINK_EPLB_LINK_PEER], 2 * exchange_expert_bytes(&layer));
    end(ctx, comm, &layer, 1);
}

static void test_one_process(void **state) {
    (void)state;
    assert_int_equal(run_ranks(2, 1, &plain, "one process", threads_read), 0);
}

/* --- refused --- */

static void run_refused(const char *name, const char *why, const char *later) {
    struct plan plan = plain;
    plan.why = why;
    plan.fake = later;
    for (int kind = 0; kind < (later == NULL ? 2 : 1); ++kind) { /* what is staged is not registered */
        plan.kind = kinds[kind];
        assert_int_equal(run_ranks(3, 0, &plan, name, moves), 0);
    }
}

/* A variable of the environment with another value, and back. */
static char *change(const char *name, const char *value) {
    const char *before = getenv(name);
    char *kept = before != NULL ? strdup(before) : NULL;
    setenv(name, value, 1);
    return kept;
}

static void change_back(const char *name, char *kept) {
    if (kept != NULL) {
        setenv(name, kept, 1);
    } else {
        unsetenv(name);
    }
    free(kept);
}

static void test_absent(void **state) {
    (void)state;
    char *ucx = change("MOELINK_UCX_LIBRARY", NOWHERE), *nixl = change("MOELINK_NIXL_LIBRARY", NOWHERE);
    run_refused("absent", TEST_UCX ? "UCX: " NOWHERE : "UCX: this MoELink was built without UCX's headers", NULL);
    run_refused("absent", "; NIXL: " NOWHERE, NULL);
    change_back("MOELINK_UCX_LIBRARY", ucx);
    change_back("MOELINK_NIXL_LIBRARY", nixl);
}

/* TCP needs the peer's CPU, in every release. */
static void test_tcp(void **state) {
    (void)state;
    if (is_fake || is_nixl()) skip();
    if (!succeeds(1, load, "UCX is not here, so its refusals are not tested")) skip();
    char *transports = change("UCX_TLS", "tcp");
    run_refused("tcp", "here needs the peer's CPU (transport tcp/", NULL);
    change_back("UCX_TLS", transports);
}

struct refusal {
    const char *told;
    const char *why;
};

static const struct refusal ucx_refusals[] = {
    {"cpu", "UCX: UCX 0.0.0 here needs the peer's CPU (transport fake/host0, fake/host1)"},
    {"wrong", "UCX: what UCX 0.0.0 reads is not what rank "},
    {"lost", "UCX: UCX did not read from rank "},
    {"stuck", "UCX: a first read did not come in time"},
    {"unmapped", "UCX: ucp_mem_map: a fake failure"},
    {"device", "UCX: UCX takes it for memory of type 1, not 0"},
    {"unreachable", "UCX: ucp_ep_create: a fake failure"},
};

static const struct refusal nixl_refusals[] = {
    {"cpu", "NIXL: NIXL here needs the peer's CPU (transport UCX)"},
    {"wrong", "NIXL: what NIXL reads is not what rank "},
    {"lost", "NIXL: NIXL did not read from rank "},
    {"stuck", "NIXL: a first read did not come in time"},
    {"unmapped", "NIXL: nixl_capi_register_mem: NIXL's status -2 "},
    {"unreachable", "NIXL: nixl_capi_agent_make_connection: NIXL's status -2 "},
    {"backend", "NIXL: nixl_capi_create_backend: NIXL's status -2 "},
    {"plugin", "has no plugin UCX (NIXL_PLUGIN_DIR names the folder of plugins)"},
    {"stub", "is a stub, without NIXL behind it"},
    {"numbers", "is of a release of NIXL with other numbers: its memory 0 is not DRAM"},
};

static void test_fake_refusals(void **state) {
    (void)state;
    if (!is_fake) skip();
    const struct refusal *refusals = is_nixl() ? nixl_refusals : ucx_refusals;
    const size_t count = is_nixl() ? sizeof(nixl_refusals) / sizeof(nixl_refusals[0]) : sizeof(ucx_refusals) / sizeof(ucx_refusals[0]);
    for (size_t i = 0; i < count; ++i) {
        setenv("MOELINK_FAKE_NETWORK", refusals[i].told, 1);
        run_refused(refusals[i].told, refusals[i].why, NULL);
    }
    forget(NULL);
    /* Memory that cannot be registered, though other memory is read. */
    run_refused("no layer", is_nixl() ? "NIXL: tensor 0 of layer 3: nixl_capi_register_mem: NIXL's status -2" : "UCX: tensor 0 of layer 3: ucp_mem_map: a fake failure",
                "unmapped");
}

/* The network that reads the most ranks is taken, the first of those that read as many. */
static void chooses(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    described one;
    const int none_without = plan->why == NULL; /* rank 1 lacks UCX and, where that is asked for, rank 2 NIXL */
    if (ctx->rank == 1) setenv("MOELINK_FAKE_NETWORK", "no-ucx", 1);
    if (ctx->rank == 2 && !none_without) setenv("MOELINK_FAKE_NETWORK", "plugin", 1);
    describe(ctx, SLOTS, &one);
    const int reads = none_without ? 2 : ctx->rank == 1 ? 0 : 1;
    RANK_EQUAL(ctx, one.info.read_peers, reads);
    RANK_EQUAL(ctx, one.info.staged_peers, 2 - reads);
    if (reads > 0) RANK_TEXT(ctx, one.reasons, none_without ? "is read over NIXL (UCX)" : "is read over UCX 0.0.0 (");
    if (reads < 2) RANK_TEXT(ctx, one.reasons, ctx->rank == 1 ? "UCX: ucp_init: a fake failure; NIXL: " : plan->why);
    int32_t from[64], to[64];
    exchange_two_maps(ctx->size, SLOTS, from, to);
    exchange_fill(ctx, &one.layer, from + ctx->rank * SLOTS);
    exchange_run(ctx, one.comm, &one.layer, from, to);
    end(ctx, one.comm, &one.layer, 1);
}

static void test_fake_choice(void **state) {
    (void)state;
    if (!is_fake || !is_nixl() || getenv("MOELINK_TEST_FAKE_UCX_TOO") == NULL) skip();
    char *ucx = change("MOELINK_UCX_LIBRARY", getenv("MOELINK_TEST_FAKE_UCX_TOO"));
    struct plan plan = plain;
    assert_int_equal(run_ranks(3, 0, &plan, "second", chooses), 0);
    plan.why = "UCX: on rank 1: ucp_init: a fake failure; NIXL: ";
    assert_int_equal(run_ranks(3, 0, &plan, "as many", chooses), 0);
    change_back("MOELINK_UCX_LIBRARY", ucx);
}

/* A rank may still be making progress for its peers when the first of them has begun to read without that. */
static void sleeps(rank_context *ctx) {
    for (int i = 0; i < 6; ++i) {
        described one;
        rank_scene(ctx, "communicator %d", i);
        describe(ctx, 1, &one);
        RANK_EQUAL(ctx, one.info.read_peers, 0);
        RANK_TEXT(ctx, one.reasons, "here needs the peer's CPU");
        end(ctx, one.comm, &one.layer, 1);
    }
}

static void test_fake_sleeps(void **state) {
    (void)state;
    if (!is_fake) skip();
    setenv("MOELINK_FAKE_NETWORK", "slow", 1);
    assert_int_equal(run_ranks(2, 0, &plain, "sleeps", sleeps), 0);
}

/* Reads that are under way when a meeting fails land nowhere else. */
static void meets_nobody(rank_context *ctx) {
    moelink_eplb_comm *comm = NULL;
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    params.flags = MOELINK_EPLB_COMM_F_NO_MAP;
    params.timeout_ns = (uint64_t)ranks_scaled_ms(2000) * 1000000u;
    setenv("MOELINK_FAKE_NETWORK", ctx->rank == VICTIM ? "dies" : "stuck", 1);
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, MOELINK_EPLB_COMM_READ, &comm));
    RANK_STATUS(ctx, moelink_eplb_comm_init(comm, &params), MOELINK_ERR_PEER_EXITED);
    moelink_eplb_comm_destroy(comm);
}

static void test_fake_meeting(void **state) {
    static const int victim = VICTIM;
    (void)state;
    if (!is_fake) skip();
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = 2;
    options.user = (void *)&plain;
    options.name = "a meeting that fails";
    options.no_finalize = 1;
    options.dying = &victim;
    options.dying_count = 1;
    assert_int_equal(ranks_run(&options, meets_nobody), 0);
}

/* Ranks in islands read those of their own, whatever else there is. */
static void islands(rank_context *ctx) {
    described one;
    if (ctx->rank == 2) setenv("MOELINK_FAKE_NETWORK", "deaf", 1);
    describe(ctx, 1, &one);
    RANK_EQUAL(ctx, one.info.read_peers, ctx->rank == 2 ? 0 : 1);
    end(ctx, one.comm, &one.layer, 1);
}

static void test_fake_islands(void **state) {
    (void)state;
    if (!is_fake) skip();
    assert_int_equal(run_ranks(3, 0, &plain, "islands", islands), 0);
}

/* --- a round that fails --- */

/* A round in which rank 0's network does as the plan says, and which must fail on all ranks as it says. */
static void fail_round(rank_context *ctx, moelink_eplb_comm *comm, exchange_layer *layer, const int32_t *from, const int32_t *to,
                       moelink_status status) {
    const struct plan *plan = ctx->user;
    exchange_fill(ctx, layer, from + ctx->rank * SLOTS);
    if (ctx->rank == 0) setenv("MOELINK_FAKE_NETWORK", plan->fake, 1);
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, from, (int64_t)ctx->size * SLOTS, 0));
    exchange_queue(ctx, comm, layer, from, to);
    RANK_STATUS(ctx, moelink_eplb_comm_execute(comm), status);
    RANK_TEXT(ctx, moelink_last_error(), plan->why);
    exchange_check(ctx, layer, from + ctx->rank * SLOTS);
    unsetenv("MOELINK_FAKE_NETWORK");
}

/* On rank 0 the network fails in the round: nobody gets anything, and reinit heals. */
static void fails(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    int32_t from[64], to[64];
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    moelink_eplb_comm *comm = NULL;
    exchange_two_maps(ctx->size, SLOTS, from, to);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, 4, EXCHANGE_PLAIN);
    params.flags = MOELINK_EPLB_COMM_F_NO_MAP;
    params.timeout_ns = (uint64_t)ranks_scaled_ms(2000) * 1000000u;
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, plan->kind, &comm));
    RANK_OK(ctx, moelink_eplb_comm_init(comm, &params));
    exchange_register(ctx, comm, &layer);
    fail_round(ctx, comm, &layer, from, to, strcmp(plan->fake, "lost") == 0 ? MOELINK_ERR_PEER_UNREACHABLE : MOELINK_ERR_TIMEOUT);
    if (ctx->rank == 0) RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_POISONED);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    params.timeout_ns = 0;
    RANK_OK(ctx, moelink_eplb_comm_reinit(comm, &params));
    exchange_register(ctx, comm, &layer);
    exchange_run(ctx, comm, &layer, from, to);
    end(ctx, comm, &layer, 1);
}

static void test_fake_failures(void **state) {
    (void)state;
    if (!is_fake) skip();
    for (int kind = 0; kind < 2; ++kind) {
        struct plan plan = plain;
        plan.kind = kinds[kind];
        plan.fake = "lost";
        plan.why = is_nixl() ? "NIXL did not read from rank 1" : "UCX did not read from rank 1";
        assert_int_equal(run_ranks(3, 0, &plan, "lost", fails), 0);
        plan.fake = "stuck";
        plan.why = "3 experts of rank 1";
        assert_int_equal(run_ranks(3, 0, &plan, "stuck", fails), 0);
    }
}

/* What arrives wrong is found by its code, in the middle of a round; the communicator stays well. */
static void wrong(rank_context *ctx) {
    const struct plan *plan = ctx->user;
    int32_t from[64], to[64];
    exchange_two_maps(ctx->size, SLOTS, from, to);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, plan->scale, EXCHANGE_PLAIN);
    moelink_eplb_comm *comm = make(ctx, plan, SLOTS);
    exchange_register(ctx, comm, &layer);
    for (int turn = 0; turn < 6; ++turn) {
        rank_scene(ctx, "turn %d", turn);
        fail_round(ctx, comm, &layer, from, to, MOELINK_ERR_INTERNAL);
        RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_READY);
        exchange_run(ctx, comm, &layer, from, to);
    }
    end(ctx, comm, &layer, 1);
}

static void test_fake_wrong(void **state) {
    (void)state;
    if (!is_fake) skip();
    for (int kind = 0; kind < 2; ++kind) {
        struct plan plan = plain;
        plan.kind = kinds[kind];
        plan.flags = MOELINK_EPLB_COMM_F_CHECKSUM;
        plan.fake = "wrong";
        plan.why = "arrived with another code";
        plan.scale = 400; /* ten chunks an expert */
        assert_int_equal(run_ranks(3, 0, &plan, "wrong", wrong), 0);
    }
}

/* --- killed at each step --- */

enum { STEPS = 10 };

static void dies(rank_context *ctx) {
    static countdown steps;
    const struct plan *plan = ctx->user;
    int32_t from[64], to[64];
    exchange_two_maps(ctx->size, SLOTS, from, to);
    exchange_layer layer = exchange_make(ctx, 0, SLOTS, plan->scale, EXCHANGE_PLAIN);
    moelink_eplb_comm *comm = make(ctx, plan, SLOTS);
    exchange_register(ctx, comm, &layer);
    exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
    exchange_run(ctx, comm, &layer, from, to); /* ranks connect in their first round */
    exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, from, (int64_t)ctx->size * SLOTS, 0));
    exchange_queue(ctx, comm, &layer, from, to);
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    countdown_start(ctx, &steps, 2, VICTIM, plan->step);
    const moelink_status status = moelink_eplb_comm_execute(comm);
    countdown_stop(ctx);
    RANK_CHECK(ctx, ctx->rank != VICTIM);
    const int news = exchange_which(ctx, &layer, from + ctx->rank * SLOTS, to + ctx->rank * SLOTS);
    if (news < 0) RANK_FAIL(ctx, "slot %d holds neither what it held nor what it was to get", -2 - news);
    RANK_EQUAL(ctx, news, status == MOELINK_OK ? SLOTS : 0);
    if (status != MOELINK_OK) {
        if (status != MOELINK_ERR_PEER_EXITED && status != MOELINK_ERR_INVALID_STATE) RANK_FAIL(ctx, "%s", moelink_last_error());
        RANK_EQUAL(ctx, exchange_state(ctx, comm), MOELINK_EPLB_COMM_POISONED);
    }
    moelink_eplb_comm_destroy(comm);
    exchange_free(ctx, &layer);
}

static void test_killed(void **state) {
    static const int victim = VICTIM;
    (void)state;
    NEEDS_READS();
    for (int step = 0; step < 2 * STEPS; ++step) {
        struct plan plan = plain;
        plan.kind = kinds[step % 2];
        plan.step = step / 2;
        plan.scale = 30000; /* 3 MB an expert */
        rank_options options;
        memset(&options, 0, sizeof(options));
        options.size = 3;
        options.user = &plan;
        options.name = "killed";
        options.no_finalize = 1;
        options.dying = &victim;
        options.dying_count = 1;
        assert_int_equal(ranks_run(&options, dies), 0);
    }
}

/* --- nothing is left behind --- */

static void many(rank_context *ctx) {
    enum { TIMES = 20 };
    int32_t from[64], to[64];
    int files = 0, tasks = 0;
    long memory = 0;
    exchange_two_maps(ctx->size, SLOTS, from, to);
    for (int i = 0; i < TIMES; ++i) {
        rank_scene(ctx, "communicator %d", i);
        exchange_layer layer = exchange_make(ctx, 0, SLOTS, 4, EXCHANGE_PLAIN);
        moelink_eplb_comm *comm = make(ctx, ctx->user, SLOTS);
        exchange_register(ctx, comm, &layer);
        exchange_fill(ctx, &layer, from + ctx->rank * SLOTS);
        exchange_run(ctx, comm, &layer, from, to);
        end(ctx, comm, &layer, 1);
        if (i != 4) continue;
        files = settled_entries("/proc/self/fd", 0);
        tasks = settled_entries("/proc/self/task", 0);
        memory = resident_kib();
    }
    RANK_EQUAL(ctx, settled_entries("/proc/self/fd", files), files);
    RANK_EQUAL(ctx, settled_entries("/proc/self/task", tasks), tasks);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    (void)memory;
#else
    RANK_CHECK(ctx, resident_kib() < memory + 8192);
#endif
}

static void test_many(void **state) {
    (void)state;
    for (int kind = 0; kind < (can_read() ? 2 : 1); ++kind) {
        struct plan plan = plain;
        plan.kind = kinds[kind];
        assert_int_equal(run_ranks(2, 0, &plan, "many", many), 0); /* over a network or not: what it took is given back */
    }
}

/* A fake is the only network there is; this machine's NIXL is tested where it is named. */
static void choose_network(void) {
    const char *ucx = getenv("MOELINK_TEST_FAKE_UCX"), *nixl = getenv("MOELINK_TEST_FAKE_NIXL");
    is_fake = ucx != NULL || nixl != NULL;
    if (is_fake) {
        setenv("MOELINK_UCX_LIBRARY", ucx != NULL ? ucx : NOWHERE, 1);
        setenv("MOELINK_NIXL_LIBRARY", nixl != NULL ? nixl : NOWHERE, 1);
    }
    network = nixl != NULL || (!is_fake && getenv("MOELINK_NIXL_LIBRARY") != NULL) ? "NIXL" : "UCX";
    setenv(is_nixl() ? "MOELINK_UCX_LIBRARY" : "MOELINK_NIXL_LIBRARY", NOWHERE, 1);
}

int main(void) {
    choose_network();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_reads, forget),
        cmocka_unit_test_setup(test_direct, forget),
        cmocka_unit_test_setup(test_registered_again, forget),
        cmocka_unit_test_setup(test_rearranged, forget),
        cmocka_unit_test_setup(test_one_process, forget),
        cmocka_unit_test_setup(test_absent, forget),
        cmocka_unit_test_setup(test_tcp, forget),
        cmocka_unit_test_setup(test_fake_refusals, forget),
        cmocka_unit_test_setup(test_fake_choice, forget),
        cmocka_unit_test_setup(test_fake_sleeps, forget),
        cmocka_unit_test_setup(test_fake_meeting, forget),
        cmocka_unit_test_setup(test_fake_islands, forget),
        cmocka_unit_test_setup(test_fake_failures, forget),
        cmocka_unit_test_setup(test_fake_wrong, forget),
        cmocka_unit_test_setup(test_killed, forget),
        cmocka_unit_test_setup(test_many, forget),
    };
    return cmocka_run_group_tests_name("reads over networks", tests, NULL, NULL);
}
