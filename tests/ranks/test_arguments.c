/* What every public function does with NULL, and the struct_size rules of every struct, in a group of one rank. */
#include <moelink/moelink.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { HIDDEN = 8, TOKENS = 4, TOP_K = 2, TAIL = 64 };

static moelink_group *group;
static moelink_manager *manager;
static moelink_eplb_map *eplb_map;
static moelink_eplb_load *eplb_load;
static const uint64_t row_bytes[] = {HIDDEN * 4};
static float rows[TOKENS][HIDDEN], sums[TOKENS][HIDDEN];
static const int32_t ids[TOKENS][TOP_K] = {{0, 1}, {2, 3}, {1, 0}, {3, 3}};
static moelink_rows payload = {rows, HIDDEN * 4, 0, MOELINK_DTYPE_F32, 0};
static moelink_rows received[1];

static moelink_manager_config config_of(void) {
    moelink_manager_config config = MOELINK_MANAGER_CONFIG_INIT;
    config.max_tokens = TOKENS;
    config.top_k = TOP_K;
    config.num_experts = 4;
    config.payload_count = 1;
    config.payload_row_bytes = row_bytes;
    config.combine_row_bytes = HIDDEN * 4;
    return config;
}

static moelink_dispatch_args dispatch_of(void) {
    moelink_dispatch_args args = MOELINK_DISPATCH_ARGS_INIT;
    args.num_tokens = TOKENS;
    args.topk_ids = ids;
    args.payload_count = 1;
    args.payloads = &payload;
    return args;
}

static moelink_combine_args combine_of(void) {
    moelink_combine_args args = MOELINK_COMBINE_ARGS_INIT;
    moelink_rows in = {received[0].data, HIDDEN * 4, received[0].row_stride, MOELINK_DTYPE_F32, 0};
    moelink_rows out = {sums, HIDDEN * 4, 0, MOELINK_DTYPE_F32, 0};
    args.input = in;
    args.output = out;
    return args;
}

static void dispatch_now(void) {
    moelink_dispatch_args args = dispatch_of();
    moelink_dispatched out = MOELINK_DISPATCHED_INIT;
    out.payloads = received;
    assert_int_equal(moelink_dispatch(manager, &args, NULL, &out), MOELINK_OK);
}

static int make_objects(void **state) {
    (void)state;
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.device = MOELINK_DEVICE_HOST;
    if (moelink_group_create_threads(1, &params, &group) != MOELINK_OK) return -1;
    if (moelink_manager_create(group, MOELINK_MANAGER_ONE_SIDED, NULL, &manager) != MOELINK_OK) return -1;
    static const int32_t phy2log[] = {0, 1, 0, 1};
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.experts = 2;
    shape.slots = 4;
    int32_t model;
    if (moelink_eplb_map_create(group, &shape, phy2log, &eplb_map) != MOELINK_OK) return -1;
    if (moelink_eplb_load_create(group, 3, &eplb_load) != MOELINK_OK) return -1;
    if (moelink_eplb_load_add(eplb_load, eplb_map, &model) != MOELINK_OK) return -1;
    moelink_manager_config config = config_of();
    return moelink_manager_init(manager, &config) == MOELINK_OK ? 0 : -1;
}

static int drop_objects(void **state) {
    (void)state;
    moelink_eplb_load_destroy(eplb_load);
    moelink_eplb_map_destroy(eplb_map);
    moelink_manager_destroy(manager);
    moelink_group_destroy(group);
    return 0;
}

/* --- init functions ------------------------------------------------------------------------------------------------ */

#define CHECK_INIT(type, function, macro)                  \
    do {                                                   \
        type expected = macro, got;                        \
        memset(&got, 0xA5, sizeof(got));                   \
        function(&got);                                    \
        assert_memory_equal(&got, &expected, sizeof(got)); \
        assert_int_equal(got.struct_size, sizeof(got));    \
        assert_int_equal(sizeof(got) % 4, 0);              \
        function(NULL);                                    \
    } while (0)

