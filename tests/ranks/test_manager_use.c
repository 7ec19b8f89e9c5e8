/* Managers in use: pairing of dispatch and combine, several at once, bad arguments, and the shapes of expert-parallel groups. */
#include "moe_case.h"
#include "plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static moe_geometry geometry_of(int ranks, int slots) {
    moe_geometry geometry;
    moe_geometry_plain(ranks, 24, 3, 4 * ranks + 3, 40, MOELINK_DTYPE_F32, &geometry);
    geometry.payload_count = 2;
    geometry.row_bytes[1] = 9;
    geometry.slots = slots;
    return geometry;
}

static moelink_manager *make(rank_context *ctx, moelink_group *group, int32_t kind, const moe_geometry *geometry) {
    moelink_manager *manager = NULL;
    moelink_manager_config config = moe_config(geometry, moelink_group_rank(group));
    RANK_OK(ctx, moelink_manager_create(group, kind, NULL, &manager));
    RANK_OK(ctx, moelink_manager_init(manager, &config));
    return manager;
}

static int32_t state_of(rank_context *ctx, const moelink_manager *manager) {
    int32_t state = -1;
    RANK_OK(ctx, moelink_manager_state_of(manager, &state, NULL));
    return state;
}

static void run(const char *name, rank_function function, int ranks) {
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = plan_options(TEST_DEVICE, name, ranks, threads);
        PLAN_RUN(&options, function);
    }
}

static void for_each_kind(rank_context *ctx, void (*body)(rank_context *ctx, int32_t kind, moelink_stream stream)) {
    moelink_stream stream = device_stream_create(ctx);
    for (int i = 0; i < PLAN_KINDS; ++i) {
        rank_scene(ctx, "%s", moelink_manager_kind_name(plan_kinds[i]));
        body(ctx, plan_kinds[i], stream);
        rank_scene(ctx, "%s", "");
    }
    device_stream_destroy(ctx, stream);
}

/* --- pairing ----------------------------------------------------------------------------------------------------------- */

