/* What dispatch refuses of quantize and both calls of sm_budget, that nothing has happened after it, and what older callers'
 * structs mean, in a group of one rank. */
#include <moelink/moelink.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "values.h"

enum { BLOCKS = 3, HIDDEN = BLOCKS * QUANTIZE_BLOCK, TOKENS = 4, TOP_K = 2 };

static const int32_t kinds[] = {MOELINK_MANAGER_ONE_SIDED, MOELINK_MANAGER_ALLGATHER_REDUCESCATTER, MOELINK_MANAGER_REFERENCE};

static moelink_group *group;
static moelink_manager *manager;
static const uint64_t row_bytes[] = {HIDDEN, BLOCKS * 4, 8};
static uint16_t rows[TOKENS][HIDDEN], sums[TOKENS][HIDDEN];
static uint64_t beside[TOKENS];
static const int32_t ids[TOKENS][TOP_K] = {{0, 1}, {2, 3}, {1, 0}, {3, 3}};
static float scales_out[TOKENS * BLOCKS + 1];
static moelink_rows payloads[3], outputs[3], received[3];

static int make_objects(void **state) {
    (void)state;
    for (int token = 0; token < TOKENS; ++token) {
        random_values((uint64_t)token + 1, rows[token], MOELINK_DTYPE_BF16, HIDDEN);
        beside[token] = random_mix(9, (uint64_t)token);
    }
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.device = MOELINK_DEVICE_HOST;
    return moelink_group_create_threads(1, &params, &group) == MOELINK_OK ? 0 : -1;
}

static int drop_objects(void **state) {
    (void)state;
    moelink_group_destroy(group);
    return 0;
}

static void make_manager(int32_t kind) {
    moelink_manager_config config = MOELINK_MANAGER_CONFIG_INIT;
    config.max_tokens = TOKENS;
    config.top_k = TOP_K;
    config.num_experts = 4;
    config.payload_count = 3;
    config.payload_row_bytes = row_bytes;
    config.combine_row_bytes = HIDDEN * 2;
    assert_int_equal(moelink_manager_create(group, kind, NULL, &manager), MOELINK_OK);
    assert_int_equal(moelink_manager_init(manager, &config), MOELINK_OK);
}

/* Good ones, which each test spoils. */
static moelink_dispatch_args dispatch_of(int32_t scales) {
    static const moelink_rows none;
    moelink_rows values = {rows, HIDDEN * 2, 0, MOELINK_DTYPE_BF16, 0};
    moelink_rows third = {beside, 8, 0, MOELINK_DTYPE_U8, 0};
    payloads[0] = values;
    payloads[1] = none;
    payloads[1].dtype = scales;
    payloads[2] = third;
    outputs[0] = outputs[1] = outputs[2] = none;
    moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
    args.num_tokens = TOKENS;
    args.topk_ids = ids;
    args.payload_count = 3;
    args.payloads = payloads;
    args.outputs = outputs;
    args.quantize = MOELINK_QUANTIZE_F8E4M3_BLOCK128;
    return args;
}

static void must_be(int32_t expected) {
    int32_t state = -1;
    assert_int_equal(moelink_manager_state_of(manager, &state, NULL), MOELINK_OK);
    assert_int_equal(state, expected);
    assert_int_equal(moelink_manager_fault(manager), MOELINK_OK);
}

/* Every token has an expert here, so row i is token i. */
static void check_received(int32_t scales) {
    uint64_t scale_bytes = scales == MOELINK_DTYPE_F32 ? 4 : 1;
    assert_int_equal(received[0].dtype, MOELINK_DTYPE_F8E4M3);
    assert_int_equal(received[0].row_bytes, HIDDEN);
    assert_int_equal(received[1].dtype, scales);
    assert_int_equal(received[1].row_bytes, BLOCKS * scale_bytes);
    for (uint64_t token = 0; token < TOKENS; ++token) {
        for (uint64_t block = 0; block < BLOCKS; ++block) {
            uint8_t values[QUANTIZE_BLOCK], scale[4];
            value_quantize_block(rows[token] + block * QUANTIZE_BLOCK, scales == MOELINK_DTYPE_E8M0, values, scale);
            const unsigned char *got = (const unsigned char *)received[0].data + token * received[0].row_stride;
            assert_memory_equal(got + block * QUANTIZE_BLOCK, values, QUANTIZE_BLOCK);
            got = (const unsigned char *)received[1].data + token * received[1].row_stride;
            assert_memory_equal(got + block * scale_bytes, scale, scale_bytes);
        }
        assert_memory_equal((const unsigned char *)received[2].data + token * received[2].row_stride, &beside[token], 8);
    }
}

static moelink_status dispatch_now(const moelink_dispatch_args *args) {
    moelink_dispatched out = MOELINK_DISPATCHED_INIT;
    memset(received, 0, sizeof(received));
    out.payloads = received;
    return moelink_dispatch(manager, args, NULL, &out);
}