static void test_init_functions_equal_macros(void **state) {
    (void)state;
    CHECK_INIT(moelink_device_info, moelink_device_info_init, MOELINK_DEVICE_INFO_INIT);
    CHECK_INIT(moelink_group_params, moelink_group_params_init, MOELINK_GROUP_PARAMS_INIT);
    CHECK_INIT(moelink_bootstrap, moelink_bootstrap_init, MOELINK_BOOTSTRAP_INIT);
    CHECK_INIT(moelink_mapping, moelink_mapping_init, MOELINK_MAPPING_INIT);
    CHECK_INIT(moelink_mapping_info, moelink_mapping_info_init, MOELINK_MAPPING_INFO_INIT);
    CHECK_INIT(moelink_memory_params, moelink_memory_params_init, MOELINK_MEMORY_PARAMS_INIT);
    CHECK_INIT(moelink_memory_info, moelink_memory_info_init, MOELINK_MEMORY_INFO_INIT);
    CHECK_INIT(moelink_manager_config, moelink_manager_config_init, MOELINK_MANAGER_CONFIG_INIT);
    CHECK_INIT(moelink_manager_sizes, moelink_manager_sizes_init, MOELINK_MANAGER_SIZES_INIT);
    CHECK_INIT(moelink_dispatch_args, moelink_dispatch_args_init, MOELINK_DISPATCH_ARGS_INIT);
    CHECK_INIT(moelink_dispatched, moelink_dispatched_init, MOELINK_DISPATCHED_INIT);
    CHECK_INIT(moelink_all2all_backend, moelink_all2all_backend_init, MOELINK_ALL2ALL_BACKEND_INIT);
    CHECK_INIT(moelink_combine_args, moelink_combine_args_init, MOELINK_COMBINE_ARGS_INIT);
    CHECK_INIT(moelink_prepare_args, moelink_prepare_args_init, MOELINK_PREPARE_ARGS_INIT);
    CHECK_INIT(moelink_prepared, moelink_prepared_init, MOELINK_PREPARED_INIT);
    CHECK_INIT(moelink_eplb_route_args, moelink_eplb_route_args_init, MOELINK_EPLB_ROUTE_ARGS_INIT);
    CHECK_INIT(moelink_eplb_load_report, moelink_eplb_load_report_init, MOELINK_EPLB_LOAD_REPORT_INIT);
}

/* --- struct_size of what the library reads -------------------------------------------------------------------------- */

typedef moelink_status (*reader)(const void *params);

static moelink_status read_group_params(const void *params) {
    moelink_group *made = NULL;
    moelink_status status = moelink_group_create_threads(1, params, &made);
    assert_true((status == MOELINK_OK) == (made != NULL));
    moelink_group_destroy(made);
    return status;
}

static moelink_status alone(void *user, const void *mine, void *all, uint64_t bytes, uint64_t timeout_ns) {
    (void)user;
    (void)timeout_ns;
    memmove(all, mine, bytes);
    return MOELINK_OK;
}

static moelink_status read_bootstrap(const void *boot) {
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.device = MOELINK_DEVICE_HOST;
    moelink_group *made = NULL;
    moelink_status status = moelink_group_create_with(boot, &params, &made);
    moelink_group_destroy(made);
    return status;
}

static moelink_status read_mapping(const void *mapping) {
    moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
    return moelink_mapping_describe(mapping, 1, &info);
}

static moelink_status read_manager_mapping(const void *mapping) {
    moelink_manager *made = NULL;
    moelink_status status = moelink_manager_create(group, MOELINK_MANAGER_REFERENCE, mapping, &made);
    moelink_manager_destroy(made);
    return status;
}

static moelink_status read_memory_params(const void *params) {
    moelink_memory *made = NULL;
    moelink_status status = moelink_memory_create(group, params, &made);
    moelink_memory_destroy(made);
    return status;
}

static moelink_status read_memory_query(const void *params) {
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    return moelink_memory_query(group, params, &info, NULL, 0);
}

static moelink_status read_config_query(const void *config) {
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    return moelink_manager_query(group, MOELINK_MANAGER_ONE_SIDED, config, &sizes);
}

static moelink_status read_config_reinit(const void *config) {
    return moelink_manager_reinit(manager, config);
}

static moelink_status read_config_ensure(const void *config) {
    return moelink_manager_ensure(manager, config);
}

