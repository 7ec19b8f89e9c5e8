/* The NCCL kinds of weight-exchange communicators over NCCL in host memory: exact bytes, and what is left when a call fails. */
#include "fake_nccl.h"
#include "nccl_rank.hpp"
#include "rearrange_model.h"

#include "driver/nccl.hpp"

#include <moelink/moelink.h>

#include <atomic>
#include <cstdarg>
#include <csetjmp>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;

namespace {

// Also looks for what is left in the NCCL of host memory.
struct Ranked : NcclRank {
    using NcclRank::NcclRank;
    void stop() {
        NcclRank::stop();
        expect_left(0);
    }
    void expect_left(int communicators) const {
        const fake_nccl_left left = fake_nccl_outstanding();
        RANK_EQUAL(ctx, left.groups, 0);
        RANK_EQUAL(ctx, left.queued, 0);
        RANK_EQUAL(ctx, left.misuses, 0);
        if (!ctx->threads) RANK_EQUAL(ctx, left.communicators, communicators);
    }
};

int32_t kind_of(const rank_context *ctx) { return *static_cast<const int32_t *>(ctx->user); }

void run(int size, int threads, int32_t kind, rank_function function) {
    rank_options options{};
    options.size = size;
    options.threads = threads;
    options.user = &kind;
    options.name = moelink_eplb_comm_kind_name(kind);
    let_nccl_take_host_memory(true);
    assert_int_equal(ranks_run(&options, function), 0);
    let_nccl_take_host_memory(false);
}

const int32_t both[] = {MOELINK_EPLB_COMM_NCCL_OWN, MOELINK_EPLB_COMM_NCCL};

// ---- exact bytes

void rounds(rank_context *ctx) {
    Ranked rank(ctx, kind_of(ctx));
    rank.start();
    rank.run_rounds();
    rank.stop();
}
void test_processes(void **) {
    for (int32_t kind : both) {
        for (int size : {2, 4, 8}) run(size, 0, kind, &rounds);
    }
}
void test_threads(void **) {
    for (int32_t kind : both) {
        for (int size : {1, 4, 8}) run(size, 1, kind, &rounds);
    }
}

void direct(rank_context *ctx) {
    Ranked rank(ctx, kind_of(ctx));
    rank.params.flags = MOELINK_EPLB_COMM_F_DIRECT | MOELINK_EPLB_COMM_F_CHECKSUM;
    rank.start();
    rank.run_direct();
    rank.stop();
}
void test_direct(void **) {
    for (int32_t kind : both) run(4, 0, kind, &direct);
}

// Whole models, and what a profiling run does where NCCL will want memory of its own.
void rearranged(rank_context *ctx) {
    const model_options options = {3, 4, 2 * ctx->size + 2, MOELINK_EPLB_COMM_NCCL_OWN, EXCHANGE_PLAIN, 2, 0, MOELINK_EPLB_OVERLAP_ALWAYS, 50, 0};
    rearrange_model model = model_make(ctx, &options);
    moelink_eplb_rearrange_params params = model_params(&model);
    moelink_eplb_rearrange_result result = model_result(&model);
    params.flags = MOELINK_EPLB_REARRANGE_F_PROFILE;
    const int sends = fake_nccl_calls("ncclSend") + fake_nccl_calls("ncclRecv");
    RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &result));
    RANK_CHECK(ctx, fake_nccl_calls("ncclSend") + fake_nccl_calls("ncclRecv") > sends);
    for (int layer = 0; layer < options.layers; ++layer) exchange_check(ctx, &model.layers[layer], model.held + layer * options.slots);
    params.flags = 0;
    result = model_rearrange(ctx, &model, &params);
    RANK_CHECK(ctx, result.staging <= options.staging);
    model_free(ctx, &model);
    RANK_EQUAL(ctx, fake_nccl_outstanding().misuses, 0);
}
void test_rearranged(void **) {
    for (int size : {2, 4, 8}) run(size, 0, MOELINK_EPLB_COMM_NCCL_OWN, &rearranged);
}

