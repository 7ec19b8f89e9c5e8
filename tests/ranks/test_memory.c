/* Symmetric memory on the host device, through the public interface: ranks as processes and as threads. */
#include "ranks.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

static const int sizes[] = {1, 2, 3, 8};
enum { SIZES = sizeof(sizes) / sizeof(sizes[0]), MEET_MS = 20000 };

static rank_options options_of(int size, int threads, const char *name) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.name = name;
    return options;
}

/* With every number of ranks, as processes and as threads. */
static void run_all(rank_function function, const char *name) {
    for (int threads = 0; threads < 2; ++threads) {
        for (int i = 0; i < SIZES; ++i) {
            rank_options options = options_of(sizes[i], threads, name);
            assert_int_equal(ranks_run(&options, function), 0);
        }
    }
}

static void run_three(rank_function function, const char *name) {
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = options_of(3, threads, name);
        assert_int_equal(ranks_run(&options, function), 0);
    }
}

static unsigned char *peer_of(rank_context *ctx, const moelink_memory *memory, int rank) {
    void *address = NULL;
    RANK_OK(ctx, moelink_memory_peer(memory, rank, &address));
    RANK_CHECK(ctx, address != NULL);
    return address;
}

/* Zero everywhere; then every rank writes its own share of every copy, and all see all of it. */
static void check_sharing(rank_context *ctx, const moelink_memory *memory, uint64_t bytes, const char *what) {
    rank_scene(ctx, "%s", what);
    uint64_t share = bytes / (uint64_t)ctx->size;
    for (int rank = 0; rank < ctx->size; ++rank) {
        const unsigned char *copy = peer_of(ctx, memory, rank);
        for (uint64_t i = 0; i < bytes; ++i) {
            if (copy[i] != 0) RANK_FAIL(ctx, "byte %llu of rank %d's fresh copy is %d", (unsigned long long)i, rank, copy[i]);
        }
    }
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    for (int rank = 0; rank < ctx->size; ++rank) {
        memset(peer_of(ctx, memory, rank) + (uint64_t)ctx->rank * share, 16 * (ctx->rank + 1) + rank, share);
    }
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    for (int rank = 0; rank < ctx->size; ++rank) {
        const unsigned char *copy = peer_of(ctx, memory, rank);
        for (uint64_t i = 0; i < share * (uint64_t)ctx->size; ++i) {
            int wanted = (16 * ((int)(i / share) + 1) + rank) & 255;
            if (copy[i] == wanted) continue;
            RANK_FAIL(ctx, "byte %llu of rank %d's copy is %d, not %d", (unsigned long long)i, rank, copy[i], wanted);
        }
    }
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
}

static void shares(rank_context *ctx) {
    static const struct {
        uint64_t bytes, page_bytes;
    } cases[] = {{1, 0}, {4096, 0}, {4097, 0}, {100001, 0}, {1, 1}, {5000, 65536}, {3 << 20, 2 << 20}};
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); ++i) {
        moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
        params.bytes = cases[i].bytes;
        params.page_bytes = cases[i].page_bytes;
        uint64_t unit = params.page_bytes > page ? params.page_bytes : page;
        uint64_t rounded = (params.bytes + unit - 1) / unit * unit;

        moelink_memory_info plan = MOELINK_MEMORY_INFO_INIT;
        RANK_OK(ctx, moelink_memory_query(ctx->group, &params, &plan, NULL, 0));
        RANK_EQUAL(ctx, plan.provider, MOELINK_MEMORY_HOST_SHM);
        RANK_EQUAL(ctx, plan.bytes, rounded);

        moelink_memory *memory = NULL;
        RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &memory));
        moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
        char reasons[512] = "";
        RANK_OK(ctx, moelink_memory_describe(memory, &info, reasons, sizeof(reasons)));
        RANK_EQUAL(ctx, info.provider, MOELINK_MEMORY_HOST_SHM);
        RANK_EQUAL(ctx, info.bytes, rounded);
        RANK_EQUAL(ctx, info.granularity, page);
        RANK_EQUAL(ctx, info.ranks, ctx->size);
        RANK_EQUAL(ctx, info.tried, 1 << MOELINK_MEMORY_HOST_SHM);
        RANK_EQUAL(ctx, info.status[MOELINK_MEMORY_HOST_SHM], MOELINK_OK);
        RANK_EQUAL(ctx, info.status[MOELINK_MEMORY_FABRIC], MOELINK_NOT_READY);
        RANK_TEXT(ctx, reasons, "host-shm: works on every rank; taken");
        for (int rank = 0; rank < ctx->size; ++rank) RANK_EQUAL(ctx, (uintptr_t)peer_of(ctx, memory, rank) % page, 0);
        check_sharing(ctx, memory, info.bytes, "one of several sizes");
        moelink_memory_destroy(memory);
    }
}