static moelink_status read_dispatch(const void *args) {
    moelink_dispatched out = MOELINK_DISPATCHED_INIT;
    out.payloads = received;
    moelink_status status = moelink_dispatch(manager, args, NULL, &out);
    assert_int_equal(moelink_manager_abandon(manager, 0), MOELINK_OK);
    return status;
}

static moelink_status read_route(const void *args) {
    return moelink_eplb_route(eplb_map, args, NULL);
}

static moelink_status read_load_report(const void *report) {
    return moelink_eplb_load_read(eplb_load, 0, 1, NULL, (moelink_eplb_load_report *)(uintptr_t)report);
}

static moelink_status read_combine(const void *args) {
    dispatch_now();
    moelink_status status = moelink_combine(manager, args, NULL);
    assert_int_equal(moelink_manager_abandon(manager, 0), MOELINK_OK);
    return status;
}

/* older: a size that ends before fields whose defaults will do. */
static void check_reader(reader read, const void *good, size_t bytes, size_t older) {
    unsigned char copy[512];
    uint32_t size;
    assert_true(bytes + TAIL <= sizeof(copy) && older < bytes);
    memset(copy, 0, sizeof(copy));
    memcpy(copy, good, bytes);
    assert_int_equal(read(copy), MOELINK_OK);

    memset(copy + older, 0xA5, sizeof(copy) - older); /* behind an older caller's struct lies whatever lies there */
    size = (uint32_t)older;
    memcpy(copy, &size, 4);
    assert_int_equal(read(copy), MOELINK_OK);

    memset(copy, 0, sizeof(copy));
    memcpy(copy, good, bytes);
    size = (uint32_t)bytes + TAIL;
    memcpy(copy, &size, 4);
    assert_int_equal(read(copy), MOELINK_OK);

    static const size_t tails[] = {0, 3, TAIL - 1};
    for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); ++i) {
        copy[bytes + tails[i]] = 1;
        assert_int_equal(read(copy), MOELINK_ERR_UNSUPPORTED);
        assert_non_null(strstr(moelink_last_error(), "newer"));
        copy[bytes + tails[i]] = 0;
    }
    static const uint32_t wrong[] = {0, 1, 4, 7, 9};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); ++i) {
        memcpy(copy, &wrong[i], 4);
        assert_int_equal(read(copy), MOELINK_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(moelink_last_error(), "struct_size"));
    }
    assert_int_equal(read(NULL),
                     read == read_group_params || read == read_manager_mapping ? MOELINK_OK : MOELINK_ERR_INVALID_ARGUMENT);
}

static void test_struct_sizes_read(void **state) {
    (void)state;
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.device = MOELINK_DEVICE_HOST;
    check_reader(read_group_params, &params, sizeof(params), offsetof(moelink_group_params, flags));
    moelink_bootstrap boot = MOELINK_BOOTSTRAP_INIT;
    boot.allgather = alone;
    check_reader(read_bootstrap, &boot, sizeof(boot), offsetof(moelink_bootstrap, release));
    moelink_mapping mapping = MOELINK_MAPPING_INIT;
    check_reader(read_mapping, &mapping, sizeof(mapping), offsetof(moelink_mapping, reserved));
    check_reader(read_manager_mapping, &mapping, sizeof(mapping), offsetof(moelink_mapping, tp));
    moelink_memory_params memory = MOELINK_MEMORY_PARAMS_INIT;
    memory.bytes = 100;
    check_reader(read_memory_params, &memory, sizeof(memory), offsetof(moelink_memory_params, page_bytes));
    check_reader(read_memory_query, &memory, sizeof(memory), offsetof(moelink_memory_params, external));
    moelink_manager_config config = config_of();
    check_reader(read_config_query, &config, sizeof(config), offsetof(moelink_manager_config, combine_row_bytes));
    check_reader(read_config_ensure, &config, sizeof(config), offsetof(moelink_manager_config, slots));
    check_reader(read_config_reinit, &config, sizeof(config), offsetof(moelink_manager_config, timeout_ns));
    moelink_dispatch_args dispatch = dispatch_of();
    check_reader(read_dispatch, &dispatch, sizeof(dispatch), offsetof(moelink_dispatch_args, quantize));
    check_reader(read_dispatch, &dispatch, sizeof(dispatch), offsetof(moelink_dispatch_args, outputs));
    check_reader(read_dispatch, &dispatch, sizeof(dispatch), offsetof(moelink_dispatch_args, topk_weights));
    int32_t slots[TOKENS * TOP_K];
    moelink_eplb_route_args route = MOELINK_EPLB_ROUTE_ARGS_INIT;
    route.num_tokens = TOKENS;
    route.top_k = TOP_K;
    route.logical_ids = ids;
    route.physical_ids = slots;
    check_reader(read_route, &route, sizeof(route), offsetof(moelink_eplb_route_args, rank_room));
    moelink_eplb_load_report report = MOELINK_EPLB_LOAD_REPORT_INIT;
    check_reader(read_load_report, &report, sizeof(report), offsetof(moelink_eplb_load_report, layer_balance));
    dispatch_now();
    moelink_combine_args combine = combine_of();
    assert_int_equal(moelink_combine(manager, &combine, NULL), MOELINK_OK);
    check_reader(read_combine, &combine, sizeof(combine), offsetof(moelink_combine_args, sm_budget));
    /* every field before it is needed */
    unsigned char copy[sizeof(combine) + TAIL];
    memset(copy, 0, sizeof(copy));
    memcpy(copy, &combine, sizeof(combine));
    uint32_t size = offsetof(moelink_combine_args, output);
    memcpy(copy, &size, 4);
    assert_int_equal(read_combine(copy), MOELINK_ERR_INVALID_ARGUMENT);
}