static void pairing(rank_context *ctx, int32_t kind, moelink_stream stream) {
    moe_geometry geometry = geometry_of(ctx->size, 2);
    moelink_manager *manager = make(ctx, ctx->group, kind, &geometry);
    moe_round round;
    moe_round_plain(6, ctx->size, 10, 40, MOELINK_DTYPE_F32, &round);
    round.weights = 0;
    moe_flight first, second;
    moe_flight_prepare(ctx, &first, manager, kind, &geometry, &round, stream);
    round.slot = 1;
    round.seed = 60;
    moe_flight_prepare(ctx, &second, manager, kind, &geometry, &round, stream);

    moelink_combine_args early = first.combine; /* nothing was dispatched yet */
    early.input.data = first.result.data;
    RANK_STATUS(ctx, moelink_combine(manager, &early, stream), MOELINK_ERR_INVALID_STATE);
    RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_READY);
    moe_flight_dispatch(ctx, &first, manager);
    RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_DISPATCHED);
    moelink_dispatched again = MOELINK_DISPATCHED_INIT;
    again.ranks = 4711;
    RANK_STATUS(ctx, moelink_dispatch(manager, &first.args, stream, &again), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_last_error(), "slot 0");
    RANK_EQUAL(ctx, again.ranks, 4711);
    early.slot = 1;
    RANK_STATUS(ctx, moelink_combine(manager, &early, stream), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_last_error(), "slot 1");
    moe_flight_dispatch(ctx, &second, manager); /* the other slot is free */
    moe_flight_check_dispatch(ctx, &first);
    moe_flight_check_dispatch(ctx, &second);
    moe_flight_experts(ctx, &first);
    moe_flight_experts(ctx, &second);
    moelink_combine_args weighted = second.combine;
    weighted.mode = MOELINK_COMBINE_WEIGHTED; /* no weights were sent */
    RANK_STATUS(ctx, moelink_combine(manager, &weighted, stream), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_last_error(), "topk_weights");
    moe_flight_combine(ctx, &second, manager);
    RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_DISPATCHED);
    RANK_STATUS(ctx, moelink_combine(manager, &second.combine, stream), MOELINK_ERR_INVALID_STATE);
    moe_flight_combine(ctx, &first, manager);
    RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_READY);
    moe_flight_check_combine(ctx, &first);
    moe_flight_check_combine(ctx, &second);

    /* abandon: the round is gone, the slot is free, other slots go on */
    moe_flight_dispatch(ctx, &first, manager);
    moe_flight_dispatch(ctx, &second, manager);
    RANK_OK(ctx, moelink_manager_abandon(manager, 0));
    RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_DISPATCHED);
    RANK_STATUS(ctx, moelink_combine(manager, &first.combine, stream), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_manager_abandon(manager, 2), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_manager_abandon(manager, -1), MOELINK_ERR_INVALID_ARGUMENT);
    moe_flight_check_dispatch(ctx, &second);
    moe_flight_experts(ctx, &second);
    moe_flight_combine(ctx, &second, manager);
    moe_flight_check_combine(ctx, &second);
    RANK_OK(ctx, moelink_manager_abandon(manager, 0)); /* nothing in flight: fine */
    RANK_OK(ctx, moelink_manager_abandon(manager, 1));
    RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_READY);
    for (int i = 0; i < 20; ++i) {
        moe_flight_dispatch(ctx, &first, manager);
        if (i % 3 != 2) RANK_OK(ctx, moelink_manager_abandon(manager, 0));
        if (i % 3 == 2) {
            moe_flight_check_dispatch(ctx, &first);
            moe_flight_experts(ctx, &first);
            moe_flight_combine(ctx, &first, manager);
            moe_flight_check_combine(ctx, &first);
        }
    }
    moe_flight_free(ctx, &first);
    moe_flight_free(ctx, &second);
    RANK_OK(ctx, moelink_manager_fault(manager));
    moelink_manager_destroy(manager);
}

static void all_pairing(rank_context *ctx) {
    for_each_kind(ctx, pairing);
}

static void test_pairing(void **state) {
    (void)state;
    run("pairing", all_pairing, 2);
    run("pairing", all_pairing, 3);
}

/* --- several at once --------------------------------------------------------------------------------------------------- */