static void test_shares(void **state) {
    (void)state;
    run_all(shares, "shares");
}

/* Two at a time, destroyed in another order than made. */
static void several(rank_context *ctx) {
    moelink_memory *memory[3] = {NULL, NULL, NULL};
    for (int i = 0; i < 3; ++i) {
        moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
        params.provider = i == 1 ? MOELINK_MEMORY_HOST_SHM : MOELINK_MEMORY_AUTO;
        params.bytes = 20000u * (unsigned)(i + 1);
        RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &memory[i]));
    }
    for (int i = 0; i < 3; ++i) check_sharing(ctx, memory[i], 20000, "several at once");
    moelink_memory_destroy(memory[1]);
    RANK_EQUAL(ctx, peer_of(ctx, memory[0], 0)[0], 16);
    moelink_memory_destroy(memory[0]);
    RANK_EQUAL(ctx, peer_of(ctx, memory[2], ctx->size - 1)[0], 16 + ctx->size - 1);
    moelink_memory_destroy(memory[2]);
    moelink_memory_destroy(NULL);
}

static void test_several(void **state) {
    (void)state;
    run_three(several, "several");
}

static void create_fails(rank_context *ctx, const moelink_memory_params *params, moelink_status status, const char *part) {
    moelink_memory *memory = (moelink_memory *)ctx;
    RANK_STATUS(ctx, moelink_memory_create(ctx->group, params, &memory), status);
    RANK_CHECK(ctx, memory == NULL);
    RANK_TEXT(ctx, moelink_last_error(), part);
    RANK_TEXT(ctx, moelink_group_error(ctx->group), part);
}

static moelink_memory_params params_of(int32_t provider, uint64_t bytes, uint64_t page_bytes) {
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.provider = provider;
    params.bytes = bytes;
    params.page_bytes = page_bytes;
    return params;
}

static void mismatches(rank_context *ctx) {
    int last = ctx->rank == 2;
    moelink_memory_params params = params_of(0, last ? 8192 : 4096, 0);
    create_fails(ctx, &params, MOELINK_ERR_MISMATCH, "bytes is 4096 on rank 0 and 8192 on rank 2");
    params = params_of(last ? MOELINK_MEMORY_HOST_SHM : MOELINK_MEMORY_AUTO, 4096, 0);
    create_fails(ctx, &params, MOELINK_ERR_MISMATCH, "provider is 0 on rank 0 and 4 on rank 2");
    params = params_of(0, 4096, last ? 4096 : 65536);
    create_fails(ctx, &params, MOELINK_ERR_MISMATCH, "page_bytes is 65536 on rank 0 and 4096 on rank 2");

    params = params_of(0, 4096, 0);
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    moelink_memory *memory = NULL;
    moelink_status status = last ? moelink_memory_query(ctx->group, &params, &info, NULL, 0)
                                 : moelink_memory_create(ctx->group, &params, &memory);
    RANK_EQUAL(ctx, status, MOELINK_ERR_MISMATCH);
    RANK_CHECK(ctx, memory == NULL);
    RANK_EQUAL(ctx, info.provider, 0);

    RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &memory));
    check_sharing(ctx, memory, 4096, "after mismatches");
    moelink_memory_destroy(memory);
}