/* --- struct_size of what the library writes ------------------------------------------------------------------------- */

typedef moelink_status (*writer)(void *out);

static moelink_status write_mapping_info(void *out) {
    moelink_mapping mapping = MOELINK_MAPPING_INIT;
    return moelink_mapping_describe(&mapping, 1, out);
}

static moelink_status write_memory_info(void *out) {
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.bytes = 100;
    return moelink_memory_query(group, &params, out, NULL, 0);
}

static moelink_status write_memory_description(void *out) {
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.bytes = 100;
    moelink_memory *memory = NULL;
    assert_int_equal(moelink_memory_create(group, &params, &memory), MOELINK_OK);
    moelink_status status = moelink_memory_describe(memory, out, NULL, 0);
    moelink_memory_destroy(memory);
    return status;
}

static moelink_status write_queried_sizes(void *out) {
    moelink_manager_config config = config_of();
    return moelink_manager_query(group, MOELINK_MANAGER_ONE_SIDED, &config, out);
}

static moelink_status write_sizes(void *out) {
    return moelink_manager_sizes_of(manager, out);
}

static moelink_status write_dispatched(void *out) {
    moelink_dispatch_args args = dispatch_of();
    moelink_status status = moelink_dispatch(manager, &args, NULL, out);
    assert_int_equal(moelink_manager_abandon(manager, 0), MOELINK_OK);
    return status;
}

static void check_writer(writer write, const void *initial, size_t bytes) {
    unsigned char copy[512], whole[512];
    memset(whole, 0, sizeof(whole));
    memcpy(whole, initial, bytes);
    assert_int_equal(write(whole), MOELINK_OK);
    for (size_t size = 8; size <= bytes + TAIL; size += 4) {
        uint32_t number = (uint32_t)size;
        memset(copy, 0, sizeof(copy));
        memcpy(copy, initial, size < bytes ? size : bytes);
        memset(copy + size, 0xA5, sizeof(copy) - size);
        memcpy(copy, &number, 4);
        assert_int_equal(write(copy), MOELINK_OK);
        assert_memory_equal(copy, &number, 4);
        assert_memory_equal(copy + 4, whole + 4, (size < bytes ? size : bytes) - 4);
        for (size_t i = bytes; i < size; ++i) assert_int_equal(copy[i], 0);
        for (size_t i = size; i < sizeof(copy); ++i) assert_int_equal(copy[i], 0xA5);
    }
    static const uint32_t wrong[] = {0, 4, 10};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); ++i) {
        memset(copy, 0xA5, sizeof(copy));
        memcpy(copy, &wrong[i], 4);
        assert_int_equal(write(copy), MOELINK_ERR_INVALID_ARGUMENT);
        for (size_t at = 4; at < sizeof(copy); ++at) assert_int_equal(copy[at], 0xA5);
    }
    assert_int_equal(write(NULL), MOELINK_ERR_INVALID_ARGUMENT);
}