/* Two managers of every kind on each of two groups, and a third group of half of the ranks, with rounds of all in flight. */
static void several(rank_context *ctx) {
    enum { MOST = 2 * 2 * PLAN_KINDS };
    moelink_stream stream = device_stream_create(ctx);
    moelink_group *other = NULL, *half = NULL;
    RANK_OK(ctx, moelink_group_split(ctx->group, 0, -ctx->rank, &other)); /* ranks in reverse */
    RANK_OK(ctx, moelink_group_split(ctx->group, ctx->rank % 2, ctx->rank, &half));
    RANK_EQUAL(ctx, moelink_group_rank(other), ctx->size - 1 - ctx->rank);
    rank_context turned = *ctx, halved = *ctx;
    turned.rank = moelink_group_rank(other);
    turned.group = other;
    halved.rank = moelink_group_rank(half);
    halved.size = moelink_group_size(half);
    halved.group = half;
    moe_geometry geometry = geometry_of(ctx->size, 2), small = geometry_of(halved.size, 1);
    moelink_manager *managers[MOST];
    rank_context *who[MOST];
    int32_t kinds[MOST];
    int count = 0;
    for (int i = 0; i < PLAN_KINDS; ++i) {
        for (int j = 0; j < 4; ++j, ++count) {
            who[count] = j % 2 == 0 ? ctx : &turned;
            kinds[count] = plan_kinds[i];
            managers[count] = make(ctx, who[count]->group, plan_kinds[i], &geometry);
        }
    }
    moelink_manager *apart = make(ctx, half, MOELINK_MANAGER_ONE_SIDED, &small);
    for (uint64_t repeat = 0; repeat < 3; ++repeat) {
        moe_flight flights[MOST];
        for (int i = 0; i < count; ++i) {
            moe_round round;
            moe_round_random(&geometry, random_mix(repeat, (uint64_t)i), &round);
            round.combine = 1;
            moe_flight_prepare(who[i], &flights[i], managers[i], kinds[i], &geometry, &round, stream);
        }
        /* Ranks that are threads share a driver: none may allocate or free while a peer has yet to launch what it waits for,
         * and NCCL does when a communicator is first used. */
        for (int i = 0; i < count; ++i) {
            if (i == 0 || kinds[i] != kinds[i - 1]) RANK_CHECK(ctx, rank_meet(ctx, 60000));
            moe_flight_dispatch(who[i], &flights[i], managers[i]);
        }
        RANK_CHECK(ctx, rank_meet(ctx, 60000));
        moe_work(&halved, apart, MOELINK_MANAGER_ONE_SIDED, &small, repeat, stream);
        for (int i = count - 1; i >= 0; --i) {
            moe_flight_check_dispatch(who[i], &flights[i]);
            moe_flight_experts(who[i], &flights[i]);
            moe_flight_combine(who[i], &flights[i], managers[i]);
            if (i == 0 || kinds[i] != kinds[i - 1]) RANK_CHECK(ctx, rank_meet(ctx, 60000));
        }
        for (int i = 0; i < count; ++i) {
            moe_flight_check_combine(who[i], &flights[i]);
            moe_flight_free(who[i], &flights[i]);
            RANK_OK(ctx, moelink_manager_fault(managers[i]));
        }
    }
    moelink_group_destroy(half);
    for (int i = 0; i < count; i += 2) moelink_manager_destroy(managers[i]);
    for (int i = 1; i < count; i += 2) moe_work(&turned, managers[i], kinds[i], &geometry, 5, stream);
    for (int i = 1; i < count; i += 2) moelink_manager_destroy(managers[i]);
    moelink_manager_destroy(apart);
    moelink_group_destroy(other);
    device_stream_destroy(ctx, stream);
}

static void test_several_managers_and_groups(void **state) {
    (void)state;
    run("several", several, 2);
    run("several", several, 4);
}

/* --- bad arguments ------------------------------------------------------------------------------------------------------ */

static void bad_config(rank_context *ctx, int32_t kind, moelink_stream stream) {
    (void)stream;
    moe_geometry geometry = geometry_of(ctx->size, 1);
    const moelink_manager_config good = moe_config(&geometry, ctx->rank);
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    uint64_t no_rows[2] = {40, 0};
    RANK_OK(ctx, moelink_manager_query(ctx->group, kind, &good, &sizes));
    sizes.workspace_bytes = 4711;
#define REFUSE(field, value, status, part)                                                 \
    do {                                                                                   \
        moelink_manager_config bad = good;                                                 \
        bad.field = (value);                                                               \
        RANK_STATUS(ctx, moelink_manager_query(ctx->group, kind, &bad, &sizes), (status)); \
        RANK_TEXT(ctx, moelink_last_error(), (part));                                      \
        RANK_EQUAL(ctx, sizes.workspace_bytes, 4711);                                      \
    } while (0)
    REFUSE(flags, 0x80, MOELINK_ERR_UNSUPPORTED, "flags");
    REFUSE(max_tokens, 0, MOELINK_ERR_INVALID_ARGUMENT, "max_tokens is 0");
    REFUSE(max_tokens, -1, MOELINK_ERR_INVALID_ARGUMENT, "max_tokens is -1");
    REFUSE(top_k, 0, MOELINK_ERR_INVALID_ARGUMENT, "top_k is 0");
    REFUSE(top_k, MOELINK_MAX_TOP_K + 1, MOELINK_ERR_INVALID_ARGUMENT, "33");
    REFUSE(num_experts, 0, MOELINK_ERR_INVALID_ARGUMENT, "num_experts is 0");
    REFUSE(payload_count, 0, MOELINK_ERR_INVALID_ARGUMENT, "payload_count is 0");
    REFUSE(payload_count, MOELINK_MAX_PAYLOADS + 1, MOELINK_ERR_INVALID_ARGUMENT, "17");
    REFUSE(payload_row_bytes, NULL, MOELINK_ERR_INVALID_ARGUMENT, "payload_row_bytes");
    REFUSE(payload_row_bytes, no_rows, MOELINK_ERR_INVALID_ARGUMENT, "payload_row_bytes");
    REFUSE(slots, -1, MOELINK_ERR_INVALID_ARGUMENT, "slots is -1");
    REFUSE(slots, MOELINK_MAX_SLOTS + 1, MOELINK_ERR_INVALID_ARGUMENT, "17");
    REFUSE(sm_budget, -1, MOELINK_ERR_INVALID_ARGUMENT, "sm_budget");
    REFUSE(provider, 99, MOELINK_ERR_INVALID_ARGUMENT, "99");
    if (kind == MOELINK_MANAGER_ONE_SIDED) {
        int32_t other = ctx->device == MOELINK_DEVICE_CUDA ? MOELINK_MEMORY_HOST_SHM : MOELINK_MEMORY_FABRIC;
        REFUSE(provider, other, MOELINK_ERR_UNSUPPORTED, moelink_provider_name(other));
    }
    REFUSE(reserved, 1, MOELINK_ERR_INVALID_ARGUMENT, "reserved");
#undef REFUSE
}

