#define _GNU_SOURCE
#include "ranks.h"

#include "device.h"
#include "ranks_report.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

/* Memory that the parent and all ranks share. */
struct board {
    moelink_unique_id id;
    int id_state; /* 0 not yet, 1 there, -1 failed with the text */
    char text[512];
    int meetings[RANKS_MAX];
    int failed; /* some rank has: nobody need wait for it */
};

struct rank_private {
    struct board *board;
    int pipe;
    int failed;
    char scene[512];
    jmp_buf leave;
};

/* Weak: there only under the address or leak sanitizer, whose check at exit a child's _exit would skip. */
extern int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

/* Read by the sanitizers: too large an allocation, which tests ask for, must fail as it does without them. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);

const char *__asan_default_options(void) {
    return "allocator_may_return_null=1";
}

const char *__tsan_default_options(void) {
    return "allocator_may_return_null=1";
}

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void nap_us(long us) {
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&t, NULL);
}

int ranks_scaled_ms(int deadline_ms) {
    const char *text = getenv("MOELINK_TEST_DEADLINE_SCALE");
    double scale = text != NULL ? atof(text) : 1.0;
    return (int)(deadline_ms * (scale > 0 ? scale : 1.0));
}

int rank_meet(rank_context *ctx, int deadline_ms) {
    int *meetings = ctx->own->board->meetings;
    int mine = __atomic_add_fetch(&meetings[ctx->rank], 1, __ATOMIC_ACQ_REL);
    uint64_t end = now_ms() + (uint64_t)ranks_scaled_ms(deadline_ms);
    for (int rank = 0; rank < ctx->size; ++rank) {
        while (__atomic_load_n(&meetings[rank], __ATOMIC_ACQUIRE) < mine) {
            if (now_ms() > end || __atomic_load_n(&ctx->own->board->failed, __ATOMIC_ACQUIRE)) return 0;
            nap_us(100);
        }
    }
    return 1;
}

void rank_note(rank_context *ctx, const char *format, ...) {
    va_list args;
    va_start(args, format);
    report_send(ctx->own->pipe, ctx->rank, REPORT_NOTE, format, args);
    va_end(args);
}

void rank_scene(rank_context *ctx, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(ctx->own->scene, sizeof(ctx->own->scene), format, args);
    va_end(args);
}

void rank_fail(rank_context *ctx, const char *file, int line, const char *format, ...) {
    char text[REPORT_TEXT_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    const char *scene = ctx->own->scene;
    const char *in = *scene != '\0' ? "; in " : "";
    report_sendf(ctx->own->pipe, ctx->rank, REPORT_FAILED, "%s:%d: %s%s%s", file, line, text, in, scene);
    ctx->own->failed = 1;
    __atomic_store_n(&ctx->own->board->failed, 1, __ATOMIC_RELEASE);
    longjmp(ctx->own->leave, 1);
}

void rank_expect_status(rank_context *ctx, const char *file, int line, const char *call, moelink_status got,
                        moelink_status expected) {
    if (got == expected) return;
    rank_fail(ctx, file, line, "%.300s: %s, expected %s; last error: \"%s\"", call, moelink_status_name(got),
              moelink_status_name(expected), moelink_last_error());
}

void rank_expect_equal(rank_context *ctx, const char *file, int line, const char *name, long long got, const char *wanted_name,
                       long long wanted) {
    if (got != wanted) rank_fail(ctx, file, line, "%s is %lld, not %s = %lld", name, got, wanted_name, wanted);
}

void rank_expect_text(rank_context *ctx, const char *file, int line, const char *text, const char *part) {
    if (text == NULL || strstr(text, part) == NULL) {
        rank_fail(ctx, file, line, "\"%s\" does not hold \"%s\"", text == NULL ? "(NULL)" : text, part);
    }
}

/* What every child does first: die with the parent. */
static void be_child(pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    signal(SIGPIPE, SIG_IGN);
}