static void test_struct_sizes_written(void **state) {
    (void)state;
    moelink_mapping_info mapping = MOELINK_MAPPING_INFO_INIT;
    check_writer(write_mapping_info, &mapping, sizeof(mapping));
    moelink_memory_info memory = MOELINK_MEMORY_INFO_INIT;
    check_writer(write_memory_info, &memory, sizeof(memory));
    check_writer(write_memory_description, &memory, sizeof(memory));
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    check_writer(write_queried_sizes, &sizes, sizeof(sizes));
    check_writer(write_sizes, &sizes, sizeof(sizes));
    moelink_dispatched dispatched = MOELINK_DISPATCHED_INIT;
    check_writer(write_dispatched, &dispatched, sizeof(dispatched));
}

/* --- NULL ------------------------------------------------------------------------------------------------------------ */

#define REFUSED(call) assert_int_equal((call), MOELINK_ERR_INVALID_ARGUMENT)

static void test_null_base_and_device(void **state) {
    (void)state;
    char text[256];
    assert_non_null(moelink_last_error());
    assert_non_null(moelink_version_string());
    moelink_log_set_callback(NULL, NULL);
    REFUSED(moelink_device_count(NULL));
    REFUSED(moelink_device_describe(0, NULL));
    REFUSED(moelink_device_peer(0, 0, NULL));
    REFUSED(moelink_device_library(NULL, text, sizeof(text)));
    REFUSED(moelink_device_library("cuda", NULL, sizeof(text)));
    REFUSED(moelink_device_library("cobol", text, sizeof(text)));
}

static void test_null_group(void **state) {
    (void)state;
    moelink_unique_id id;
    memset(&id, 0, sizeof(id));
    moelink_rendezvous *server = (moelink_rendezvous *)&id;
    moelink_group *made = (moelink_group *)&id;
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    moelink_bootstrap boot = MOELINK_BOOTSTRAP_INIT;
    moelink_mapping mapping = MOELINK_MAPPING_INIT;
    params.device = MOELINK_DEVICE_HOST;
    int32_t number = 0;
    REFUSED(moelink_rendezvous_create(NULL, 2, NULL, &id));
    REFUSED(moelink_rendezvous_create(NULL, 2, &server, NULL));
    assert_null(server);
    assert_int_equal(moelink_rendezvous_strangers(NULL), 0);
    moelink_rendezvous_destroy(NULL);
    REFUSED(moelink_group_create(NULL, &params, &made));
    assert_null(made);
    REFUSED(moelink_group_create(&id, NULL, &made));
    REFUSED(moelink_group_create(&id, &params, NULL));
    REFUSED(moelink_group_create_with(NULL, &params, &made));
    REFUSED(moelink_group_create_with(&boot, &params, &made)); /* no callback */
    boot.allgather = alone;
    REFUSED(moelink_group_create_with(&boot, NULL, &made));
    REFUSED(moelink_group_create_with(&boot, &params, NULL));
    REFUSED(moelink_group_create_threads(1, &params, NULL));
    REFUSED(moelink_group_create_threads(0, &params, &made));
    REFUSED(moelink_group_split(NULL, 0, 0, &made));
    REFUSED(moelink_group_split(group, 0, 0, NULL));
    assert_int_equal(moelink_group_rank(NULL), 0);
    assert_int_equal(moelink_group_size(NULL), 0);
    assert_int_equal(moelink_group_device(NULL), 0);
    assert_int_equal(moelink_group_device_ordinal(NULL), -1);
    assert_int_equal(moelink_group_strangers(NULL), 0);
    REFUSED(moelink_group_barrier(NULL));
    REFUSED(moelink_group_allgather(NULL, &number, &number, 4));
    REFUSED(moelink_group_allgather(group, NULL, &number, 4));
    REFUSED(moelink_group_allgather(group, &number, NULL, 4));
    REFUSED(moelink_group_broadcast(NULL, &number, 4, 0));
    REFUSED(moelink_group_broadcast(group, NULL, 4, 0));
    REFUSED(moelink_group_broadcast(group, &number, 4, 1));
    REFUSED(moelink_group_broadcast(group, &number, 4, -1));
    REFUSED(moelink_group_fault(NULL));
    assert_non_null(moelink_group_error(NULL));
    assert_non_null(moelink_group_error(group));
    REFUSED(moelink_group_finalize(NULL));
    REFUSED(moelink_group_abort(NULL));
    moelink_group_destroy(NULL);
    moelink_mapping_info info = MOELINK_MAPPING_INFO_INIT;
    REFUSED(moelink_mapping_describe(NULL, 1, &info));
    REFUSED(moelink_mapping_describe(&mapping, 1, NULL));
    assert_int_equal(moelink_group_fault(group), MOELINK_OK);
    assert_int_equal(moelink_group_barrier(group), MOELINK_OK);
}

