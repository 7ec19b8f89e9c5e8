/* The fake NCCL itself: what its collectives give over threads and processes, and that it sees what goes wrong. */
#include "fake_nccl.h"
#include "ranks.h"

#include "driver/nccl.hpp"

#include <cstdarg>
#include <csetjmp>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;

namespace {

constexpr int most_ranks = 8;

// One communicator over the ranks of a run; the id goes through the group.
NcclComm join(rank_context *ctx, int blocking) {
    NcclUniqueId id{};
    if (ctx->rank == 0) RANK_EQUAL(ctx, nccl().unique_id(&id), nccl_success);
    std::vector<NcclUniqueId> all(static_cast<size_t>(ctx->size));
    RANK_OK(ctx, moelink_group_allgather(ctx->group, &id, all.data(), sizeof id));
    NcclConfig config;
    config.blocking = blocking;
    NcclComm comm = nullptr;
    RANK_EQUAL(ctx, nccl().comm_init_rank_config(&comm, ctx->size, all[0], ctx->rank, &config), blocking ? nccl_success : nccl_in_progress);
    return comm;
}

// The communicator's state once it is no longer busy.
NcclResult settled(NcclComm comm) {
    NcclResult state = nccl_in_progress;
    while (nccl().comm_async_error(comm, &state) == nccl_success && state == nccl_in_progress) std::this_thread::yield();
    return state;
}

int value(int from, int to, int at) { return 1000003 * from + 10007 * to + at; }

// All to all with more bytes than a ring holds, of a different length for every pair, to itself too; then a word to each that must
// not overtake them.
void exchange(rank_context *ctx, NcclComm comm) {
    const auto count = [](int from, int to) { return static_cast<size_t>(5000 * from + 300 * to); };
    std::vector<std::vector<int>> out(static_cast<size_t>(ctx->size)), in(out);
    std::vector<int> words(static_cast<size_t>(ctx->size), -1);
    RANK_EQUAL(ctx, nccl().group_start(), nccl_success);
    for (int peer = 0; peer < ctx->size; ++peer) {
        auto &to = out[static_cast<size_t>(peer)];
        to.resize(count(ctx->rank, peer));
        for (size_t i = 0; i < to.size(); ++i) to[i] = value(ctx->rank, peer, static_cast<int>(i));
        in[static_cast<size_t>(peer)].resize(count(peer, ctx->rank));
        RANK_EQUAL(ctx, nccl().send(to.data(), to.size(), nccl_int32, peer, comm, nullptr), nccl_success);
        auto &from = in[static_cast<size_t>(peer)];
        RANK_EQUAL(ctx, nccl().recv(from.data(), from.size(), nccl_int32, peer, comm, nullptr), nccl_success);
        RANK_EQUAL(ctx, nccl().send(&ctx->rank, 1, nccl_int32, peer, comm, nullptr), nccl_success);
        RANK_EQUAL(ctx, nccl().recv(&words[static_cast<size_t>(peer)], 1, nccl_int32, peer, comm, nullptr), nccl_success);
    }
    check_nccl(nccl().group_end(), "ncclGroupEnd", comm);
    RANK_EQUAL(ctx, settled(comm), nccl_success);
    for (int peer = 0; peer < ctx->size; ++peer) {
        RANK_EQUAL(ctx, words[static_cast<size_t>(peer)], peer);
        const auto &from = in[static_cast<size_t>(peer)];
        for (size_t i = 0; i < from.size(); ++i) RANK_EQUAL(ctx, from[i], value(peer, ctx->rank, static_cast<int>(i)));
    }
}

void collectives(rank_context *ctx, NcclComm comm) {
    const int n = 700;
    std::vector<int> all(static_cast<size_t>(n * ctx->size));
    int *mine = &all[static_cast<size_t>(ctx->rank * n)];
    for (int i = 0; i < n; ++i) mine[i] = value(ctx->rank, 0, i);
    check_nccl(nccl().all_gather(mine, all.data(), n, nccl_int32, comm, nullptr), "ncclAllGather", comm);
    RANK_EQUAL(ctx, settled(comm), nccl_success);
    for (int i = 0; i < n * ctx->size; ++i) RANK_EQUAL(ctx, all[static_cast<size_t>(i)], value(i / n, 0, i % n));

    std::vector<int> one(n, ctx->rank), sums(n);
    const int root = ctx->size - 1;
    check_nccl(nccl().broadcast(one.data(), sums.data(), n, nccl_int32, root, comm, nullptr), "ncclBroadcast", comm);
    RANK_EQUAL(ctx, settled(comm), nccl_success);
    for (int got : sums) RANK_EQUAL(ctx, got, root);

    const int ranks_sum = ctx->size * (ctx->size - 1) / 2;
    for (int i = 0; i < n * ctx->size; ++i) all[static_cast<size_t>(i)] = ctx->rank * (i + 1);
    check_nccl(nccl().reduce_scatter(all.data(), sums.data(), n, nccl_int32, nccl_sum, comm, nullptr), "ncclReduceScatter", comm);
    RANK_EQUAL(ctx, settled(comm), nccl_success);
    for (int i = 0; i < n; ++i) RANK_EQUAL(ctx, sums[static_cast<size_t>(i)], ranks_sum * (ctx->rank * n + i + 1));

    std::vector<float> parts(n, static_cast<float>(ctx->rank) + 0.5f), whole(n, -1.0f);
    check_nccl(nccl().reduce(parts.data(), whole.data(), n, nccl_float32, nccl_sum, root, comm, nullptr), "ncclReduce", comm);
    RANK_EQUAL(ctx, settled(comm), nccl_success);
    const float wanted = ctx->rank == root ? static_cast<float>(ranks_sum) + 0.5f * static_cast<float>(ctx->size) : -1.0f;
    for (float got : whole) RANK_CHECK(ctx, got == wanted);
}

void expect_left(rank_context *ctx, int communicators, int misuses) {
    const fake_nccl_left left = fake_nccl_outstanding();
    RANK_EQUAL(ctx, left.communicators, communicators);
    RANK_EQUAL(ctx, left.misuses, misuses);
    RANK_EQUAL(ctx, left.groups, 0);
    RANK_EQUAL(ctx, left.queued, 0);
}

void all_of_it(rank_context *ctx) {
    for (int blocking = 0; blocking < 2; ++blocking) {
        NcclComm comm = join(ctx, blocking);
        RANK_EQUAL(ctx, settled(comm), nccl_success);
        exchange(ctx, comm);
        collectives(ctx, comm);
        RANK_EQUAL(ctx, nccl().comm_destroy(comm), nccl_success);
    }
    RANK_OK(ctx, moelink_group_barrier(ctx->group));
    expect_left(ctx, 0, 0);
}

void run(int size, int threads, rank_function function) {
    rank_options options{};
    options.size = size;
    options.threads = threads;
    assert_int_equal(ranks_run(&options, function), 0);
}

void test_threads(void **) { run(4, 1, &all_of_it); }
void test_processes(void **) {
    run(2, 0, &all_of_it);
    run(most_ranks, 0, &all_of_it);
}

// A refused send: the group tells, nothing of it travels, and the next one does.
void refused(rank_context *ctx) {
    NcclComm comm = join(ctx, 1);
    int out = ctx->rank, in = -1;
    const int peer = 1 - ctx->rank;
    fake_nccl_fail("ncclSend", 2, nccl_system_error);
    RANK_EQUAL(ctx, nccl().group_start(), nccl_success);
    RANK_EQUAL(ctx, nccl().recv(&in, 1, nccl_int32, peer, comm, nullptr), nccl_success);
    RANK_EQUAL(ctx, nccl().send(&out, 1, nccl_int32, peer, comm, nullptr), nccl_success);
    RANK_EQUAL(ctx, fake_nccl_outstanding().queued, 2);
    RANK_EQUAL(ctx, nccl().send(&out, 1, nccl_int32, peer, comm, nullptr), nccl_system_error);
    RANK_EQUAL(ctx, nccl().group_end(), nccl_system_error);
    RANK_EQUAL(ctx, in, -1);
    expect_left(ctx, 1, 0);
    exchange(ctx, comm);
    RANK_EQUAL(ctx, fake_nccl_calls("ncclGroupStart"), 2);
    RANK_EQUAL(ctx, nccl().comm_destroy(comm), nccl_success);
    expect_left(ctx, 0, 0);
}
void test_refused(void **) { run(2, 0, &refused); }

// Rank 1's message is lost: rank 0 waits until it aborts.
void silent(rank_context *ctx) {
    NcclComm comm = join(ctx, 0);
    RANK_EQUAL(ctx, settled(comm), nccl_success);
    int word = 7;
    if (ctx->rank == 0) {
        RANK_EQUAL(ctx, nccl().recv(&word, 1, nccl_int32, 1, comm, nullptr), nccl_in_progress);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        NcclResult state = nccl_success;
        RANK_EQUAL(ctx, nccl().comm_async_error(comm, &state), nccl_success);
        RANK_EQUAL(ctx, state, nccl_in_progress);
        RANK_EQUAL(ctx, nccl().send(&word, 1, nccl_int32, 1, comm, nullptr), nccl_invalid_usage);
        RANK_EQUAL(ctx, nccl().comm_abort(comm), nccl_success);
        expect_left(ctx, 0, 1);
    } else {
        fake_nccl_fail("ncclSend", 1, FAKE_NCCL_LOST);
        RANK_EQUAL(ctx, nccl().send(&word, 1, nccl_int32, 0, comm, nullptr), nccl_success);
        fake_nccl_fail("ncclCommGetAsyncError:state", 1, nccl_remote_error);
        RANK_EQUAL(ctx, settled(comm), nccl_remote_error);
        RANK_EQUAL(ctx, nccl().comm_abort(comm), nccl_success);
        expect_left(ctx, 0, 0);
    }
    RANK_EQUAL(ctx, word, 7);
}
void test_silent(void **) { run(2, 0, &silent); }

// Both ends must name the same number of bytes; a group that is left open is seen.
void careless(rank_context *ctx) {
    NcclComm comm = join(ctx, 0);
    RANK_EQUAL(ctx, settled(comm), nccl_success);
    char bytes[16] = "";
    if (ctx->rank == 0) {
        check_nccl(nccl().send(bytes, 16, nccl_uint8, 1, comm, nullptr), "ncclSend", comm);
        RANK_EQUAL(ctx, settled(comm), nccl_success);
        RANK_EQUAL(ctx, nccl().group_end(), nccl_invalid_usage);
        RANK_EQUAL(ctx, nccl().group_start(), nccl_success);
        RANK_EQUAL(ctx, fake_nccl_outstanding().groups, 1);
        RANK_EQUAL(ctx, nccl().comm_destroy(comm), nccl_invalid_usage);
        RANK_EQUAL(ctx, nccl().group_end(), nccl_success);
        RANK_EQUAL(ctx, nccl().comm_destroy(comm), nccl_success);
        expect_left(ctx, 0, 2);
    } else {
        check_nccl(nccl().recv(bytes, 15, nccl_uint8, 0, comm, nullptr), "ncclRecv", comm);
        RANK_EQUAL(ctx, settled(comm), nccl_internal_error);
        RANK_EQUAL(ctx, nccl().comm_abort(comm), nccl_success);
        expect_left(ctx, 0, 1);
    }
}
void test_careless(void **) { run(2, 0, &careless); }

}  // namespace

int main() {
    const CMUnitTest tests[] = {cmocka_unit_test(test_threads), cmocka_unit_test(test_processes), cmocka_unit_test(test_refused),
                                cmocka_unit_test(test_silent), cmocka_unit_test(test_careless)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