// ---- failures

struct Fault {
    const char *call;
    int number;
    int result;
    moelink_status status;
};
const Fault faults[] = {
    {"ncclGroupStart", 1, nccl_internal_error, MOELINK_ERR_INTERNAL},
    {"ncclSend", 1, nccl_system_error, MOELINK_ERR_INTERNAL},
    {"ncclSend", 2, nccl_invalid_argument, MOELINK_ERR_INTERNAL},
    {"ncclRecv", 1, nccl_unhandled_cuda_error, MOELINK_ERR_DEVICE},
    {"ncclRecv", 3, nccl_system_error, MOELINK_ERR_INTERNAL},
    {"ncclGroupEnd", 1, nccl_system_error, MOELINK_ERR_INTERNAL},
    {"ncclCommGetAsyncError", 1, nccl_system_error, MOELINK_ERR_INTERNAL},
    {"ncclCommGetAsyncError:state", 1, nccl_remote_error, MOELINK_ERR_PEER_EXITED},
};

// Rank 1's call fails: all ranks learn it long before their deadline, keep what they had, and can start afresh.
void failing(rank_context *ctx) {
    Ranked rank(ctx, kind_of(ctx), uint64_t{600} * 1000 * 1000 * 1000);
    rank.start();
    rank.run(rank.draw());
    for (const Fault &fault : faults) {
        rank_scene(ctx, "%s number %d", fault.call, fault.number);
        rank.queue_turn();
        if (ctx->rank == 1) fake_nccl_fail(fault.call, fault.number, fault.result);
        RANK_STATUS(ctx, moelink_eplb_comm_execute(rank.comm), fault.status);
        RANK_TEXT(ctx, moelink_last_error(), "rank 1");
        fake_nccl_fail(nullptr, 0, 0);
        RANK_EQUAL(ctx, rank.state(), MOELINK_EPLB_COMM_POISONED);
        RANK_STATUS(ctx, moelink_eplb_comm_execute(rank.comm), MOELINK_ERR_INVALID_STATE);
        RANK_TEXT(ctx, moelink_last_error(), "reinit");
        // Of the caller's communicator only the caller may say that nothing comes any more.
        if (rank.callers != nullptr) RANK_EQUAL(ctx, nccl().comm_abort(std::exchange(rank.callers, nullptr)), nccl_success);
        exchange_check(ctx, &rank.layer, rank.mine(rank.map));
        rank.start();
        rank.expect_left(1);
        rank.run(rank.draw());
    }
    rank.stop();
}
void test_failing(void **) {
    for (int32_t kind : both) {
        for (int size : {2, 4, 8}) run(size, 0, kind, &failing);
    }
}

// Rank 1's data never come, and it does not know: the others give up at the deadline.
void silent(rank_context *ctx) {
    Ranked rank(ctx, kind_of(ctx), uint64_t{800} * 1000 * 1000 * static_cast<uint64_t>(ranks_scaled_ms(1000)) / 1000);
    rank.start();
    rank.run(rank.draw());
    rank.queue_turn();
    if (ctx->rank == 1) fake_nccl_fail("ncclSend", 0, FAKE_NCCL_LOST);
    RANK_STATUS(ctx, moelink_eplb_comm_execute(rank.comm), MOELINK_ERR_TIMEOUT);
    RANK_TEXT(ctx, moelink_last_error(), "waited in vain for 3 experts of rank 1");
    fake_nccl_fail(nullptr, 0, 0);
    RANK_EQUAL(ctx, rank.state(), MOELINK_EPLB_COMM_POISONED);
    if (rank.callers != nullptr) RANK_EQUAL(ctx, nccl().comm_abort(std::exchange(rank.callers, nullptr)), nccl_success);
    exchange_check(ctx, &rank.layer, rank.mine(rank.map));
    rank.start();
    rank.run(rank.draw());
    rank.stop();
}
void test_silent(void **) {
    for (int32_t kind : both) {
        for (int size : {2, 4}) run(size, 0, kind, &silent);
    }
}