static void test_null_memory(void **state) {
    (void)state;
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    moelink_memory *made = NULL;
    void *address = NULL;
    params.bytes = 1;
    REFUSED(moelink_memory_query(NULL, &params, &info, NULL, 0));
    REFUSED(moelink_memory_query(group, NULL, &info, NULL, 0));
    REFUSED(moelink_memory_query(group, &params, NULL, NULL, 0));
    REFUSED(moelink_memory_create(NULL, &params, &made));
    REFUSED(moelink_memory_create(group, NULL, &made));
    REFUSED(moelink_memory_create(group, &params, NULL));
    REFUSED(moelink_memory_peer(NULL, 0, &address));
    REFUSED(moelink_memory_describe(NULL, &info, NULL, 0));
    assert_int_equal(moelink_memory_create(group, &params, &made), MOELINK_OK);
    REFUSED(moelink_memory_peer(made, 0, NULL));
    REFUSED(moelink_memory_peer(made, 1, &address));
    REFUSED(moelink_memory_peer(made, -1, &address));
    assert_null(address);
    REFUSED(moelink_memory_describe(made, NULL, NULL, 0));
    moelink_memory_destroy(made);
    moelink_memory_destroy(NULL);
    assert_non_null(moelink_provider_name(-1));
    params.bytes = 0;
    REFUSED(moelink_memory_create(group, &params, &made));
    params.bytes = 1;
    params.provider = MOELINK_MEMORY_EXTERNAL;
    REFUSED(moelink_memory_create(group, &params, &made));
    assert_null(made);
}

static void test_null_manager(void **state) {
    (void)state;
    char text[512];
    moelink_manager_config config = config_of();
    moelink_manager_sizes sizes = MOELINK_MANAGER_SIZES_INIT;
    moelink_dispatch_args args = dispatch_of();
    moelink_dispatched out = MOELINK_DISPATCHED_INIT;
    moelink_combine_args combine = MOELINK_COMBINE_ARGS_INIT;
    moelink_manager *made = (moelink_manager *)text;
    int32_t number = 0;
    uint64_t generation = 0;
    REFUSED(moelink_manager_query(NULL, MOELINK_MANAGER_ONE_SIDED, &config, &sizes));
    REFUSED(moelink_manager_query(group, MOELINK_MANAGER_ONE_SIDED, NULL, &sizes));
    REFUSED(moelink_manager_query(group, MOELINK_MANAGER_ONE_SIDED, &config, NULL));
    REFUSED(moelink_manager_query(group, 77, &config, &sizes));
    assert_string_equal(moelink_manager_kind_name(77), "unknown");
    REFUSED(moelink_manager_kind_describe(MOELINK_MANAGER_ONE_SIDED, MOELINK_DEVICE_HOST, NULL, 10));
    REFUSED(moelink_manager_kind_describe(77, MOELINK_DEVICE_HOST, text, sizeof(text)));
    REFUSED(moelink_manager_kind_describe(MOELINK_MANAGER_ONE_SIDED, 0, text, sizeof(text)));
    assert_int_equal(moelink_manager_kind_describe(MOELINK_MANAGER_ONE_SIDED, MOELINK_DEVICE_HOST, text, 3),
                     MOELINK_ERR_TOO_SMALL);
    REFUSED(moelink_manager_create(NULL, MOELINK_MANAGER_ONE_SIDED, NULL, &made));
    assert_null(made);
    REFUSED(moelink_manager_create(group, MOELINK_MANAGER_ONE_SIDED, NULL, NULL));
    REFUSED(moelink_manager_create(group, 77, NULL, &made));
    assert_non_null(strstr(moelink_last_error(), "77"));
    REFUSED(moelink_manager_init(NULL, &config));
    REFUSED(moelink_manager_ensure(NULL, &config));
    REFUSED(moelink_manager_ensure(manager, NULL));
    REFUSED(moelink_manager_reinit(NULL, &config));
    REFUSED(moelink_manager_reinit(manager, NULL));
    REFUSED(moelink_manager_cleanup(NULL));
    REFUSED(moelink_manager_abandon(NULL, 0));
    REFUSED(moelink_manager_state_of(NULL, &number, &generation));
    assert_int_equal(moelink_manager_state_of(manager, NULL, NULL), MOELINK_OK);
    REFUSED(moelink_manager_sizes_of(NULL, &sizes));
    REFUSED(moelink_manager_fault(NULL));
    assert_non_null(moelink_manager_error(NULL));
    REFUSED(moelink_dispatch(NULL, &args, NULL, &out));
    REFUSED(moelink_dispatch(manager, NULL, NULL, &out));
    REFUSED(moelink_dispatch(manager, &args, NULL, NULL));
    REFUSED(moelink_combine(NULL, &combine, NULL));
    REFUSED(moelink_combine(manager, NULL, NULL));
    REFUSED(moelink_dispatch_receive(NULL, 0, NULL));
    REFUSED(moelink_combine_receive(NULL, 0, NULL));
    moelink_manager_destroy(NULL);
    assert_int_equal(moelink_manager_state_of(manager, &number, &generation), MOELINK_OK);
    assert_int_equal(number, MOELINK_STATE_READY);
    assert_int_equal(moelink_manager_create(group, MOELINK_MANAGER_ONE_SIDED, NULL, &made), MOELINK_OK);
    REFUSED(moelink_manager_init(made, NULL));
    assert_int_equal(moelink_manager_state_of(made, &number, &generation), MOELINK_OK);
    assert_int_equal(number, MOELINK_STATE_CREATED);
    assert_int_equal(generation, 0);
    moelink_manager_destroy(made);
}