static void test_mismatches(void **state) {
    (void)state;
    run_three(mismatches, "mismatches");
}

/* Only one rank's arguments are wrong; all ranks hear of it at once. */
static void bad_arguments(rank_context *ctx) {
    int bad = ctx->rank == 1;
    moelink_memory_params params = params_of(0, bad ? 0 : 4096, 0);
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "rank 1: bytes is 0");
    params = params_of(bad ? 6 : 0, 4096, 0);
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "rank 1: provider is 6");
    params = params_of(bad ? -1 : 0, 4096, 0);
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "rank 1: provider is -1");
    params = params_of(0, 4096, bad ? 3000 : 0);
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "rank 1: page_bytes is 3000");
    params = params_of(0, 4096, 0);
    if (bad) params.struct_size = 0;
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "rank 1: params.struct_size is 0");
    params = params_of(0, 4096, 0);
    create_fails(ctx, bad ? NULL : &params, MOELINK_ERR_INVALID_ARGUMENT, "rank 1: params is NULL");

    moelink_memory *memory = NULL;
    RANK_STATUS(ctx, moelink_memory_create(ctx->group, &params, bad ? NULL : &memory), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "out is NULL");
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    RANK_STATUS(ctx, moelink_memory_query(ctx->group, &params, bad ? NULL : &info, NULL, 0), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_memory_create(NULL, &params, &memory), MOELINK_ERR_INVALID_ARGUMENT);

    RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &memory));
    void *address = &info;
    RANK_STATUS(ctx, moelink_memory_peer(memory, -1, &address), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_memory_peer(memory, 3, &address), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "rank is 3");
    RANK_CHECK(ctx, address == &info);
    RANK_STATUS(ctx, moelink_memory_peer(memory, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_memory_peer(NULL, 0, &address), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_memory_describe(memory, NULL, NULL, 0), MOELINK_ERR_INVALID_ARGUMENT);
    char little[6] = "xxxxx";
    RANK_OK(ctx, moelink_memory_describe(memory, &info, little, sizeof(little)));
    RANK_CHECK(ctx, strcmp(little, "host-") == 0);
    moelink_memory_destroy(memory);
}

static void test_bad_arguments(void **state) {
    (void)state;
    run_three(bad_arguments, "bad arguments");
}

static void too_large(rank_context *ctx) {
    static const uint64_t bytes[] = {UINT64_C(1) << 42, UINT64_C(1) << 62, UINT64_C(1) << 63, UINT64_MAX - 4096, UINT64_MAX};
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); ++i) {
        rank_scene(ctx, "%llu bytes", (unsigned long long)bytes[i]);
        moelink_memory_params params = params_of(i % 2 ? MOELINK_MEMORY_HOST_SHM : MOELINK_MEMORY_AUTO, bytes[i], 0);
        create_fails(ctx, &params, MOELINK_ERR_OUT_OF_MEMORY, "bytes");
    }
    moelink_memory_params params = params_of(0, 1, UINT64_C(1) << 63);
    create_fails(ctx, &params, MOELINK_ERR_OUT_OF_MEMORY, "9223372036854775808");
    params = params_of(0, 4096, 0);
    moelink_memory *memory = NULL;
    RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &memory));
    moelink_memory_destroy(memory);
}

static void test_too_large(void **state) {
    (void)state;
    run_three(too_large, "too large");
}