static void leave_child(int status) {
    if (status == 0 && __lsan_do_recoverable_leak_check != NULL && __lsan_do_recoverable_leak_check() != 0) status = 3;
    fflush(NULL);
    _exit(status);
}

/* The rendezvous server, in a child so that the parent has no thread: lives until the lifeline is closed. */
static void serve(struct board *board, int size, int lifeline) {
    moelink_rendezvous *server = NULL;
    moelink_status status = moelink_rendezvous_create("127.0.0.1", size, &server, &board->id);
    if (status != MOELINK_OK) {
        snprintf(board->text, sizeof(board->text), "%s: %s", moelink_status_name(status), moelink_last_error());
    }
    __atomic_store_n(&board->id_state, status == MOELINK_OK ? 1 : -1, __ATOMIC_RELEASE);
    char byte;
    while (read(lifeline, &byte, 1) < 0 && errno == EINTR) continue;
    moelink_rendezvous_destroy(server);
    leave_child(0);
}

static moelink_group_params group_params(const rank_options *options, const rank_context *ctx) {
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.rank = ctx->rank;
    params.size = ctx->size;
    params.device = ctx->device;
    params.device_ordinal = ctx->ordinal;
    params.timeout_ns = options->timeout_ns != 0 ? options->timeout_ns : (uint64_t)ranks_scaled_ms(20000) * 1000000u;
    return params;
}

/* One rank from its set-up to its end; 0 when it went well. */
static int run_rank(const rank_options *options, rank_function function, rank_context *ctx) {
    if (setjmp(ctx->own->leave) == 0) {
        device_select(ctx);
        if (ctx->group == NULL && !options->no_group) {
            moelink_group_params params = group_params(options, ctx);
            RANK_OK(ctx, moelink_group_create(ctx->id, &params, &ctx->group));
        }
        function(ctx);
        if (ctx->group != NULL && !options->no_finalize) RANK_OK(ctx, moelink_group_finalize(ctx->group));
    } else if (options->threads && ctx->group != NULL) {
        moelink_group_abort(ctx->group); /* a process frees its peers by exiting */
    }
    if (!ctx->own->failed || options->threads) moelink_group_destroy(ctx->group);
    report_sendf(ctx->own->pipe, ctx->rank, REPORT_ENDED, "%s", "");
    return ctx->own->failed;
}

static void fill_context(rank_context *ctx, struct rank_private *own, const rank_options *options, int rank, struct board *board,
                         unsigned char *shared, int pipe, int gpus) {
    memset(ctx, 0, sizeof(*ctx));
    memset(own, 0, sizeof(*own));
    own->board = board;
    own->pipe = pipe;
    ctx->rank = rank;
    ctx->size = options->size;
    ctx->user = options->user;
    ctx->id = options->threads ? NULL : &board->id;
    ctx->device = options->device != 0 ? options->device : MOELINK_DEVICE_HOST;
    ctx->ordinal = ctx->device == MOELINK_DEVICE_CUDA && gpus > 0 ? rank % gpus : -1;
    ctx->threads = options->threads;
    ctx->seed = options->seed;
    ctx->shared = shared;
    ctx->own = own;
}

struct rank_thread {
    const rank_options *options;
    rank_function function;
    rank_context ctx;
    struct rank_private own;
    int failed;
};

static void *thread_main(void *argument) {
    struct rank_thread *thread = argument;
    thread->failed = run_rank(thread->options, thread->function, &thread->ctx);
    return NULL;
}