static void test_all2all_backends(void **state) {
    (void)state;
    moelink_all2all_backend row = MOELINK_ALL2ALL_BACKEND_INIT, found = MOELINK_ALL2ALL_BACKEND_INIT;
    REFUSED(moelink_all2all_backend_find(NULL, &row));
    REFUSED(moelink_all2all_backend_find("allgather_reducescatter", NULL));
    REFUSED(moelink_all2all_backend_at(-1, &row));
    REFUSED(moelink_all2all_backend_at(1 << 20, &row));
    REFUSED(moelink_all2all_backend_find("deepep", &row));
    assert_non_null(strstr(moelink_last_error(), "deepep_low_latency"));
    int32_t count = 0;
    for (; moelink_all2all_backend_at(count, &row) == MOELINK_OK; ++count) {
        assert_int_equal(moelink_all2all_backend_find(row.name, &found), MOELINK_OK);
        assert_memory_equal(&row, &found, sizeof(row));
        assert_string_not_equal(moelink_layout_name(row.layout), "unknown");
        assert_string_not_equal(moelink_manager_kind_name(row.kind), "unknown");
        assert_int_equal(row.same != 0, row.reason[0] == 0);
    }
    assert_in_range(count, 11, 100);
    assert_int_equal(moelink_all2all_backend_find("flashinfer_nvlink_one_sided", &row), MOELINK_OK);
    assert_int_equal(row.kind, MOELINK_MANAGER_ONE_SIDED);
    assert_int_equal(moelink_all2all_backend_find("deepep_low_latency", &row), MOELINK_OK);
    assert_int_equal(row.layout, MOELINK_LAYOUT_EXPERT_PADDED);
    assert_string_equal(moelink_layout_name(4), "unknown");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init_functions_equal_macros),
        cmocka_unit_test(test_struct_sizes_read),
        cmocka_unit_test(test_struct_sizes_written),
        cmocka_unit_test(test_null_base_and_device),
        cmocka_unit_test(test_null_group),
        cmocka_unit_test(test_null_memory),
        cmocka_unit_test(test_null_manager),
        cmocka_unit_test(test_all2all_backends),
    };
    return cmocka_run_group_tests_name("arguments", tests, make_objects, drop_objects);
}