static void must_work(int32_t scales) {
    moelink_dispatch_args args = dispatch_of(scales);
    assert_int_equal(dispatch_now(&args), MOELINK_OK);
    check_received(scales);
    assert_int_equal(moelink_manager_abandon(manager, 0), MOELINK_OK);
    must_be(MOELINK_STATE_READY);
}

/* Refused with that status and text; nothing was written, and the next dispatch finds everything as it was. */
static void must_refuse(const moelink_dispatch_args *args, moelink_status status, const char *text) {
    static const moelink_rows untouched[3];
    moelink_status got = dispatch_now(args);
    if (got != status || strstr(moelink_last_error(), text) == NULL) {
        fail_msg("status %d (\"%s\"), must be %d with \"%s\"", got, moelink_last_error(), status, text);
    }
    assert_memory_equal(received, untouched, sizeof(received));
    must_be(MOELINK_STATE_READY);
    must_work(MOELINK_DTYPE_F32);
}

#define REFUSED(change, text)                                          \
    do {                                                               \
        moelink_dispatch_args args = dispatch_of(MOELINK_DTYPE_F32);   \
        change;                                                        \
        must_refuse(&args, MOELINK_ERR_INVALID_ARGUMENT, text);        \
    } while (0)

static void refuse_all(int32_t kind) {
    make_manager(kind);
    must_work(MOELINK_DTYPE_F32);
    must_work(MOELINK_DTYPE_E8M0);

    static const int32_t forms[] = {2, -1, INT32_MAX};
    for (int i = 0; i < 3; ++i) REFUSED(args.quantize = forms[i], "quantize is");
    REFUSED(args.payload_count = 1, "payload_count is 1");
    REFUSED(args.payload_count = 0, "payload_count is 0");

    static const int32_t no_values[] = {MOELINK_DTYPE_F32, MOELINK_DTYPE_F16, MOELINK_DTYPE_U8, MOELINK_DTYPE_F8E4M3, 77};
    for (int i = 0; i < 5; ++i) REFUSED(payloads[0].dtype = no_values[i], "payloads[0] has dtype");
    static const uint64_t no_rows[] = {0, 2, 255, 257, QUANTIZE_BLOCK, HIDDEN * 2 - 2};
    for (int i = 0; i < 6; ++i) REFUSED(payloads[0].row_bytes = no_rows[i], i == 0 ? "row_bytes 0" : "a multiple of 256 bytes");
    REFUSED(payloads[0].data = NULL, "payloads[0].data is NULL with 4 tokens");
    REFUSED(payloads[0].row_stride = HIDDEN, "row_stride is 384");

    REFUSED(payloads[1].data = scales_out, "payloads[1] has data");
    static const int32_t no_scales[] = {MOELINK_DTYPE_F16, MOELINK_DTYPE_BF16, MOELINK_DTYPE_U8, MOELINK_DTYPE_F8E4M3, -1};
    for (int i = 0; i < 5; ++i) REFUSED(payloads[1].dtype = no_scales[i], "quantize writes it");

    /* outputs of scales at addresses or strides that are no F32's */
    for (int shift = 1; shift < 4; ++shift) REFUSED(outputs[1].data = (unsigned char *)scales_out + shift, "outputs[1] has an address");
    REFUSED((outputs[1].data = scales_out, outputs[1].row_stride = BLOCKS * 4 + 2), "outputs[1] has an address or stride");
    REFUSED((outputs[1].data = scales_out, outputs[1].row_stride = BLOCKS * 4 - 4, outputs[1].row_bytes = BLOCKS * 4), "row_stride is 8");

    static const int32_t budgets[] = {-1, INT32_MIN};
    for (int i = 0; i < 2; ++i) REFUSED(args.sm_budget = budgets[i], "sm_budget is -");

    /* bytes are those of what travels */
    static uint16_t wide[TOKENS][HIDDEN + QUANTIZE_BLOCK];
    moelink_dispatch_args args = dispatch_of(MOELINK_DTYPE_F32);
    payloads[0].data = wide;
    payloads[0].row_bytes = sizeof(wide[0]);
    must_refuse(&args, MOELINK_ERR_TOO_SMALL, "payloads[0].row_bytes is 512 and the workspace holds 384");
    args = dispatch_of(MOELINK_DTYPE_F32);
    outputs[1].data = scales_out;
    outputs[1].row_bytes = BLOCKS * 4 - 4;
    must_refuse(&args, MOELINK_ERR_TOO_SMALL, "outputs[1].row_bytes is 8, less than the payload's 12");
    moelink_manager_destroy(manager);
}

static void test_refusals(void **state) {
    (void)state;
    for (int i = 0; i < 3; ++i) refuse_all(kinds[i]);
}