static void bad_dispatch(rank_context *ctx, moelink_manager *manager, const moe_flight *flight) {
    const moelink_dispatch_args good = flight->args;
    moelink_dispatched out = MOELINK_DISPATCHED_INIT;
    moelink_rows rows[2] = {flight->payloads[0], flight->payloads[1]};
#define REFUSE(field, value, status, part)                                                 \
    do {                                                                                   \
        moelink_dispatch_args bad = good;                                                  \
        bad.payloads = rows;                                                               \
        bad.field = (value);                                                               \
        RANK_STATUS(ctx, moelink_dispatch(manager, &bad, flight->stream, &out), (status)); \
        RANK_TEXT(ctx, moelink_last_error(), (part));                                      \
        RANK_EQUAL(ctx, out.ranks, 0);                                                     \
        RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_READY);                      \
    } while (0)
    REFUSE(slot, -1, MOELINK_ERR_INVALID_ARGUMENT, "slot is -1");
    REFUSE(slot, 1, MOELINK_ERR_INVALID_ARGUMENT, "slot is 1");
    REFUSE(num_tokens, -1, MOELINK_ERR_INVALID_ARGUMENT, "num_tokens is -1");
    REFUSE(num_tokens, 25, MOELINK_ERR_TOO_SMALL, "25");
    REFUSE(num_tokens, 25, MOELINK_ERR_TOO_SMALL, "24");
    REFUSE(topk_ids_dtype, MOELINK_DTYPE_U8, MOELINK_ERR_INVALID_ARGUMENT, "topk_ids_dtype");
    REFUSE(topk_ids, NULL, MOELINK_ERR_INVALID_ARGUMENT, "topk_ids");
    REFUSE(topk_ids, (const char *)good.topk_ids + 2, MOELINK_ERR_INVALID_ARGUMENT, "topk_ids has an address");
    REFUSE(topk_weights, (const float *)((const char *)good.topk_ids + 1), MOELINK_ERR_INVALID_ARGUMENT, "topk_weights has");
    REFUSE(num_tokens_device, (const int32_t *)((const char *)good.topk_ids + 3), MOELINK_ERR_INVALID_ARGUMENT,
           "num_tokens_device has");
    REFUSE(layout, 5, MOELINK_ERR_UNSUPPORTED, "layout is 5");
    REFUSE(payload_count, -1, MOELINK_ERR_INVALID_ARGUMENT, "payload_count is -1");
    REFUSE(payload_count, 3, MOELINK_ERR_INVALID_ARGUMENT, "payload_count is 3");
    REFUSE(payloads, NULL, MOELINK_ERR_INVALID_ARGUMENT, "payloads");
    REFUSE(flags, 1u << 31, MOELINK_ERR_UNSUPPORTED, "flags");
    rows[0].row_bytes = 161;
    rows[0].row_stride = 0;
    REFUSE(slot, 0, MOELINK_ERR_TOO_SMALL, "161");
    REFUSE(slot, 0, MOELINK_ERR_TOO_SMALL, "160");
    rows[0].row_bytes = 0;
    REFUSE(slot, 0, MOELINK_ERR_INVALID_ARGUMENT, "row_bytes");
    rows[0].row_bytes = 160;
    rows[0].row_stride = 159;
    REFUSE(slot, 0, MOELINK_ERR_INVALID_ARGUMENT, "159");
    rows[0].row_stride = 0;
    rows[0].reserved = 1;
    REFUSE(slot, 0, MOELINK_ERR_INVALID_ARGUMENT, "reserved");
    rows[0].reserved = 0;
    moelink_rows own[2] = {rows[0], {NULL, 0, 0, 0, 0}};
    own[0].row_bytes = own[0].row_stride = 100;
    REFUSE(outputs, own, MOELINK_ERR_TOO_SMALL, "100");
