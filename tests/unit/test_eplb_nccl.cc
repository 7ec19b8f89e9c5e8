/* The NCCL kinds of weight-exchange communicators over NCCL in host memory: exact bytes, and what is left when a call fails. */
#include "exchange.h"
#include "fake_nccl.h"
#include "values.h"

#include "driver/nccl.hpp"

#include <moelink/moelink.h>

#include <algorithm>
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

constexpr int slots = 3;
constexpr int32_t layer_number = 4;
constexpr uint64_t scale = 500;  // rows of the first tensor: more than a ring of the fake

// A communicator of NCCL as a caller has one.
NcclComm join(rank_context *ctx, int blocking) {
    NcclUniqueId id{};
    if (ctx->rank == 0) RANK_EQUAL(ctx, nccl().unique_id(&id), nccl_success);
    std::vector<NcclUniqueId> all(static_cast<size_t>(ctx->size));
    RANK_OK(ctx, moelink_group_allgather(ctx->group, &id, all.data(), sizeof id));
    NcclConfig config;
    config.blocking = blocking;
    NcclComm comm = nullptr;
    check_nccl(nccl().comm_init_rank_config(&comm, ctx->size, all[0], ctx->rank, &config), "ncclCommInitRankConfig");
    NcclResult state = nccl_in_progress;
    while (state == nccl_in_progress) nccl().comm_async_error(comm, &state);
    RANK_EQUAL(ctx, state, nccl_success);
    return comm;
}

// What a rank of these tests has.
struct Ranked {
    rank_context *ctx;
    int32_t kind;
    exchange_layer layer;
    NcclComm callers = nullptr;
    moelink_eplb_comm *comm = nullptr;
    std::vector<int32_t> map;  // what the slots hold

    Ranked(rank_context *context, int32_t kind_wanted, uint64_t timeout_ns = 0) : ctx(context), kind(kind_wanted) {
        let_nccl_take_host_memory(true);
        RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, kind, &comm));
        params.timeout_ns = timeout_ns;
        params.staging_experts = slots;
        layer = exchange_make(ctx, layer_number, slots, scale, EXCHANGE_PLAIN);
        map = draw();
        for (int32_t &expert : map) expert = expert < 0 ? 0 : expert;  // every slot holds something
        exchange_fill(ctx, &layer, mine(map));
    }
    ~Ranked() {
        exchange_free(ctx, &layer);
        let_nccl_take_host_memory(false);
    }

    const int32_t *mine(const std::vector<int32_t> &of) const { return of.data() + ctx->rank * slots; }

    // A communicator that is new, or as new.
    void start() {
        if (kind == MOELINK_EPLB_COMM_NCCL) params.nccl_comm = callers = join(ctx, 0);
        RANK_OK(ctx, moelink_eplb_comm_reinit(comm, &params));
        exchange_register(ctx, comm, &layer);
    }
    void stop() {
        moelink_eplb_comm_destroy(comm);
        if (callers != nullptr) RANK_EQUAL(ctx, nccl().comm_destroy(callers), nccl_success);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
        expect_left(0);
    }
    void expect_left(int communicators) {
        const fake_nccl_left left = fake_nccl_outstanding();
        RANK_EQUAL(ctx, left.groups, 0);
        RANK_EQUAL(ctx, left.queued, 0);
        RANK_EQUAL(ctx, left.misuses, 0);
        if (!ctx->threads) RANK_EQUAL(ctx, left.communicators, communicators);
    }
    int32_t state_now() {
        moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
        RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, nullptr, 0));
        return info.state;
    }
    std::vector<int32_t> draw() {
        std::vector<int32_t> next(static_cast<size_t>(ctx->size * slots));
        exchange_map(++maps, ctx->size, slots, ctx->size * slots - 2, next.data());
        return next;
    }
    void run(const std::vector<int32_t> &next) {
        exchange_run(ctx, comm, &layer, map.data(), next.data());
        for (size_t at = 0; at < map.size(); ++at) map[at] = next[at] < 0 ? map[at] : next[at];
    }
    // Queues a round in which every rank gets all of the next one's experts.
    void queue_turn() {
        for (size_t at = 0; at < map.size(); ++at) map[at] = static_cast<int32_t>(at);
        exchange_fill(ctx, &layer, mine(map));
        std::vector<int32_t> next = map;
        std::rotate(next.begin(), next.begin() + slots, next.end());
        RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, map.data(), static_cast<int64_t>(map.size()), layer_number));
        RANK_EQUAL(ctx, exchange_queue(ctx, comm, &layer, map.data(), next.data()), slots);
    }

    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    uint64_t maps = 77;  // the same on all ranks
};