/* E8M0 scales are bytes: they may lie anywhere. Nor must rows do so on the host. */
static void test_odd_addresses(void **state) {
    (void)state;
    static unsigned char anywhere[TOKENS * BLOCKS + 1], odd[TOKENS * (HIDDEN * 2 + 1) + 1];
    for (int i = 0; i < 3; ++i) {
        make_manager(kinds[i]);
        moelink_dispatch_args args = dispatch_of(MOELINK_DTYPE_E8M0);
        outputs[1].data = anywhere + 1;
        for (int token = 0; token < TOKENS; ++token) memcpy(odd + 1 + token * (HIDDEN * 2 + 1), rows[token], sizeof(rows[0]));
        payloads[0].data = odd + 1;
        payloads[0].row_stride = HIDDEN * 2 + 1;
        assert_int_equal(dispatch_now(&args), MOELINK_OK);
        assert_ptr_equal(received[1].data, anywhere + 1);
        check_received(MOELINK_DTYPE_E8M0);
        moelink_manager_destroy(manager);
    }
}

static void test_no_tokens(void **state) {
    (void)state;
    for (int i = 0; i < 3; ++i) {
        make_manager(kinds[i]);
        moelink_dispatch_args args = dispatch_of(MOELINK_DTYPE_F32);
        args.num_tokens = 0;
        payloads[0].data = payloads[2].data = NULL;
        assert_int_equal(dispatch_now(&args), MOELINK_OK);
        assert_int_equal(received[0].row_bytes, HIDDEN);
        assert_int_equal(received[1].row_bytes, BLOCKS * 4);
        moelink_manager_destroy(manager);
    }
}

/* A refused combine leaves the round in flight. */
static void test_combine(void **state) {
    (void)state;
    for (int i = 0; i < 3; ++i) {
        make_manager(kinds[i]);
        moelink_dispatch_args args = dispatch_of(MOELINK_DTYPE_F32);
        args.sm_budget = INT32_MAX;
        assert_int_equal(dispatch_now(&args), MOELINK_OK);
        static uint16_t work[TOKENS][HIDDEN];
        memcpy(work, rows, sizeof(work));
        moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT, good;
        combine.input.data = work;
        combine.output.data = sums;
        combine.input.row_bytes = combine.output.row_bytes = HIDDEN * 2;
        combine.input.dtype = combine.output.dtype = MOELINK_DTYPE_BF16;
        good = combine;
        combine.sm_budget = -1;
        assert_int_equal(moelink_combine(manager, &combine, NULL), MOELINK_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(moelink_last_error(), "sm_budget is -1"));
        must_be(MOELINK_STATE_DISPATCHED);
        combine = good;
        combine.reserved = 1;
        assert_int_equal(moelink_combine(manager, &combine, NULL), MOELINK_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(moelink_last_error(), "reserved is 1"));
        must_be(MOELINK_STATE_DISPATCHED);
        check_received(MOELINK_DTYPE_F32);
        good.sm_budget = 3;
        assert_int_equal(moelink_combine(manager, &good, NULL), MOELINK_OK);
        assert_memory_equal(sums, rows, sizeof(rows)); /* one rank: the sum of one row */
        must_be(MOELINK_STATE_READY);
        moelink_manager_destroy(manager);
    }
}

/* Structs as they were before these fields: what lies behind them is not read. */
static void test_older_structs(void **state) {
    (void)state;
    make_manager(MOELINK_MANAGER_ONE_SIDED);
    moelink_dispatch_args args = dispatch_of(MOELINK_DTYPE_F32);
    args.quantize = -5;
    args.sm_budget = -5;
    args.struct_size = offsetof(moelink_dispatch_args, quantize);
    payloads[0].row_bytes = HIDDEN; /* as bytes: not quantized */
    payloads[0].row_stride = HIDDEN * 2;
    assert_int_equal(dispatch_now(&args), MOELINK_OK);
    for (uint64_t token = 0; token < TOKENS; ++token) {
        assert_memory_equal((unsigned char *)received[0].data + token * received[0].row_stride, rows[token], HIDDEN);
    }
    static uint16_t work[TOKENS][HIDDEN];
    memcpy(work, rows, sizeof(work));
    moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT;
    combine.input.data = work;
    combine.output.data = sums;
    combine.input.row_bytes = combine.output.row_bytes = HIDDEN * 2;
    combine.input.dtype = combine.output.dtype = MOELINK_DTYPE_BF16;
    combine.sm_budget = -5;
    combine.reserved = 5;
    combine.struct_size = offsetof(moelink_combine_args, sm_budget);
    assert_int_equal(moelink_combine(manager, &combine, NULL), MOELINK_OK);
    moelink_manager_destroy(manager);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_odd_addresses),
        cmocka_unit_test(test_no_tokens),
        cmocka_unit_test(test_combine),
        cmocka_unit_test(test_older_structs),
    };
    return cmocka_run_group_tests_name("arguments of quantize", tests, make_objects, drop_objects);
}