// Rank 1 is killed in the round, wherever it is.
void dying(rank_context *ctx) {
    const auto *death = static_cast<const Fault *>(ctx->user);
    Ranked rank(ctx, death->result);
    rank.start();
    rank.run(rank.draw());
    rank.queue_turn();
    if (ctx->rank == 1) {
        fake_nccl_fail(death->call, death->number, FAKE_NCCL_DIE);
        moelink_eplb_comm_execute(rank.comm);
        RANK_FAIL(ctx, "it lives");
    }
    rank.outlive();
    rank.expect_left(0);
}
void test_dying(void **) {
    const int dead[] = {1};
    for (int32_t kind : both) {
        for (const char *call : {"ncclGroupStart", "ncclSend", "ncclGroupEnd", "ncclCommGetAsyncError"}) {
            for (int size : {2, 4}) {
                Fault death{call, 1, kind, MOELINK_OK};
                rank_options options{};
                options.size = size;
                options.user = &death;
                options.name = call;
                options.no_finalize = 1;
                options.dying = dead;
                options.dying_count = 1;
                let_nccl_take_host_memory(true);
                assert_int_equal(ranks_run(&options, &dying), 0);
                let_nccl_take_host_memory(false);
            }
        }
    }
}

// A communicator that cannot be made leaves nothing, and can be made the next time.
void not_made(rank_context *ctx) {
    Ranked rank(ctx, MOELINK_EPLB_COMM_NCCL_OWN);
    const Fault cases[] = {{"ncclGetUniqueId", 1, nccl_system_error, MOELINK_ERR_INTERNAL},
                           {"ncclCommGetAsyncError:state", 1, nccl_internal_error, MOELINK_ERR_INTERNAL}};
    for (const Fault &fault : cases) {
        rank_scene(ctx, "%s", fault.call);
        if (ctx->rank == 0) fake_nccl_fail(fault.call, fault.number, fault.result);
        RANK_STATUS(ctx, moelink_eplb_comm_init(rank.comm, &rank.params), fault.status);
        RANK_TEXT(ctx, moelink_last_error(), "rank 0");
        fake_nccl_fail(nullptr, 0, 0);
        RANK_EQUAL(ctx, rank.state(), MOELINK_EPLB_COMM_CREATED);
        rank.expect_left(0);
    }
    rank.start();
    rank.run(rank.draw());
    rank.stop();
}
void test_not_made(void **) { run(4, 0, MOELINK_EPLB_COMM_NCCL_OWN, &not_made); }

// What a caller may get wrong about its communicator.
void not_fitting(rank_context *ctx) {
    Ranked rank(ctx, MOELINK_EPLB_COMM_NCCL);
    RANK_STATUS(ctx, moelink_eplb_comm_init(rank.comm, &rank.params), MOELINK_ERR_UNSUPPORTED);
    RANK_TEXT(ctx, moelink_last_error(), "nccl_comm");
    NcclComm comm = join_nccl(ctx, 1);
    // Ranks in another order.
    moelink_group *turned = nullptr;
    RANK_OK(ctx, moelink_group_split(ctx->group, 0, ctx->size - ctx->rank, &turned));
    moelink_eplb_comm *other = nullptr;
    RANK_OK(ctx, moelink_eplb_comm_create(turned, MOELINK_EPLB_COMM_NCCL, &other));
    rank.params.nccl_comm = comm;
    RANK_STATUS(ctx, moelink_eplb_comm_init(other, &rank.params), MOELINK_ERR_INVALID_ARGUMENT);
    RANK_TEXT(ctx, moelink_last_error(), "rank");
    moelink_eplb_comm_destroy(other);
    moelink_group_destroy(turned);
    // A communicator that the caller uses otherwise in between, and keeps.
    rank.callers = comm;
    RANK_OK(ctx, moelink_eplb_comm_init(rank.comm, &rank.params));
    exchange_register(ctx, rank.comm, &rank.layer);
    std::vector<int> all(static_cast<size_t>(ctx->size));
    for (int round = 0; round < 3; ++round) {
        rank.run(rank.draw());
        RANK_EQUAL(ctx, nccl().all_gather(&ctx->rank, all.data(), 1, nccl_int32, comm, nullptr), nccl_success);
        for (int peer = 0; peer < ctx->size; ++peer) RANK_EQUAL(ctx, all[static_cast<size_t>(peer)], peer);
    }
    RANK_EQUAL(ctx, moelink_eplb_comm_needs_reservation(rank.comm), 1);
    rank.stop();
}
void test_not_fitting(void **) { run(4, 0, MOELINK_EPLB_COMM_NCCL, &not_fitting); }