int32_t kind_of(const rank_context *ctx) { return *static_cast<const int32_t *>(ctx->user); }

void run(int size, int threads, int32_t kind, rank_function function) {
    rank_options options{};
    options.size = size;
    options.threads = threads;
    options.user = &kind;
    options.name = moelink_eplb_comm_kind_name(kind);
    assert_int_equal(ranks_run(&options, function), 0);
}

const int32_t both[] = {MOELINK_EPLB_COMM_NCCL_OWN, MOELINK_EPLB_COMM_NCCL};

// ---- exact bytes

void rounds(rank_context *ctx) {
    Ranked rank(ctx, kind_of(ctx));
    rank.start();
    for (int round = 0; round < 6; ++round) rank.run(rank.draw());

    // One expert to everybody, then nothing for anybody.
    std::vector<int32_t> next = rank.map;
    for (int to = 0; to < ctx->size; ++to) next[static_cast<size_t>(to * slots + to % slots)] = rank.map[0];
    rank.run(next);
    rank.run(rank.map);

    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    RANK_OK(ctx, moelink_eplb_comm_stats_of(rank.comm, &stats));
    RANK_EQUAL(ctx, stats.rounds, 8);
    RANK_CHECK(ctx, ctx->size == 1 || stats.received_bytes[MOELINK_EPLB_LINK_PEER] > 0);
    RANK_EQUAL(ctx, stats.received_bytes[MOELINK_EPLB_LINK_HOST], 0);
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

// Straight to memory that holds nothing yet, from and to rows that are not contiguous: everybody's first expert to all others.
void direct(rank_context *ctx) {
    Ranked rank(ctx, kind_of(ctx));
    rank.params.flags = MOELINK_EPLB_COMM_F_DIRECT | MOELINK_EPLB_COMM_F_CHECKSUM;
    rank.start();
    for (int32_t at = 0; at < ctx->size * slots; ++at) rank.map[static_cast<size_t>(at)] = at;
    exchange_fill(ctx, &rank.layer, rank.mine(rank.map));
    exchange_layer landing = exchange_make(ctx, layer_number, ctx->size, scale, EXCHANGE_PLAIN);
    std::vector<int32_t> wanted(static_cast<size_t>(ctx->size));
    for (int from = 0; from < ctx->size; ++from) wanted[static_cast<size_t>(from)] = from == ctx->rank ? -1 : from * slots;
    for (int round = 0; round < 3; ++round) {
        const std::vector<int32_t> nothing(wanted.size(), -1);
        exchange_fill(ctx, &landing, nothing.data());
        RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(rank.comm, rank.map.data(), static_cast<int64_t>(rank.map.size()), layer_number));
        for (int peer = 0; peer < ctx->size; ++peer) {
            if (peer == ctx->rank) continue;
            moelink_rows rows[EXCHANGE_TENSORS];
            exchange_rows(&landing, peer, rows);
            RANK_OK(ctx, moelink_eplb_comm_add_send(rank.comm, nullptr, 0, peer, ctx->rank * slots));
            RANK_OK(ctx, moelink_eplb_comm_add_recv(rank.comm, rows, EXCHANGE_TENSORS, peer, peer * slots));
        }
        RANK_OK(ctx, moelink_eplb_comm_execute(rank.comm));
        exchange_check(ctx, &landing, wanted.data());
        exchange_check(ctx, &rank.layer, rank.mine(rank.map));
    }
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    RANK_OK(ctx, moelink_eplb_comm_describe(rank.comm, &info, nullptr, 0));
    // Of what is sent to all there is one contiguous copy; what is received has one each.
    RANK_CHECK(ctx, info.staging_bytes > 0);
    exchange_free(ctx, &landing);
    rank.stop();
}
void test_direct(void **) {
    for (int32_t kind : both) run(4, 0, kind, &direct);
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
        RANK_EQUAL(ctx, rank.state_now(), MOELINK_EPLB_COMM_POISONED);
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
    RANK_TEXT(ctx, moelink_last_error(), "deadline");
    fake_nccl_fail(nullptr, 0, 0);
    RANK_EQUAL(ctx, rank.state_now(), MOELINK_EPLB_COMM_POISONED);
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
        RANK_EQUAL(ctx, rank.state_now(), MOELINK_EPLB_COMM_CREATED);
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
    NcclComm comm = join(ctx, 1);
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
    NcclComm model = join(ctx, 1);
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
        cmocka_unit_test(test_failing),   cmocka_unit_test(test_silent),      cmocka_unit_test(test_not_made),
        cmocka_unit_test(test_not_fitting), cmocka_unit_test(test_refused),   cmocka_unit_test(test_beside_model),
        cmocka_unit_test(test_again)};
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
