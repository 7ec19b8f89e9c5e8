/* Symmetric memory on GPUs: every provider by name and the automatic choice, with ranks as processes and as threads, on GPUs of
 * their own and several on one. Says what was chosen and why the others were refused. */
#include "device.h"
#include "ranks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

enum { REASONS = 2048, BYTES = 3000000, PART = 4096 };

/* What rank 0 tells the parent, through memory that they share. */
typedef struct telling {
    moelink_memory_info info;
    char text[REASONS];
    uint64_t free_first; /* [bytes] of the GPU after the first round, and after the last */
    uint64_t free_last;
} telling;

typedef struct job {
    int32_t provider;
    int rounds;
    telling *told;
} job;

static const job *job_of(rank_context *ctx) {
    return ctx->user;
}

static void *peer_of(rank_context *ctx, const moelink_memory *memory, int rank) {
    void *address = NULL;
    RANK_OK(ctx, moelink_memory_peer(memory, rank, &address));
    RANK_CHECK(ctx, address != NULL);
    return address;
}

static void expect_bytes(rank_context *ctx, const unsigned char *copy, uint64_t bytes, int wanted, int rank, const char *what) {
    unsigned char *host = malloc(bytes);
    RANK_CHECK(ctx, host != NULL);
    device_copy(ctx, host, copy, bytes);
    for (uint64_t i = 0; i < bytes; ++i) {
        if (host[i] == wanted) continue;
        RANK_FAIL(ctx, "%s: byte %llu of rank %d's copy is %d, not %d", what, (unsigned long long)i, rank, host[i], wanted);
    }
    free(host);
}

/* Zero; then every rank sets its part of every copy, over its own mapping, and finds all parts in all copies. */
static void check_sharing(rank_context *ctx, const moelink_memory *memory, uint64_t bytes) {
    for (int rank = 0; rank < ctx->size; ++rank) expect_bytes(ctx, peer_of(ctx, memory, rank), bytes, 0, rank, "fresh");
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    for (int rank = 0; rank < ctx->size; ++rank) {
        unsigned char *copy = peer_of(ctx, memory, rank);
        device_set(ctx, copy + PART * ctx->rank, 16 * rank + ctx->rank + 1, PART);
        device_set(ctx, copy + bytes - PART * (ctx->rank + 1), 16 * rank + ctx->rank + 1, PART);
    }
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    for (int rank = 0; rank < ctx->size; ++rank) {
        const unsigned char *copy = peer_of(ctx, memory, rank);
        for (int writer = 0; writer < ctx->size; ++writer) {
            expect_bytes(ctx, copy + PART * writer, PART, 16 * rank + writer + 1, rank, "first bytes");
            expect_bytes(ctx, copy + bytes - PART * (writer + 1), PART, 16 * rank + writer + 1, rank, "last bytes");
        }
    }
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
}

static void create_and_share(rank_context *ctx) {
    telling *told = job_of(ctx)->told;
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.provider = job_of(ctx)->provider;
    params.bytes = BYTES;
    for (int round = 0; round < job_of(ctx)->rounds; ++round) {
        rank_scene(ctx, "%s, round %d", moelink_provider_name(params.provider), round);
        moelink_memory *memory = NULL;
        moelink_status status = moelink_memory_create(ctx->group, &params, &memory);
        if (status == MOELINK_ERR_UNSUPPORTED && params.provider != MOELINK_MEMORY_AUTO) {
            RANK_CHECK(ctx, memory == NULL);
            RANK_TEXT(ctx, moelink_last_error(), moelink_provider_name(params.provider));
            if (ctx->rank == 0) snprintf(told->text, REASONS, "refused: %s", moelink_last_error());
            return;
        }
        RANK_EQUAL(ctx, status, MOELINK_OK);
        moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
        char reasons[REASONS];
        RANK_OK(ctx, moelink_memory_describe(memory, &info, reasons, sizeof(reasons)));
        if (params.provider != MOELINK_MEMORY_AUTO) RANK_EQUAL(ctx, info.provider, params.provider);
        RANK_EQUAL(ctx, info.bytes % info.granularity, 0);
        RANK_CHECK(ctx, info.bytes >= BYTES);
        check_sharing(ctx, memory, info.bytes);
        if (ctx->rank == 0) {
            told->info = info;
            snprintf(told->text, REASONS, "%s", reasons);
        }
        moelink_memory_destroy(memory);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
        if (ctx->rank == 0 && round == 0) told->free_first = device_free_bytes(ctx);
        if (ctx->rank == 0) told->free_last = device_free_bytes(ctx);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
    }
}