// NCCL needs GPUs: without this test's door the host is refused, with the reason.
void test_refused(void **) {
    char text[512] = "";
    assert_int_equal(moelink_eplb_comm_kind_describe(MOELINK_EPLB_COMM_NCCL_OWN, MOELINK_DEVICE_HOST, text, sizeof text), MOELINK_ERR_UNSUPPORTED);
    assert_non_null(std::strstr(text, "host"));
    let_nccl_take_host_memory(true);
    assert_int_equal(moelink_eplb_comm_kind_describe(MOELINK_EPLB_COMM_NCCL_OWN, MOELINK_DEVICE_HOST, text, sizeof text), MOELINK_OK);
    let_nccl_take_host_memory(false);
}

// ---- beside the model, and over and over

// The model's own collectives on another thread, on a communicator of theirs, while experts move.
void beside_model(rank_context *ctx) {
    Ranked rank(ctx, MOELINK_EPLB_COMM_NCCL_OWN);
    rank.params.flags = MOELINK_EPLB_COMM_F_ASYNC;
    rank.start();
    NcclComm model = join_nccl(ctx, 1);
    constexpr int steps = 200;
    std::atomic<int> right{0};
    std::thread forward([&] {
        std::vector<int> mine(1000), all(mine.size() * static_cast<size_t>(ctx->size));
        for (int step = 0; step < steps; ++step) {
            for (int &value : mine) value = 100 * step + ctx->rank;
            if (nccl().all_gather(mine.data(), all.data(), mine.size(), nccl_int32, model, nullptr) != nccl_success) return;
            bool good = true;
            for (size_t at = 0; at < all.size(); ++at) good = good && all[at] == 100 * step + static_cast<int>(at / mine.size());
            right += good;
        }
    });
    for (int round = 0; round < 10; ++round) rank.run(rank.draw());
    forward.join();
    RANK_EQUAL(ctx, right.load(), steps);
    RANK_EQUAL(ctx, nccl().comm_destroy(model), nccl_success);
    rank.stop();
}
void test_beside_model(void **) {
    for (int size : {2, 4}) run(size, 0, MOELINK_EPLB_COMM_NCCL_OWN, &beside_model);
}

void again(rank_context *ctx) {
    constexpr int times = 100;
    for (int time = 0; time < times; ++time) {
        Ranked rank(ctx, MOELINK_EPLB_COMM_NCCL_OWN);
        rank.start();
        if (time % 10 == 0) rank.run(rank.draw());
        rank.stop();
    }
}
void test_again(void **) { run(2, 0, MOELINK_EPLB_COMM_NCCL_OWN, &again); }

}  // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_processes), cmocka_unit_test(test_threads),     cmocka_unit_test(test_direct),
        cmocka_unit_test(test_rearranged),
        cmocka_unit_test(test_failing),   cmocka_unit_test(test_silent), cmocka_unit_test(test_dying),      cmocka_unit_test(test_not_made),
        cmocka_unit_test(test_not_fitting), cmocka_unit_test(test_refused),   cmocka_unit_test(test_beside_model),
        cmocka_unit_test(test_again)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