#undef REFUSE
}

static void bad_combine(rank_context *ctx, moelink_manager *manager, const moe_flight *flight) {
    const moelink_combine_args good = flight->combine;
#define REFUSE(field, value, status, part)                                          \
    do {                                                                            \
        moelink_combine_args bad = good;                                            \
        bad.field = (value);                                                        \
        RANK_STATUS(ctx, moelink_combine(manager, &bad, flight->stream), (status)); \
        RANK_TEXT(ctx, moelink_last_error(), (part));                               \
        RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_DISPATCHED);          \
    } while (0)
    REFUSE(slot, -1, MOELINK_ERR_INVALID_ARGUMENT, "slot is -1");
    REFUSE(slot, 7, MOELINK_ERR_INVALID_ARGUMENT, "slot is 7");
    REFUSE(mode, 9, MOELINK_ERR_INVALID_ARGUMENT, "mode is 9");
    REFUSE(flags, 1u << 31, MOELINK_ERR_UNSUPPORTED, "flags");
    REFUSE(input.data, NULL, MOELINK_ERR_INVALID_ARGUMENT, "input.data");
    REFUSE(output.data, NULL, MOELINK_ERR_INVALID_ARGUMENT, "output.data");
    REFUSE(input.dtype, MOELINK_DTYPE_U8, MOELINK_ERR_INVALID_ARGUMENT, "dtype");
    REFUSE(input.dtype, MOELINK_DTYPE_NONE, MOELINK_ERR_INVALID_ARGUMENT, "dtype");
    REFUSE(output.dtype, MOELINK_DTYPE_F16, MOELINK_ERR_INVALID_ARGUMENT, "dtype");
    REFUSE(input.row_bytes, 158, MOELINK_ERR_INVALID_ARGUMENT, "158");
    REFUSE(input.row_bytes, 0, MOELINK_ERR_INVALID_ARGUMENT, "row_bytes");
    REFUSE(output.row_bytes, 156, MOELINK_ERR_INVALID_ARGUMENT, "156");
    REFUSE(input.row_stride, 100, MOELINK_ERR_INVALID_ARGUMENT, "100");
    REFUSE(output.row_stride, 162, MOELINK_ERR_INVALID_ARGUMENT, "stride");
    REFUSE(input.data, (char *)good.input.data + 2, MOELINK_ERR_INVALID_ARGUMENT, "address");
    REFUSE(output.reserved, 1, MOELINK_ERR_INVALID_ARGUMENT, "reserved");