static void query(rank_context *ctx) {
    telling *told = job_of(ctx)->told;
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    params.bytes = BYTES;
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    char reasons[REASONS];
    RANK_OK(ctx, moelink_memory_query(ctx->group, &params, &info, reasons, sizeof(reasons)));
    RANK_EQUAL(ctx, info.tried, 1 << MOELINK_MEMORY_FABRIC | 1 << MOELINK_MEMORY_POSIX_FD | 1 << MOELINK_MEMORY_CUDA_IPC);
    if (ctx->rank == 0) {
        told->info = info;
        snprintf(told->text, REASONS, "%s", reasons);
    }
}

/* More than any GPU has: an error on all ranks, and the next allocation works. */
static void too_large(rank_context *ctx) {
    moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
    moelink_memory *memory = NULL;
    for (int32_t provider = MOELINK_MEMORY_AUTO; provider <= MOELINK_MEMORY_CUDA_IPC; ++provider) {
        params.provider = provider;
        params.bytes = UINT64_C(1) << 42;
        rank_scene(ctx, "4 TiB of %s", moelink_provider_name(provider));
        moelink_status status = moelink_memory_create(ctx->group, &params, &memory);
        RANK_CHECK(ctx, memory == NULL);
        int refused = provider != MOELINK_MEMORY_AUTO && status == MOELINK_ERR_UNSUPPORTED;
        if (!refused) RANK_EQUAL(ctx, status, MOELINK_ERR_OUT_OF_MEMORY);
    }
    params.provider = MOELINK_MEMORY_AUTO;
    params.bytes = BYTES;
    RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &memory));
    moelink_memory_destroy(memory);
}

static telling run(int size, int threads, rank_function function, int32_t provider, int rounds) {
    telling *shared = mmap(NULL, sizeof(telling), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    job work = {provider, rounds, shared};
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.device = MOELINK_DEVICE_CUDA;
    options.user = &work;
    options.name = moelink_provider_name(provider);
    options.timeout_ns = UINT64_C(60000000000);
    options.deadline_ms = 120000;
    assert_int_equal(ranks_run(&options, function), 0);
    telling told = *shared;
    munmap(shared, sizeof(telling));
    return told;
}

static void say(int size, int threads, int32_t provider, const telling *told) {
    printf("-- %d ranks as %s on %d GPU(s), %s asked:\n%s%s", size, threads ? "threads" : "processes", device_gpu_count(),
           moelink_provider_name(provider), told->text, strchr(told->text, '\n') == NULL ? "\n" : "");
    fflush(stdout);
}

static void test_each_provider(void **state) {
    (void)state;
    static const int ranks[] = {1, 2, 4};
    for (int threads = 0; threads < 2; ++threads) {
        for (int i = 0; i < 3; ++i) {
            int worked = 0;
            int32_t best = MOELINK_MEMORY_AUTO;
            for (int32_t provider = MOELINK_MEMORY_FABRIC; provider <= MOELINK_MEMORY_CUDA_IPC; ++provider) {
                telling told = run(ranks[i], threads, create_and_share, provider, 2);
                say(ranks[i], threads, provider, &told);
                if (told.info.provider != provider) continue;
                ++worked;
                if (best == MOELINK_MEMORY_AUTO) best = provider;
            }
            assert_true(worked > 0);
            telling told = run(ranks[i], threads, create_and_share, MOELINK_MEMORY_AUTO, 2);
            say(ranks[i], threads, MOELINK_MEMORY_AUTO, &told);
            assert_int_equal(told.info.provider, best);
        }
    }
}

static void test_query(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) {
        telling told = run(2, threads, query, MOELINK_MEMORY_AUTO, 1);
        say(2, threads, MOELINK_MEMORY_AUTO, &told);
        telling made = run(2, threads, create_and_share, MOELINK_MEMORY_AUTO, 1);
        assert_int_equal(told.info.provider, made.info.provider);
        assert_true(told.info.bytes == made.info.bytes);
    }
}

static void test_too_large(void **state) {
    (void)state;
    for (int threads = 0; threads < 2; ++threads) run(2, threads, too_large, MOELINK_MEMORY_AUTO, 1);
}

/* A lost copy a round would be far more than what the GPU's free memory moves by itself. */
static void test_rounds(void **state) {
    (void)state;
    enum { ROUNDS = 40 };
    const uint64_t slack = 64 << 20;
    for (int32_t provider = MOELINK_MEMORY_AUTO; provider <= MOELINK_MEMORY_CUDA_IPC; ++provider) {
        for (int threads = 0; threads < 2; ++threads) {
            telling told = run(2, threads, create_and_share, provider, ROUNDS);
            if (told.free_first > told.free_last + slack) {
                fail_msg("%s: %llu bytes of the GPU were free after the first round, %llu after %d rounds",
                         moelink_provider_name(provider), (unsigned long long)told.free_first, (unsigned long long)told.free_last,
                         ROUNDS);
            }
        }
    }
}

int main(void) {
    int skip = device_skip_main(MOELINK_DEVICE_CUDA, 1);
    if (skip != 0) return skip;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_provider),
        cmocka_unit_test(test_query),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_rounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