static void other_providers(rank_context *ctx) {
    static const int32_t providers[] = {MOELINK_MEMORY_FABRIC, MOELINK_MEMORY_POSIX_FD, MOELINK_MEMORY_CUDA_IPC};
    for (size_t i = 0; i < 3; ++i) {
        char part[64];
        snprintf(part, sizeof(part), "%s: it serves CUDA groups", moelink_provider_name(providers[i]));
        moelink_memory_params params = params_of(providers[i], 4096, 0);
        create_fails(ctx, &params, MOELINK_ERR_UNSUPPORTED, part);
        moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
        char reasons[256] = "";
        RANK_STATUS(ctx, moelink_memory_query(ctx->group, &params, &info, reasons, sizeof(reasons)), MOELINK_ERR_UNSUPPORTED);
        RANK_TEXT(ctx, reasons, part);
        RANK_EQUAL(ctx, info.provider, MOELINK_MEMORY_AUTO);
        RANK_EQUAL(ctx, info.tried, 1 << providers[i]);
        RANK_EQUAL(ctx, info.status[providers[i]], MOELINK_ERR_UNSUPPORTED);
        RANK_EQUAL(ctx, info.status[MOELINK_MEMORY_HOST_SHM], MOELINK_NOT_READY);
    }
}

static void test_other_providers(void **state) {
    (void)state;
    run_three(other_providers, "other providers");
    assert_string_equal(moelink_provider_name(MOELINK_MEMORY_AUTO), "auto");
    assert_string_equal(moelink_provider_name(MOELINK_MEMORY_FABRIC), "fabric");
    assert_string_equal(moelink_provider_name(MOELINK_MEMORY_POSIX_FD), "posix-fd");
    assert_string_equal(moelink_provider_name(MOELINK_MEMORY_CUDA_IPC), "cuda-ipc");
    assert_string_equal(moelink_provider_name(MOELINK_MEMORY_HOST_SHM), "host-shm");
    assert_string_equal(moelink_provider_name(MOELINK_MEMORY_EXTERNAL), "external");
    assert_string_equal(moelink_provider_name(77), "unknown");
}

static void external(rank_context *ctx) {
    void *addresses[3] = {ctx->shared, ctx->shared + 1000, ctx->shared + 2000};
    ctx->shared[1000 * ctx->rank] = (unsigned char)(ctx->rank + 1);
    moelink_memory_params params = params_of(MOELINK_MEMORY_EXTERNAL, 1000, 0);
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "rank 0: the provider is external, but external is NULL");
    params.external = addresses;
    if (ctx->rank == 2) addresses[1] = NULL;
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "rank 2: external[1] is NULL");
    addresses[1] = ctx->shared + 1000;
    params.bytes = UINT64_MAX;
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "pass the end of the address space");
    params.bytes = 1000;
    params.provider = MOELINK_MEMORY_HOST_SHM;
    create_fails(ctx, &params, MOELINK_ERR_INVALID_ARGUMENT, "the provider is host-shm");
    params.provider = MOELINK_MEMORY_EXTERNAL;

    moelink_memory *memory = NULL;
    RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &memory));
    memset(addresses, 0, sizeof(addresses)); /* they were copied */
    for (int rank = 0; rank < 3; ++rank) {
        RANK_CHECK(ctx, peer_of(ctx, memory, rank) == ctx->shared + 1000 * rank);
        RANK_EQUAL(ctx, peer_of(ctx, memory, rank)[0], rank + 1); /* not cleared */
    }
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    RANK_OK(ctx, moelink_memory_describe(memory, &info, NULL, 0));
    RANK_EQUAL(ctx, info.provider, MOELINK_MEMORY_EXTERNAL);
    RANK_EQUAL(ctx, info.bytes, 1000);
    moelink_memory_destroy(memory);
    RANK_EQUAL(ctx, ctx->shared[1000 * ctx->rank], ctx->rank + 1);
}

static void test_external(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = options_of(3, threads, "external");
        options.shared_bytes = 3000;
        assert_int_equal(ranks_run(&options, external), 0);
    }
}

static int count_files(rank_context *ctx) {
    DIR *folder = opendir("/proc/self/fd");
    RANK_CHECK(ctx, folder != NULL);
    int count = 0;
    while (readdir(folder) != NULL) ++count;
    closedir(folder);
    return count;
}