#undef REFUSE
    moelink_combine_args wide = good;
    wide.input.row_bytes = wide.output.row_bytes = 164;
    wide.input.row_stride = wide.output.row_stride = 0;
    RANK_STATUS(ctx, moelink_combine(manager, &wide, flight->stream), MOELINK_ERR_TOO_SMALL);
    RANK_TEXT(ctx, moelink_last_error(), "164");
}

/* Rows in the workspace must be those of a view: its stride, and none across the end of its row. */
static void bad_view(rank_context *ctx, moelink_manager *manager, const moe_flight *flight) {
    moelink_combine_args bad = flight->combine;
    bad.input = flight->received[0];
    bad.input.dtype = MOELINK_DTYPE_F32;
    const moelink_rows view = bad.input;
    bad.input.row_bytes = bad.output.row_bytes = bad.input.row_stride = bad.output.row_stride = view.row_stride / 2;
    RANK_STATUS(ctx, moelink_combine(manager, &bad, flight->stream), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "80 bytes a row at a stride of 80");
    bad.input.row_stride = view.row_stride;
    bad.input.data = (char *)view.data + view.row_stride / 2 + 4;
    RANK_STATUS(ctx, moelink_combine(manager, &bad, flight->stream), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "80 bytes a row at a stride of 160");
    bad.input.data = flight->dispatched.topk_weights;
    RANK_STATUS(ctx, moelink_combine(manager, &bad, flight->stream), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "workspace");
    RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_DISPATCHED);
}

/* Halves and repeated routings out of turn are refused and change nothing. */
static void out_of_turn(rank_context *ctx, int32_t kind, moelink_stream stream) {
    moe_geometry geometry = geometry_of(ctx->size, 1);
    moelink_manager *manager = make(ctx, ctx->group, kind, &geometry);
    moe_round round;
    moe_round_plain(6, ctx->size, 12, 40, MOELINK_DTYPE_F32, &round);
    moe_flight flight;
    moe_flight_prepare(ctx, &flight, manager, kind, &geometry, &round, stream);
    moelink_dispatch_args again = flight.args;
    again.flags = MOELINK_DISPATCH_F_CACHED_ROUTING;
    RANK_STATUS(ctx, moelink_dispatch(manager, &again, stream, &flight.dispatched), MOELINK_ERR_INVALID_STATE);
    RANK_TEXT(ctx, moelink_last_error(), "no dispatch whose routing");
    RANK_STATUS(ctx, moelink_dispatch_receive(manager, 0, stream), MOELINK_ERR_INVALID_STATE);
    RANK_STATUS(ctx, moelink_dispatch_receive(manager, 3, stream), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_combine_receive(manager, 0, stream), MOELINK_ERR_INVALID_STATE);
    for (int repeat = 0; repeat < 2; ++repeat) {
        if (repeat == 1) {
            flight.args.flags = MOELINK_DISPATCH_F_CACHED_ROUTING;
            flight.args.num_tokens = 11;
            RANK_STATUS(ctx, moelink_dispatch(manager, &flight.args, stream, &flight.dispatched), MOELINK_ERR_INVALID_ARGUMENT);
            RANK_TEXT(ctx, moelink_last_error(), "11");
            flight.args.num_tokens = 12;
            flight.args.topk_ids = NULL;
            flight.args.topk_weights = NULL;
        }
        flight.args.flags |= MOELINK_DISPATCH_F_SEND_ONLY;
        RANK_OK(ctx, moelink_dispatch(manager, &flight.args, stream, &flight.dispatched));
        RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_DISPATCHED);
        RANK_STATUS(ctx, moelink_combine(manager, &flight.combine, stream), MOELINK_ERR_INVALID_STATE);
        RANK_TEXT(ctx, moelink_last_error(), "moelink_dispatch_receive");
        RANK_STATUS(ctx, moelink_dispatch(manager, &flight.args, stream, &flight.dispatched), MOELINK_ERR_INVALID_STATE);
        RANK_OK(ctx, moelink_dispatch_receive(manager, 0, stream));
        RANK_STATUS(ctx, moelink_dispatch_receive(manager, 0, stream), MOELINK_ERR_INVALID_STATE);
        if (flight.in_place) {
            flight.combine.input.data = flight.received[0].data;
            flight.combine.input.row_stride = flight.received[0].row_stride;
        }
        moe_flight_check_dispatch(ctx, &flight);
        moe_flight_experts(ctx, &flight);
        flight.combine.flags = MOELINK_COMBINE_F_SEND_ONLY;
        RANK_OK(ctx, moelink_combine(manager, &flight.combine, stream));
        RANK_STATUS(ctx, moelink_dispatch(manager, &flight.args, stream, &flight.dispatched), MOELINK_ERR_INVALID_STATE);
        RANK_STATUS(ctx, moelink_combine(manager, &flight.combine, stream), MOELINK_ERR_INVALID_STATE);
        RANK_OK(ctx, moelink_combine_receive(manager, 0, stream));
        RANK_STATUS(ctx, moelink_combine_receive(manager, 0, stream), MOELINK_ERR_INVALID_STATE);
        moe_flight_check_combine(ctx, &flight);
        flight.combine.flags = 0;
        RANK_EQUAL(ctx, state_of(ctx, manager), MOELINK_STATE_READY);
    }
    moe_flight_free(ctx, &flight);
    moelink_manager_destroy(manager);
}