/* The child in which all ranks are threads. */
static int run_threads(const rank_options *options, rank_function function, struct board *board, unsigned char *shared, int pipe,
                       int gpus) {
    static struct rank_thread threads[RANKS_MAX];
    static pthread_t ids[RANKS_MAX];
    static moelink_group *groups[RANKS_MAX];
    static moelink_group_params params[RANKS_MAX];
    for (int rank = 0; rank < options->size; ++rank) {
        threads[rank].options = options;
        threads[rank].function = function;
        fill_context(&threads[rank].ctx, &threads[rank].own, options, rank, board, shared, pipe, gpus);
        params[rank] = group_params(options, &threads[rank].ctx);
    }
    if (!options->no_group) {
        moelink_status status = moelink_group_create_threads(options->size, params, groups);
        if (status != MOELINK_OK) {
            report_sendf(pipe, 0, REPORT_FAILED, "moelink_group_create_threads: %s: %s", moelink_status_name(status),
                         moelink_last_error());
            return 1;
        }
    }
    int started = 0;
    for (; started < options->size; ++started) {
        threads[started].ctx.group = groups[started];
        if (pthread_create(&ids[started], NULL, thread_main, &threads[started]) != 0) {
            report_sendf(pipe, started, REPORT_FAILED, "%s", "pthread_create failed");
            return 1;
        }
    }
    int failed = 0;
    for (int rank = 0; rank < started; ++rank) {
        pthread_join(ids[rank], NULL);
        failed |= threads[rank].failed;
    }
    return failed;
}

static int wait_for_id(struct board *board, uint64_t end) {
    while (__atomic_load_n(&board->id_state, __ATOMIC_ACQUIRE) == 0) {
        if (now_ms() > end) {
            snprintf(board->text, sizeof(board->text), "the rendezvous server did not come up by the deadline");
            return 0;
        }
        nap_us(200);
    }
    return board->id_state == 1;
}

static void *share(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

int ranks_run(const rank_options *options, rank_function function) {
    int size = options->size;
    if (size < 1 || size > RANKS_MAX) {
        fprintf(stderr, "ranks_run: size %d is not 1..%d\n", size, RANKS_MAX);
        return size > 0 ? size : 1;
    }
    int deadline_ms = ranks_scaled_ms(options->deadline_ms > 0 ? options->deadline_ms : 60000);
    uint64_t end = now_ms() + (uint64_t)deadline_ms;
    int gpus = options->device == MOELINK_DEVICE_CUDA ? device_gpu_count() : 0;
    struct board *board = share(sizeof(*board));
    size_t shared_bytes = options->shared_bytes != 0 ? options->shared_bytes : 1;
    unsigned char *shared = share(shared_bytes);
    int lifeline[2] = {-1, -1}, messages[2] = {-1, -1};
    struct report report;
    report_start(&report, options, deadline_ms);
    if (board == NULL || shared == NULL || pipe2(lifeline, O_CLOEXEC) != 0 || pipe2(messages, O_CLOEXEC) != 0) {
        report_setup_failed(&report, strerror(errno));
        return report_finish(&report);
    }
    fflush(NULL); /* or children would write the parent's buffered text again */
    pid_t parent = getpid(), server = -1;
    int ready = 1;
    if (!options->threads) {
        server = fork();
        if (server == 0) {
            be_child(parent);
            close(lifeline[1]);
            close(messages[0]);
            close(messages[1]);
            serve(board, size, lifeline[0]);
        }
        ready = server > 0 && wait_for_id(board, end);
        if (!ready) report_setup_failed(&report, server < 0 ? strerror(errno) : board->text);
    }
    for (int child = 0; ready && child < (options->threads ? 1 : size); ++child) {
        pid_t pid = fork();
        if (pid == 0) {
            be_child(parent);
            close(lifeline[0]);
            close(lifeline[1]);
            close(messages[0]);
            if (options->threads) leave_child(run_threads(options, function, board, shared, messages[1], gpus));
            rank_context ctx;
            struct rank_private own;
            fill_context(&ctx, &own, options, child, board, shared, messages[1], gpus);
            leave_child(run_rank(options, function, &ctx));
        }
        if (pid < 0) {
            report_setup_failed(&report, strerror(errno));
            break;
        }
        report_add_child(&report, pid);
    }
    close(messages[1]);
    report_collect(&report, messages[0], end);
    close(messages[0]);
    close(lifeline[0]);
    close(lifeline[1]);
    if (server > 0) report_reap_server(&report, server, 5000);
    munmap(board, sizeof(*board));
    munmap(shared, shared_bytes);
    return report_finish(&report);
}