/* Mappings of shared memory; others come and go with the allocator. */
static int count_mappings(rank_context *ctx) {
    FILE *file = fopen("/proc/self/maps", "re");
    RANK_CHECK(ctx, file != NULL);
    int count = 0;
    char line[4096];
    while (fgets(line, sizeof(line), file) != NULL) count += strstr(line, "memfd:moelink") != NULL;
    fclose(file);
    return count;
}

static void rounds(rank_context *ctx) {
    int files = 0;
    int files_after = 0;
    RANK_EQUAL(ctx, count_mappings(ctx), 0);
    for (int round = 0; round < 100; ++round) {
        moelink_memory_params params = params_of(0, 1 + 5000u * (unsigned)(round % 7), 0);
        if (round % 5 == 4 && ctx->rank == 1) params.bytes = 1; /* some fail */
        moelink_memory *memory = NULL;
        moelink_status status = moelink_memory_create(ctx->group, &params, &memory);
        int differ = round % 5 == 4 && round % 7 != 0;
        RANK_EQUAL(ctx, status, differ ? MOELINK_ERR_MISMATCH : MOELINK_OK);
        if (memory != NULL) RANK_CHECK(ctx, count_mappings(ctx) >= ctx->size);
        RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
        moelink_memory_destroy(memory);
        RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
        if (round == 0) files = count_files(ctx);
        if (round == 99) files_after = count_files(ctx);
        RANK_EQUAL(ctx, count_mappings(ctx), 0);
        RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    }
    if (!ctx->threads) RANK_EQUAL(ctx, files_after, files); /* threads count each other's /proc folder too */
}

static void test_rounds(void **state) {
    (void)state;
    run_three(rounds, "100 rounds");
}

static void outlives_group(rank_context *ctx) {
    moelink_memory_params params = params_of(0, 4096, 0);
    moelink_memory *memory = NULL;
    RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &memory));
    RANK_OK(ctx, moelink_group_finalize(ctx->group));
    moelink_group_destroy(ctx->group);
    ctx->group = NULL;
    for (int rank = 0; rank < ctx->size; ++rank) peer_of(ctx, memory, rank)[ctx->rank] = (unsigned char)(ctx->rank + 1);
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    for (int rank = 0; rank < ctx->size; ++rank) RANK_EQUAL(ctx, peer_of(ctx, memory, ctx->rank)[rank], rank + 1);
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    /* Peers' mappings keep the pages of a rank that has let go. */
    if (ctx->rank == 0) moelink_memory_destroy(memory);
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
    if (ctx->rank != 0) {
        RANK_EQUAL(ctx, peer_of(ctx, memory, 0)[ctx->rank], ctx->rank + 1);
        moelink_memory_destroy(memory);
    }
}

static void test_outlives_group(void **state) {
    (void)state;
    run_three(outlives_group, "outlives its group");
}

/* The last rank stays away: the others end by the deadline, and the text says who is missing. */
static void one_missing(rank_context *ctx) {
    if (ctx->rank < 2) {
        moelink_memory_params params = params_of(0, 4096, 0);
        create_fails(ctx, &params, MOELINK_ERR_TIMEOUT, "2");
        RANK_EQUAL(ctx, count_mappings(ctx), 0);
    }
    RANK_CHECK(ctx, rank_meet(ctx, MEET_MS));
}

static void test_one_missing(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        rank_options options = options_of(3, threads, "one missing");
        options.timeout_ns = 500000000;
        options.no_finalize = 1;
        assert_int_equal(ranks_run(&options, one_missing), 0);
    }
}

static int count_entries(const char *path) {
    DIR *folder = opendir(path);
    if (folder == NULL) return -1;
    int count = -2; /* "." and ".." */
    while (readdir(folder) != NULL) ++count;
    closedir(folder);
    return count;
}