static void bad_arguments(rank_context *ctx, int32_t kind, moelink_stream stream) {
    bad_config(ctx, kind, stream);
    moe_geometry geometry = geometry_of(ctx->size, 1);
    moelink_manager *manager = make(ctx, ctx->group, kind, &geometry);
    moe_round round;
    moe_round_plain(4, ctx->size, 10, 40, MOELINK_DTYPE_F32, &round);
    round.payload_count = 2;
    round.sent[1] = 1;
    round.row_bytes[1] = 9;
    moe_flight flight;
    moe_flight_prepare(ctx, &flight, manager, kind, &geometry, &round, stream);
    bad_dispatch(ctx, manager, &flight);
    moe_flight_dispatch(ctx, &flight, manager);
    bad_combine(ctx, manager, &flight);
    if (kind == MOELINK_MANAGER_ONE_SIDED) bad_view(ctx, manager, &flight);
    moe_flight_check_dispatch(ctx, &flight);
    moe_flight_experts(ctx, &flight);
    moe_flight_combine(ctx, &flight, manager);
    moe_flight_check_combine(ctx, &flight);
    moe_flight_free(ctx, &flight);
    moelink_manager_destroy(manager);
}

static void all_bad_arguments(rank_context *ctx) {
    for_each_kind(ctx, bad_arguments);
}

static void all_out_of_turn(rank_context *ctx) {
    for_each_kind(ctx, out_of_turn);
}

static void test_out_of_turn(void **state) {
    (void)state;
    run("out of turn", all_out_of_turn, 2);
}

static void test_bad_arguments(void **state) {
    (void)state;
    run("bad arguments", all_bad_arguments, 2);
}

/* --- expert-parallel groups (vLLM #40893) --------------------------------------------------------------------------------- */

struct shape {
    int dp, pcp, tp;
};

static moelink_mapping mapping_of(const struct shape *shape, int rank) {
    moelink_mapping mapping = MOELINK_MAPPING_INIT;
    mapping.dp = shape->dp;
    mapping.pcp = shape->pcp;
    mapping.tp = shape->tp;
    mapping.rank = rank;
    return mapping;
}

