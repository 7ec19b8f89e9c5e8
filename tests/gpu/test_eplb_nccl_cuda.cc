/* Experts moved by NCCL between GPUs, one rank a GPU: both NCCL kinds, whole models, beside the model's own collectives, and over and
 * over. What happens when calls fail is tested over NCCL in host memory. */
#include "device.h"
#include "nccl_rank.hpp"
#include "rearrange_model.h"

#include "moe/nccl_comm.hpp"

#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <string>
#include <thread>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;

namespace {

constexpr int gpus = 2;

int32_t kind_of(const rank_context *ctx) { return *static_cast<const int32_t *>(ctx->user); }

void run(int32_t kind, rank_function function, const char *name) {
    rank_options options{};
    options.size = gpus;
    options.device = MOELINK_DEVICE_CUDA;
    options.user = &kind;
    options.name = name;
    options.timeout_ns = uint64_t{60} * 1000 * 1000 * 1000;  // NCCL takes its time to begin
    options.deadline_ms = 240 * 1000;
    assert_int_equal(ranks_run(&options, function), 0);
}

const int32_t both[] = {MOELINK_EPLB_COMM_NCCL_OWN, MOELINK_EPLB_COMM_NCCL};

// On the default stream, then on one of the caller's; rows at both ends that are not contiguous; then a reinit.
void rounds(rank_context *ctx) {
    NcclRank rank(ctx, kind_of(ctx));
    rank.params.flags = MOELINK_EPLB_COMM_F_CHECKSUM;
    rank.start();
    rank.run_rounds();
    moelink_stream stream = device_stream_create(ctx);
    RANK_OK(ctx, moelink_eplb_comm_set_stream(rank.comm, stream));
    rank.number_slots();  // the last rounds have left experts without a slot
    for (int round = 0; round < 3; ++round) rank.run(rank.draw());
    if (rank.callers != nullptr) {
        RANK_OK(ctx, moelink_eplb_comm_cleanup(rank.comm));
        RANK_EQUAL(ctx, nccl().comm_destroy(std::exchange(rank.callers, nullptr)), nccl_success);
    }
    rank.params.flags = MOELINK_EPLB_COMM_F_DIRECT;
    rank.start();
    RANK_OK(ctx, moelink_eplb_comm_set_stream(rank.comm, stream));
    rank.run_direct();
    rank.stop();
    device_stream_destroy(ctx, stream);
}
void test_rounds(void **) {
    for (int32_t kind : both) run(kind, &rounds, moelink_eplb_comm_kind_name(kind));
}

// A caller's communicator that blocks, as most do, and that the caller goes on using.
void callers(rank_context *ctx) {
    NcclRank rank(ctx, MOELINK_EPLB_COMM_NCCL);
    rank.params.nccl_comm = rank.callers = join_nccl(ctx, 1);
    RANK_OK(ctx, moelink_eplb_comm_init(rank.comm, &rank.params));
    exchange_register(ctx, rank.comm, &rank.layer);
    auto *words = static_cast<int *>(device_alloc(ctx, sizeof(int) * gpus));
    for (int round = 0; round < 3; ++round) {
        rank.run(rank.draw());
        int all[gpus] = {-1, -1};
        device_copy(ctx, words + ctx->rank, &ctx->rank, sizeof(int));
        RANK_EQUAL(ctx, nccl().all_gather(words + ctx->rank, words, 1, nccl_int32, rank.callers, nullptr), nccl_success);
        device_sync(ctx, nullptr);
        device_copy(ctx, all, words, sizeof all);
        for (int peer = 0; peer < gpus; ++peer) RANK_EQUAL(ctx, all[peer], peer);
    }
    device_free(ctx, words);
    rank.stop();
}
void test_callers(void **) { run(MOELINK_EPLB_COMM_NCCL, &callers, "the caller's, in use"); }

void rearranged(rank_context *ctx) {
    const model_options options = {4, 12, 20, MOELINK_EPLB_COMM_NCCL_OWN, EXCHANGE_PLAIN, 2, 0, MOELINK_EPLB_OVERLAP_ALWAYS, 3000, 0};
    rearrange_model model = model_make(ctx, &options);
    moelink_eplb_rearrange_params params = model_params(&model);
    params.flags = MOELINK_EPLB_REARRANGE_F_PROFILE;
    moelink_eplb_rearrange_result result = model_result(&model);
    RANK_OK(ctx, moelink_eplb_rearrange(model.comm, &model.shape, &params, &result));
    for (int layer = 0; layer < options.layers; ++layer) exchange_check(ctx, &model.layers[layer], model.held + layer * options.slots);
    params.flags = 0;
    result = model_rearrange(ctx, &model, &params);
    RANK_CHECK(ctx, result.staging <= options.staging);
    model_free(ctx, &model);
}
void test_rearranged(void **) { run(MOELINK_EPLB_COMM_NCCL_OWN, &rearranged, "rearranged"); }

// The model's own collectives on another thread, stream and communicator, while experts move.
void beside_model(rank_context *ctx) {
    NcclRank rank(ctx, MOELINK_EPLB_COMM_NCCL_OWN);
    rank.params.flags = MOELINK_EPLB_COMM_F_ASYNC;
    rank.start();
    moelink_stream stream = device_stream_create(ctx);
    RANK_OK(ctx, moelink_eplb_comm_set_stream(rank.comm, stream));
    NcclComm model = join_nccl(ctx, 1);
    moelink_stream forward = device_stream_create(ctx);
    constexpr size_t values = 1 << 16;
    constexpr int steps = 300;
    auto *mine = static_cast<int *>(device_alloc(ctx, values * sizeof(int)));
    auto *all = static_cast<int *>(device_alloc(ctx, gpus * values * sizeof(int)));
    const std::vector<int> numbers(values, 1000 + ctx->rank);
    device_copy(ctx, mine, numbers.data(), values * sizeof(int));
    std::atomic<int> done{0};
    std::thread thread([&] {
        device_select(ctx);
        for (int step = 0; step < steps; ++step) {
            if (nccl().all_gather(mine, all, values, nccl_int32, model, forward) != nccl_success) return;
            device_sync(ctx, forward);
            ++done;
        }
    });
    for (int round = 0; round < 20; ++round) rank.run(rank.draw());
    thread.join();
    RANK_EQUAL(ctx, done.load(), steps);
    std::vector<int> got(gpus * values);
    device_copy(ctx, got.data(), all, got.size() * sizeof(int));
    for (size_t at = 0; at < got.size(); ++at) RANK_EQUAL(ctx, got[at], 1000 + static_cast<int>(at / values));
    RANK_EQUAL(ctx, nccl().comm_destroy(model), nccl_success);
    rank.stop();
    device_free(ctx, mine);
    device_free(ctx, all);
    device_stream_destroy(ctx, forward);
    device_stream_destroy(ctx, stream);
}
void test_beside_model(void **) { run(MOELINK_EPLB_COMM_NCCL_OWN, &beside_model, "beside the model"); }

// Communicators one after the other take no more memory than the first ones did.
void again(rank_context *ctx) {
    constexpr int times = 20;
    constexpr int settled = 4;
    constexpr uint64_t slack = 64u << 20;  // [bytes] what else the driver may take
    uint64_t left = 0;
    for (int time = 0; time < times; ++time) {
        NcclRank rank(ctx, MOELINK_EPLB_COMM_NCCL_OWN);
        rank.start();
        rank.run(rank.draw());
        rank.stop();
        if (time == settled) left = device_free_bytes(ctx);
    }
    const uint64_t now = device_free_bytes(ctx);
    rank_note(ctx, "free after %d communicators %llu, after %d %llu bytes", settled + 1, static_cast<unsigned long long>(left), times,
              static_cast<unsigned long long>(now));
    RANK_CHECK(ctx, now + slack >= left);
}
void test_again(void **) { run(MOELINK_EPLB_COMM_NCCL_OWN, &again, "again and again"); }

// Rank 1 is killed between two rounds: nobody hangs, and the other's communicator can be given up.
void orphaned(rank_context *ctx) {
    NcclRank rank(ctx, MOELINK_EPLB_COMM_NCCL_OWN);
    rank.start();
    rank.run(rank.draw());
    rank.queue_turn();
    RANK_CHECK(ctx, rank_meet(ctx, 60000));
    if (ctx->rank == 1) raise(SIGKILL);
    rank.outlive();
}
void test_orphaned(void **) {
    const int dead[] = {1};
    rank_options options{};
    options.size = gpus;
    options.device = MOELINK_DEVICE_CUDA;
    options.name = "orphaned";
    options.no_finalize = 1;
    options.dying = dead;
    options.dying_count = 1;
    options.deadline_ms = 120 * 1000;
    assert_int_equal(ranks_run(&options, &orphaned), 0);
}

// Two ranks on one GPU are refused at once, with the reason.
void shared(rank_context *ctx) {
    moelink_eplb_comm *comm = nullptr;
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, MOELINK_EPLB_COMM_NCCL_OWN, &comm));
    const moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    RANK_STATUS(ctx, moelink_eplb_comm_init(comm, &params), MOELINK_ERR_UNSUPPORTED);
    RANK_TEXT(ctx, moelink_last_error(), "share a GPU");
    moelink_eplb_comm_destroy(comm);
}
void test_shared(void **) {
    rank_options options{};
    options.size = device_gpu_count() + 1;
    options.device = MOELINK_DEVICE_CUDA;
    options.name = "a rank more than GPUs";
    assert_int_equal(ranks_run(&options, &shared), 0);
}

}  // namespace

int main() {
    const int skipped = device_skip_main(MOELINK_DEVICE_CUDA, gpus);
    if (skipped != 0) return skipped;
    std::string why;
    if (nccl_available(&why) != MOELINK_OK) {
        std::printf("skipped: %s\n", why.c_str());
        return 77;
    }
    const CMUnitTest tests[] = {cmocka_unit_test(test_rounds),       cmocka_unit_test(test_callers), cmocka_unit_test(test_rearranged),
                                cmocka_unit_test(test_beside_model), cmocka_unit_test(test_again),   cmocka_unit_test(test_orphaned),
                                cmocka_unit_test(test_shared)};
    return cmocka_run_group_tests_name("experts over NCCL", tests, nullptr, nullptr);
}
