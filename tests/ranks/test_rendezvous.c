/* The rendezvous and the ranks' own listeners against those who do not belong: wrong secrets and versions, second ranks of one
 * number, missing ranks, and strangers that talk nonsense or say nothing. None of them hangs or stops the right ranks. */
#include "ranks.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

/* Places in a unique id; for strangers, who must know where to go, and for spoiling. */
enum { id_version = 8, id_secret = 32, id_port = 80 };

static void nap_ms(long ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static uint64_t scaled_ns(int ms) { return (uint64_t)ranks_scaled_ms(ms) * 1000000u; }

static int connect_to(uint16_t port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address;
    memset(&address, 0, sizeof(address));
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static uint16_t port_of(const moelink_unique_id *id) {
    uint16_t port;
    memcpy(&port, &id->bytes[id_port], sizeof(port));
    return port;
}

/* What comes back until the other end closes: number of bytes, or -1 when it does not close in time. */
static int bytes_until_closed(int fd, int ms) {
    char buffer[256];
    int total = 0;
    struct pollfd one = {fd, POLLIN, 0};
    for (;;) {
        if (poll(&one, 1, ranks_scaled_ms(ms)) <= 0) return -1;
        ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
        if (got <= 0) return total;
        total += (int)got;
    }
}

static moelink_group_params params_of(const rank_context *ctx) {
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.rank = ctx->rank;
    params.size = ctx->size;
    params.device = MOELINK_DEVICE_HOST;
    params.timeout_ns = scaled_ns(30000);
    return params;
}

static void expect_works(rank_context *ctx, moelink_group *group) {
    int mine = ctx->rank;
    int all[RANKS_MAX];
    RANK_OK(ctx, moelink_group_allgather(group, &mine, all, sizeof(mine)));
    for (int rank = 0; rank < ctx->size; ++rank) RANK_EQUAL(ctx, all[rank], rank);
    RANK_OK(ctx, moelink_group_finalize(group));
    moelink_group_destroy(group);
}

static void joins(rank_context *ctx, const moelink_unique_id *id) {
    moelink_group_params params = params_of(ctx);
    moelink_group *group = NULL;
    RANK_OK(ctx, moelink_group_create(id, &params, &group));
    expect_works(ctx, group);
}

static rank_options options_of(int size, int threads, const char *name) {
    rank_options options;
    memset(&options, 0, sizeof(options));
    options.size = size;
    options.threads = threads;
    options.name = name;
    options.no_group = 1;
    options.shared_bytes = 4096;
    return options;
}

static void run(int size, int threads, const char *name, rank_function function) {
    rank_options options = options_of(size, threads, name);
    assert_int_equal(ranks_run(&options, function), 0);
}

/* Rank 0 holds a server of its own, so that it can ask it; the id goes through shared memory. */
static moelink_rendezvous *serve(rank_context *ctx, const char *interface, int size, moelink_unique_id *id) {
    moelink_rendezvous *server = NULL;
    if (ctx->rank == 0) {
        RANK_OK(ctx, moelink_rendezvous_create(interface, size, &server, id));
        memcpy(ctx->shared, id, sizeof(*id));
    }
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    memcpy(id, ctx->shared, sizeof(*id));
    return server;
}

/* --- ways to listen --- */

static void anywhere(rank_context *ctx) {
    static const char *const interfaces[] = {NULL, "127.0.0.1", "lo", "0.0.0.0"};
    for (int i = 0; i < 4; ++i) {
        moelink_unique_id id;
        rank_scene(ctx, "on %s", interfaces[i] != NULL ? interfaces[i] : "every address");
        moelink_rendezvous *server = serve(ctx, interfaces[i], ctx->size, &id);
        joins(ctx, &id);
        RANK_EQUAL(ctx, moelink_rendezvous_strangers(server), 0);
        RANK_CHECK(ctx, rank_meet(ctx, 20000));
        moelink_rendezvous_destroy(server);
    }
}

static void refuses(rank_context *ctx) {
    moelink_unique_id id;
    moelink_rendezvous *server = (moelink_rendezvous *)1;
    RANK_STATUS(ctx, moelink_rendezvous_create("no-such-if", 2, &server, &id), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_CHECK(ctx, server == NULL);
    RANK_TEXT(ctx, moelink_last_error(), "\"no-such-if\"");
    RANK_STATUS(ctx, moelink_rendezvous_create("192.0.2.1", 2, &server, &id), MOELINK_ERR_PEER_UNREACHABLE);
    RANK_TEXT(ctx, moelink_last_error(), "192.0.2.1");
    RANK_STATUS(ctx, moelink_rendezvous_create(NULL, 0, &server, &id), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_STATUS(ctx, moelink_rendezvous_create(NULL, MOELINK_GROUP_MAX_RANKS + 1, &server, &id), MOELINK_ERR_INVALID_ARGUMENT);

    moelink_group_params params = params_of(ctx);
    moelink_group *group = (moelink_group *)1;
    memset(&id, 0x11, sizeof(id));
    RANK_STATUS(ctx, moelink_group_create(&id, &params, &group), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_CHECK(ctx, group == NULL);
    RANK_OK(ctx, moelink_rendezvous_create("127.0.0.1", 2, &server, &id));
    static const int ranks[] = {-1, 2};
    params.size = 2;
    for (int i = 0; i < 2; ++i) {
        params.rank = ranks[i];
        RANK_STATUS(ctx, moelink_group_create(&id, &params, &group), MOELINK_ERR_INVALID_ARGUMENT);
    }
    params.rank = 0;
    params.size = 3;
    RANK_STATUS(ctx, moelink_group_create(&id, &params, &group), MOELINK_ERR_MISMATCH);
    RANK_TEXT(ctx, moelink_last_error(), "3 ranks");
    RANK_TEXT(ctx, moelink_last_error(), "made for 2");
    params.size = 2;
    params.flags = 4;
    RANK_STATUS(ctx, moelink_group_create(&id, &params, &group), MOELINK_ERR_INVALID_ARGUMENT);
    params.flags = 0;
    params.device = 17;
    RANK_STATUS(ctx, moelink_group_create(&id, &params, &group), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "17");
    moelink_rendezvous_destroy(server);
    params.device = MOELINK_DEVICE_HOST;
    RANK_STATUS(ctx, moelink_group_create(&id, &params, &group), MOELINK_ERR_PEER_UNREACHABLE);
    RANK_TEXT(ctx, moelink_last_error(), "127.0.0.1");
}

static void test_addresses(void **state) {
    (void)state;
    run(3, 0, "anywhere", anywhere);
    run(3, 1, "anywhere, threads", anywhere);
    run(1, 0, "refuses", refuses);
}

/* --- wrong ranks --- */

/* Rank 1 tries with a spoilt id first; the right group forms nevertheless. */
static void wrong_secret(rank_context *ctx) {
    moelink_unique_id id;
    moelink_rendezvous *server = serve(ctx, "127.0.0.1", ctx->size, &id);
    if (ctx->rank == 1) {
        moelink_unique_id spoilt = id;
        moelink_group_params params = params_of(ctx);
        moelink_group *group = (moelink_group *)1;
        spoilt.bytes[id_secret + 31] ^= 1;
        RANK_STATUS(ctx, moelink_group_create(&spoilt, &params, &group), MOELINK_ERR_AUTHENTICATION);
        RANK_CHECK(ctx, group == NULL);
    }
    joins(ctx, &id);
    if (server != NULL) RANK_EQUAL(ctx, moelink_rendezvous_strangers(server), 1);
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    moelink_rendezvous_destroy(server);
}

static void wrong_version(rank_context *ctx) {
    moelink_unique_id id;
    moelink_rendezvous *server = serve(ctx, "127.0.0.1", ctx->size, &id);
    if (ctx->rank == 1) {
        moelink_unique_id newer = id;
        moelink_group_params params = params_of(ctx);
        moelink_group *group = NULL;
        newer.bytes[id_version] = 9;
        RANK_STATUS(ctx, moelink_group_create(&newer, &params, &group), MOELINK_ERR_MISMATCH);
        RANK_TEXT(ctx, moelink_last_error(), "version 9");
        RANK_TEXT(ctx, moelink_last_error(), "this library speaks version ");
    }
    joins(ctx, &id);
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    moelink_rendezvous_destroy(server);
}

/* Process 3 of 4 pretends to be rank 1 of 3, before or after the real one; whichever comes second is refused. */
static void duplicate(rank_context *ctx) {
    int *outcomes = (int *)(void *)(ctx->shared + 512);
    moelink_unique_id id;
    moelink_rendezvous *server = serve(ctx, "127.0.0.1", 3, &id);
    moelink_group_params params = params_of(ctx);
    params.size = 3;
    params.rank = ctx->rank % 3 + (ctx->rank == 3);
    if (ctx->rank == 2) nap_ms(100); /* the twins are both there before the group is complete */
    moelink_group *group = NULL;
    moelink_status status = moelink_group_create(&id, &params, &group);
    outcomes[ctx->rank] = status;
    if (status != MOELINK_OK) {
        RANK_TEXT(ctx, moelink_last_error(), "two ranks have the number 1");
        RANK_CHECK(ctx, status == MOELINK_ERR_MISMATCH && params.rank == 1);
    } else {
        RANK_OK(ctx, moelink_group_finalize(group));
        moelink_group_destroy(group);
    }
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    RANK_EQUAL(ctx, outcomes[0], MOELINK_OK);
    RANK_EQUAL(ctx, outcomes[2], MOELINK_OK);
    RANK_EQUAL(ctx, outcomes[1] + outcomes[3], MOELINK_ERR_MISMATCH);
    moelink_rendezvous_destroy(server);
}

static void missing(rank_context *ctx) {
    moelink_group_params params = params_of(ctx);
    moelink_group *group = NULL;
    params.timeout_ns = scaled_ns(ctx->rank == 0 ? 2000 : 700);
    if (ctx->rank != 1 && ctx->rank != 3) {
        RANK_STATUS(ctx, moelink_group_create(ctx->id, &params, &group), MOELINK_ERR_TIMEOUT);
        RANK_TEXT(ctx, moelink_last_error(), "of 5 ranks did not come to the rendezvous: ");
        if (ctx->rank == 0) RANK_TEXT(ctx, moelink_last_error(), ": 1, 3");
    }
    /* Those that gave up may come again, to the same place. */
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    joins(ctx, ctx->id);
}

static void server_goes(rank_context *ctx) {
    moelink_unique_id id;
    moelink_rendezvous *server = serve(ctx, "127.0.0.1", 3, &id);
    if (ctx->rank == 0) {
        nap_ms(200);
        moelink_rendezvous_destroy(server);
    } else {
        moelink_group_params params = params_of(ctx);
        moelink_group *group = NULL;
        params.size = 3;
        RANK_STATUS(ctx, moelink_group_create(&id, &params, &group), MOELINK_ERR_PEER_UNREACHABLE);
    }
}

static void test_wrong_ranks(void **state) {
    (void)state;
    run(3, 0, "wrong secret", wrong_secret);
    run(3, 0, "wrong version", wrong_version);
    run(4, 0, "duplicate", duplicate);
    run(5, 0, "missing", missing);
    run(3, 0, "the server goes", server_goes);
}

/* --- strangers --- */

enum { strangers = 64, kinds = 4 };

static void talk(int fd, int kind) {
    char text[4096];
    memset(text, 'x', sizeof(text));
    if (kind == 1) (void)!send(fd, "GET / HTTP/1.0\r\n\r\n", 18, MSG_NOSIGNAL); /* less than a hello */
    if (kind == 2) (void)!send(fd, text, sizeof(text), MSG_NOSIGNAL);
    if (kind == 3) {
        memcpy(text, "moelink\0\1\0\0\0\1\0\0", 16); /* the right first words, and no secret */
        (void)!send(fd, text, 128, MSG_NOSIGNAL);
    }
}

/* 64 at once: silent ones, half a hello, nonsense, a hello with no secret behind it. All stay as long as they are let. */
static void surrounded(rank_context *ctx) {
    moelink_unique_id id;
    moelink_rendezvous *server = serve(ctx, NULL, ctx->size, &id);
    int fds[strangers];
    if (ctx->rank == 1) {
        for (int i = 0; i < strangers; ++i) {
            fds[i] = connect_to(port_of(&id));
            RANK_CHECK(ctx, fds[i] >= 0);
            talk(fds[i], i % kinds);
        }
    }
    RANK_CHECK(ctx, rank_meet(ctx, 20000));
    joins(ctx, &id);
    if (ctx->rank == 1) {
        for (int i = 0; i < strangers; ++i) {
            if (i % kinds >= 2) RANK_EQUAL(ctx, bytes_until_closed(fds[i], 20000), 0);
        }
        for (int i = 0; i < strangers; ++i) close(fds[i]);
    }
    RANK_CHECK(ctx, rank_meet(ctx, 30000));
    if (server != NULL) {
        for (int i = 0; i < 2000 && moelink_rendezvous_strangers(server) < strangers; ++i) nap_ms(5);
        RANK_EQUAL(ctx, moelink_rendezvous_strangers(server), strangers);
    }
    moelink_rendezvous_destroy(server);
}

/* A silent connection is not kept: it is closed, without an answer, after a while. */
static void half_open(rank_context *ctx) {
    moelink_unique_id id;
    moelink_rendezvous *server = serve(ctx, "127.0.0.1", 2, &id);
    int fd = connect_to(port_of(&id));
    RANK_CHECK(ctx, fd >= 0);
    RANK_EQUAL(ctx, bytes_until_closed(fd, 20000), 0);
    RANK_EQUAL(ctx, moelink_rendezvous_strangers(server), 1);
    close(fd);
    moelink_rendezvous_destroy(server);
}

/* The port that this process listens on. */
static uint16_t own_listener(void) {
    for (int fd = 3; fd < 256; ++fd) {
        int listening = 0;
        socklen_t length = sizeof(listening);
        struct sockaddr_storage address;
        socklen_t bytes = sizeof(address);
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || !listening) continue;
        if (getsockname(fd, (struct sockaddr *)&address, &bytes) != 0) continue;
        if (address.ss_family == AF_INET) return ntohs(((struct sockaddr_in *)&address)->sin_port);
        if (address.ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    }
    return 0;
}

static void at_a_rank(rank_context *ctx) {
    moelink_group_params params = params_of(ctx);
    moelink_group *group = NULL;
    RANK_OK(ctx, moelink_group_create(ctx->id, &params, &group));
    uint16_t port = own_listener();
    RANK_CHECK(ctx, port != 0);
    int fds[kinds];
    for (int kind = 0; kind < kinds; ++kind) {
        fds[kind] = connect_to(port);
        RANK_CHECK(ctx, fds[kind] >= 0);
        talk(fds[kind], kind);
    }
    RANK_OK(ctx, moelink_group_barrier(group));
    for (int kind = 0; kind < kinds; ++kind) {
        if (kind >= 2) RANK_EQUAL(ctx, bytes_until_closed(fds[kind], 20000), 0);
        close(fds[kind]);
    }
    for (int i = 0; i < 2000 && moelink_group_strangers(group) < kinds; ++i) nap_ms(5);
    RANK_EQUAL(ctx, moelink_group_strangers(group), kinds);
    expect_works(ctx, group);
}

static void test_strangers(void **state) {
    (void)state;
    run(4, 0, "64 strangers", surrounded);
    run(1, 0, "half open", half_open);
    run(3, 0, "strangers at a rank", at_a_rank);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_wrong_ranks),
        cmocka_unit_test(test_strangers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