/* A manager over a part of the EP group is refused with both sizes; over the EP group its workspace spans all ranks. */
static void refuse_part(rank_context *ctx, const moelink_mapping *mapping, int32_t color, int size, int rank) {
    moelink_group *part = NULL;
    moelink_manager *manager = (moelink_manager *)ctx;
    RANK_OK(ctx, moelink_group_split(ctx->group, color, ctx->rank, &part));
    RANK_EQUAL(ctx, moelink_group_size(part), size);
    RANK_EQUAL(ctx, moelink_group_rank(part), rank);
    if (size != ctx->size) {
        char mine[16], whole[16];
        snprintf(mine, sizeof(mine), "%d", size);
        snprintf(whole, sizeof(whole), "%d", ctx->size);
        RANK_STATUS(ctx, moelink_manager_create(part, MOELINK_MANAGER_ONE_SIDED, mapping, &manager),
                    MOELINK_ERR_INVALID_ARGUMENT);
        RANK_TEXT(ctx, moelink_last_error(), mine);
        RANK_TEXT(ctx, moelink_last_error(), whole);
        RANK_CHECK(ctx, manager == NULL);
    }
    moelink_group_destroy(part);
}

static void expert_parallel(rank_context *ctx) {
    const struct shape *shape = ctx->user;
    moelink_stream stream = device_stream_create(ctx);
    moelink_mapping mapping = mapping_of(shape, ctx->rank);
    moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
    RANK_OK(ctx, moelink_mapping_describe(&mapping, ctx->size, &info));
    RANK_EQUAL(ctx, info.ep_size, ctx->size);
    RANK_EQUAL(ctx, (info.dp_rank * shape->pcp + info.pcp_rank) * shape->tp + info.tp_rank, ctx->rank);
    refuse_part(ctx, &mapping, info.dp_color, shape->dp, info.dp_rank);
    refuse_part(ctx, &mapping, info.pcp_color, shape->pcp, info.pcp_rank);
    refuse_part(ctx, &mapping, info.tp_color, shape->tp, info.tp_rank);

    moelink_manager *manager = NULL;
    moelink_mapping wrong = mapping;
    wrong.rank = (ctx->rank + 1) % ctx->size;
    RANK_STATUS(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_ONE_SIDED, &wrong, &manager),
                MOELINK_ERR_INVALID_ARGUMENT);
    wrong = mapping;
    wrong.tp = shape->tp + 1;
    RANK_STATUS(ctx, moelink_manager_create(ctx->group, MOELINK_MANAGER_ONE_SIDED, &wrong, &manager),
                MOELINK_ERR_INVALID_ARGUMENT);
    moe_geometry geometry = geometry_of(ctx->size, 1);
    moelink_manager_config config = moe_config(&geometry, ctx->rank);
    for (int i = 0; i < PLAN_KINDS; ++i) {
        RANK_OK(ctx, moelink_manager_create(ctx->group, plan_kinds[i], &mapping, &manager));
        RANK_OK(ctx, moelink_manager_init(manager, &config));
        moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
        RANK_OK(ctx, moelink_manager_sizes_of(manager, &sizes));
        RANK_CHECK(ctx, sizes.dispatch_bytes >= (uint64_t)ctx->size * 24u * (160u + 9u));
        moe_work(ctx, manager, plan_kinds[i], &geometry, 3, stream);
        moelink_manager_destroy(manager);
    }
    device_stream_destroy(ctx, stream);
}

static void test_expert_parallel_groups(void **state) {
    (void)state;
    static struct shape shapes[] = {{4, 1, 2}, {2, 1, 2}, {2, 2, 2}, {1, 2, 1}, {1, 1, 4}, {8, 1, 1}};
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); ++i) {
        rank_options options =
            plan_options(TEST_DEVICE, "expert-parallel group", shapes[i].dp * shapes[i].pcp * shapes[i].tp, i % 2 == 1);
        options.user = &shapes[i];
        PLAN_RUN(&options, expert_parallel);
    }
}

int main(void) {
    int skipped = device_skip_main(TEST_DEVICE, 1);
    if (skipped != 0) return skipped;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairing),
        cmocka_unit_test(test_several_managers_and_groups),
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_out_of_turn),
        cmocka_unit_test(test_expert_parallel_groups),
    };
    return cmocka_run_group_tests_name("manager use", tests, NULL, NULL);
}