static void with_socket_dir(rank_context *ctx) {
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.rank = ctx->rank;
    params.size = ctx->size;
    params.device = MOELINK_DEVICE_HOST;
    params.socket_dir = ctx->user;
    RANK_OK(ctx, moelink_group_create(ctx->id, &params, &ctx->group));
    moelink_memory_params memory_params = params_of(0, 4096, 0);
    moelink_memory *memory = NULL;
    RANK_OK(ctx, moelink_memory_create(ctx->group, &memory_params, &memory));
    check_sharing(ctx, memory, 4096, "sockets in a folder");
    moelink_memory_destroy(memory);
}

static void with_wrong_socket_dir(rank_context *ctx) {
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.rank = ctx->rank;
    params.size = ctx->size;
    params.device = MOELINK_DEVICE_HOST;
    params.socket_dir = ctx->rank == 1 ? "/nowhere" : ctx->user;
    RANK_OK(ctx, moelink_group_create(ctx->id, &params, &ctx->group));
    moelink_memory_params memory_params = params_of(0, 4096, 0);
    create_fails(ctx, &memory_params, MOELINK_ERR_UNSUPPORTED, "host-shm: rank 1: bind to /nowhere/");
}

static void test_socket_dir(void **state) {
    (void)state;
    char path[] = "/tmp/moelink-test-XXXXXX";
    assert_non_null(mkdtemp(path));
    rank_options options = options_of(3, 0, "socket_dir");
    options.no_group = 1;
    options.user = path;
    assert_int_equal(ranks_run(&options, with_socket_dir), 0);
    assert_int_equal(ranks_run(&options, with_wrong_socket_dir), 0);
    assert_int_equal(count_entries(path), 0);
    assert_int_equal(rmdir(path), 0);
}

/* One rank may open few files, and fails at one of the steps; the others do not wait for their deadline, and all know the reason. */
static void one_is_out_of_files(rank_context *ctx) {
    int victim = *(const int *)ctx->user;
    for (rlim_t spare = 0; spare < 4; ++spare) {
        struct rlimit before, few;
        moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
        moelink_memory *memory = NULL;
        char wanted[32];
        int lowest = dup(STDERR_FILENO);
        close(lowest);
        params.bytes = 4096;
        RANK_EQUAL(ctx, getrlimit(RLIMIT_NOFILE, &before), 0);
        few = before;
        few.rlim_cur = (rlim_t)lowest + spare;
        if (ctx->rank == victim) RANK_EQUAL(ctx, setrlimit(RLIMIT_NOFILE, &few), 0);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
        moelink_status status = moelink_memory_create(ctx->group, &params, &memory);
        RANK_EQUAL(ctx, setrlimit(RLIMIT_NOFILE, &before), 0);
        rank_scene(ctx, "%d spare files of rank %d", (int)spare, victim);
        RANK_EQUAL(ctx, status, MOELINK_ERR_OUT_OF_MEMORY);
        snprintf(wanted, sizeof(wanted), "host-shm: rank %d: ", victim);
        RANK_TEXT(ctx, moelink_last_error(), wanted);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
    }
}

static void test_out_of_files(void **state) {
    (void)state;
    for (int victim = 0; victim < 4; ++victim) {
        rank_options options = options_of(4, 0, "one is out of files");
        options.user = &victim;
        options.timeout_ns = 600000000000u;
        assert_int_equal(ranks_run(&options, one_is_out_of_files), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares),         cmocka_unit_test(test_several),        cmocka_unit_test(test_mismatches),
        cmocka_unit_test(test_bad_arguments),  cmocka_unit_test(test_too_large),      cmocka_unit_test(test_other_providers),
        cmocka_unit_test(test_external),       cmocka_unit_test(test_rounds),         cmocka_unit_test(test_outlives_group),
        cmocka_unit_test(test_one_missing),    cmocka_unit_test(test_socket_dir),     cmocka_unit_test(test_out_of_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
