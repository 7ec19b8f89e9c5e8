// A rank of tests that move experts over NCCL, the real one or the one in host memory: a layer, what its slots hold, and a
// communicator of either NCCL kind.
#pragma once

#include "exchange.h"

#include "driver/nccl.hpp"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

namespace moelink {

// NCCL's communicator over the ranks of a run, as a caller has one.
inline NcclComm join_nccl(rank_context *ctx, int blocking) {
    NcclUniqueId id{};
    if (ctx->rank == 0) RANK_EQUAL(ctx, nccl().unique_id(&id), nccl_success);
    std::vector<NcclUniqueId> all(static_cast<size_t>(ctx->size));
    RANK_OK(ctx, moelink_group_allgather(ctx->group, &id, all.data(), sizeof id));
    NcclConfig config;
    config.blocking = blocking;
    NcclComm comm = nullptr;
    check_nccl(nccl().comm_init_rank_config(&comm, ctx->size, all[0], ctx->rank, &config), "ncclCommInitRankConfig");
    NcclResult state = nccl_in_progress;
    while (state == nccl_in_progress) {
        RANK_EQUAL(ctx, nccl().comm_async_error(comm, &state), nccl_success);
        std::this_thread::yield();
    }
    RANK_EQUAL(ctx, state, nccl_success);
    return comm;
}

struct NcclRank {
    static constexpr int slots = 3;
    static constexpr int32_t number = 4;
    static constexpr uint64_t scale = 500;  // rows of the first tensor

    rank_context *ctx;
    int32_t kind;
    exchange_layer layer;
    NcclComm callers = nullptr;
    moelink_eplb_comm *comm = nullptr;
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    std::vector<int32_t> map;  // what the slots hold
    uint64_t maps = 77;        // the same on all ranks

    NcclRank(rank_context *context, int32_t kind_wanted, uint64_t timeout_ns = 0) : ctx(context), kind(kind_wanted) {
        RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, kind, &comm));
        params.timeout_ns = timeout_ns;
        params.staging_experts = slots;
        layer = exchange_make(ctx, number, slots, scale, EXCHANGE_PLAIN);
        map = draw();
        for (int32_t &expert : map) expert = expert < 0 ? 0 : expert;  // every slot holds something
        exchange_fill(ctx, &layer, mine(map));
    }
    ~NcclRank() { exchange_free(ctx, &layer); }
    NcclRank(const NcclRank &) = delete;
    NcclRank &operator=(const NcclRank &) = delete;

    const int32_t *mine(const std::vector<int32_t> &of) const { return of.data() + ctx->rank * slots; }

    // A communicator that is new, or as new. The caller's own does not block: what is lost must not hang the test.
    void start() {
        if (kind == MOELINK_EPLB_COMM_NCCL) params.nccl_comm = callers = join_nccl(ctx, 0);
        RANK_OK(ctx, moelink_eplb_comm_reinit(comm, &params));
        exchange_register(ctx, comm, &layer);
    }
    void stop() {
        moelink_eplb_comm_destroy(comm);
        if (callers != nullptr) RANK_EQUAL(ctx, nccl().comm_destroy(std::exchange(callers, nullptr)), nccl_success);
        RANK_OK(ctx, moelink_group_barrier(ctx->group));
    }
    int32_t state() const {
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
    void number_slots() {
        for (size_t at = 0; at < map.size(); ++at) map[at] = static_cast<int32_t>(at);
        exchange_fill(ctx, &layer, mine(map));
    }
    // Queues a round in which every rank gets all of the next one's experts.
    void queue_turn() {
        number_slots();
        std::vector<int32_t> next = map;
        std::rotate(next.begin(), next.begin() + slots, next.end());
        RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, map.data(), static_cast<int64_t>(map.size()), number));
        RANK_EQUAL(ctx, exchange_queue(ctx, comm, &layer, map.data(), next.data()), slots);
    }
    // After rank 1 has died: this rank learns it, keeps what it had, and can give its communicator up.
    void outlive() {
        RANK_STATUS(ctx, moelink_eplb_comm_execute(comm), MOELINK_ERR_PEER_EXITED);
        RANK_TEXT(ctx, moelink_last_error(), "rank 1 exited");
        RANK_EQUAL(ctx, state(), MOELINK_EPLB_COMM_POISONED);
        if (callers != nullptr) RANK_EQUAL(ctx, nccl().comm_abort(std::exchange(callers, nullptr)), nccl_success);
        moelink_eplb_comm_destroy(comm);
        exchange_check(ctx, &layer, mine(map));
    }
    // Several rounds, one expert to everybody, and nothing for anybody.
    void run_rounds() {
        for (int round = 0; round < 6; ++round) run(draw());
        std::vector<int32_t> next = map;
        for (int to = 0; to < ctx->size; ++to) next[static_cast<size_t>(to * slots + to % slots)] = map[0];
        run(next);
        run(map);
        moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
        RANK_OK(ctx, moelink_eplb_comm_stats_of(comm, &stats));
        RANK_EQUAL(ctx, stats.rounds, 8);
        RANK_CHECK(ctx, ctx->size == 1 || stats.received_bytes[MOELINK_EPLB_LINK_PEER] > 0);
        RANK_EQUAL(ctx, stats.received_bytes[MOELINK_EPLB_LINK_HOST], 0);
    }
    // Straight to memory that holds nothing yet, from and to rows that are not contiguous: everybody's first expert to all others.
    void run_direct() {
        number_slots();
        exchange_layer landing = exchange_make(ctx, number, ctx->size, scale, EXCHANGE_PLAIN);
        std::vector<int32_t> wanted(static_cast<size_t>(ctx->size));
        for (int from = 0; from < ctx->size; ++from) wanted[static_cast<size_t>(from)] = from == ctx->rank ? -1 : from * slots;
        for (int round = 0; round < 3; ++round) {
            const std::vector<int32_t> nothing(wanted.size(), -1);
            exchange_fill(ctx, &landing, nothing.data());
            RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, map.data(), static_cast<int64_t>(map.size()), number));
            for (int peer = 0; peer < ctx->size; ++peer) {
                if (peer == ctx->rank) continue;
                moelink_rows rows[EXCHANGE_TENSORS];
                exchange_rows(&landing, peer, rows);
                RANK_OK(ctx, moelink_eplb_comm_add_send(comm, nullptr, 0, peer, ctx->rank * slots));
                RANK_OK(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, peer, peer * slots));
            }
            RANK_OK(ctx, moelink_eplb_comm_execute(comm));
            exchange_check(ctx, &landing, wanted.data());
            exchange_check(ctx, &layer, mine(map));
        }
        // Rows that are not contiguous: those of two tensors. Of what is sent to all there is one contiguous copy, of what is received
        // one for each sender.
        uint64_t apart = 0;
        for (const moelink_eplb_tensor &tensor : layer.tensors) {
            const bool contiguous = tensor.rows == 1 || tensor.row_stride == 0 || tensor.row_stride == tensor.row_bytes;
            apart += contiguous ? 0 : tensor.rows * tensor.row_bytes;
        }
        moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
        RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, nullptr, 0));
        RANK_EQUAL(ctx, info.staging_bytes, static_cast<uint64_t>(ctx->size) * apart);
        exchange_free(ctx, &landing);
    }
};

}  // namespace moelink
