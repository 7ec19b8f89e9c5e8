/* Exchange of experts over the fake driver: every way that live rows can be read or not, with copies that are late, and every driver
 * call failing once. Ranks are threads; results are compared on the main thread. */
#include "fake_driver.hpp"

#include "driver/cuda.hpp"
#include "memory/place.hpp"

#include <moelink/moelink.h>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstring>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

extern "C" {
#include <cmocka.h>
}

namespace {

constexpr int slots = 2;
constexpr uint64_t slot_bytes = 9000;  // dense; more than two chunks of 4096
constexpr uint64_t strided_rows = 7;
constexpr uint64_t strided_bytes = 24;
constexpr uint64_t stride = 40;
constexpr uint64_t strided_at = slots * slot_bytes;
constexpr uint64_t memory_bytes = strided_at + slots * strided_rows * stride;

enum class Place { symmetric, plain };

struct Case {
    int32_t kind = MOELINK_EPLB_COMM_READ;
    Place place = Place::plain;
    bool processes = true;  // ranks take each other for other processes
    uint32_t flags = 0;
    int staging = slots;
};

struct Outcome {
    moelink_status status = MOELINK_NOT_READY;
    std::string error;
    std::string reasons;
    std::string wrong;
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    moelink_eplb_comm_stats stats = MOELINK_EPLB_COMM_STATS_INIT;
    int overlapped = 0;  // of a rearrangement
    bool done = false;
};

unsigned char byte_of(int expert, uint64_t index) { return static_cast<unsigned char>(expert * 37 + index * 11 + index / 256); }

void fill(unsigned char *memory, int slot, int expert) {
    for (uint64_t i = 0; i < slot_bytes; ++i) memory[slot * slot_bytes + i] = byte_of(expert, i);
    for (uint64_t row = 0; row < strided_rows; ++row) {
        unsigned char *at = memory + strided_at + (slot * strided_rows + row) * stride;
        std::memset(at, 0xAB, stride);
        for (uint64_t i = 0; i < strided_bytes; ++i) at[i] = byte_of(expert, slot_bytes + row * strided_bytes + i);
    }
}

bool holds(const unsigned char *memory, int slot, int expert) {
    std::vector<unsigned char> wanted(memory_bytes);
    fill(wanted.data(), slot, expert);
    const uint64_t at = strided_at + slot * strided_rows * stride;
    return std::memcmp(wanted.data() + slot * slot_bytes, memory + slot * slot_bytes, slot_bytes) == 0 &&
           std::memcmp(wanted.data() + at, memory + at, strided_rows * stride) == 0;
}

class Ranks {
public:
    explicit Ranks(int size, bool peers = true) : groups_(static_cast<size_t>(size)) {
        fake::install(fake::Machine{.devices = size, .peers = peers});
        std::vector<moelink_group_params> params(groups_.size(), moelink_group_params(MOELINK_GROUP_PARAMS_INIT));
        for (int rank = 0; rank < size; ++rank) {
            params[static_cast<size_t>(rank)].device = MOELINK_DEVICE_CUDA;
            params[static_cast<size_t>(rank)].device_ordinal = rank;
        }
        assert_int_equal(moelink_group_create_threads(size, params.data(), groups_.data()), MOELINK_OK);
    }
    Ranks(const Ranks &) = delete;
    ~Ranks() {
        for (moelink_group *group : groups_) moelink_group_destroy(group);
        fake::uninstall();
    }
    int size() const { return static_cast<int>(groups_.size()); }

    // Two layers whose experts go to other ranks, in batches that overlap: turned, each expert to the next rank; spread, rank 0's
    // first expert to all, which pass it on in nodes of two.
    enum class Plan { turned, spread };
    std::vector<Outcome> rearrange(int32_t kind, Plan plan, const std::function<void(int)> &spoil = {}) {
        return on_each([&](int rank, Outcome &outcome) {
            moelink::pretend_own_process(true);
            rearrange_one(rank, kind, plan, spoil, outcome);
        });
    }

    // Each rank's two experts go to the rank before it. `spoil` runs on each rank when all is set up.
    std::vector<Outcome> exchange(const Case &one, const std::function<void(int)> &spoil = {}) {
        return on_each([&](int rank, Outcome &outcome) {
            moelink::pretend_own_process(one.processes);
            exchange_one(rank, one, spoil, outcome);
        });
    }

private:
    std::vector<Outcome> on_each(const std::function<void(int, Outcome &)> &body) {
        std::vector<Outcome> outcomes(groups_.size());
        std::vector<std::thread> threads;
        for (int rank = 0; rank < size(); ++rank) {
            threads.emplace_back([&, rank] {
                fake::act_as(rank);
                body(rank, outcomes[static_cast<size_t>(rank)]);
            });
        }
        for (std::thread &thread : threads) thread.join();
        return outcomes;
    }

    void rearrange_one(int rank, int32_t kind, Plan plan, const std::function<void(int)> &spoil, Outcome &outcome) {
        constexpr int layers = 2, width = 4;  // slots of a rank
        constexpr uint64_t bytes = 5000;
        const int all = size() * width;
        moelink_group *group = groups_[static_cast<size_t>(rank)];
        moelink::ContextGuard guard(rank);
        CUdeviceptr plain = 0;
        moelink::cuda().mem_alloc(&plain, layers * width * bytes);
        auto *memory = reinterpret_cast<unsigned char *>(plain);
        auto at = [&](int layer, int slot) { return memory + static_cast<uint64_t>(layer * width + slot) * bytes; };
        // The rows are still on their way into the slots, on the stream that the communicator works on.
        std::vector<unsigned char> coming(layers * width * bytes);
        auto expert_byte = [](int layer, int expert, uint64_t index) { return byte_of(expert + 100 * layer, index); };
        std::vector<int32_t> before, after;
        for (int layer = 0; layer < layers; ++layer) {
            for (int i = 0; i < all; ++i) {
                before.push_back(i);
                after.push_back(plan == Plan::spread ? (i % width == 0 ? 0 : i) : (i + width) % all);
            }
            for (int slot = 0; slot < width; ++slot) {
                for (uint64_t i = 0; i < bytes; ++i) {
                    coming[static_cast<size_t>(at(layer, slot) - memory) + i] = expert_byte(layer, rank * width + slot, i);
                }
            }
        }
        moelink::cuda().copy_async(plain, reinterpret_cast<CUdeviceptr>(coming.data()), coming.size(), nullptr);
        moelink_group_barrier(group);
        if (spoil) spoil(rank);

        moelink_eplb_comm *comm = nullptr;
        moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
        params.chunk_bytes = 4096;
        params.sm_budget = -1;  // there is no device to run kernels
        params.timeout_ns = 2'000'000'000;
        moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
        shape.layers = layers;
        shape.experts = all;
        shape.slots = all;
        shape.ranks = size();
        shape.nodes = plan == Plan::spread ? size() / 2 : 1;
        moelink_eplb_rearrange_params move = MOELINK_EPLB_REARRANGE_PARAMS_INIT;
        move.old_map = before.data();
        move.new_map = after.data();
        move.old_count = move.new_count = static_cast<int64_t>(before.size());
        move.overlap = MOELINK_EPLB_OVERLAP_ALWAYS;
        moelink_eplb_rearrange_result result = MOELINK_EPLB_REARRANGE_RESULT_INIT;
        std::vector<int32_t> map = before;
        result.map = map.data();
        auto go = [&] {
            moelink_status status = moelink_eplb_comm_create(group, kind, &comm);
            if (!all_well(group, status)) return status;
            status = moelink_eplb_comm_init(comm, &params);
            if (!all_well(group, status)) return status;
            for (int layer = 0; layer < layers; ++layer) {
                const moelink_eplb_tensor tensor{at(layer, 0), 0, 1, bytes, 0};
                status = moelink_eplb_comm_register(comm, layer, &tensor, 1, width);
                if (!all_well(group, status)) return status;
            }
            return moelink_eplb_rearrange(comm, &shape, &move, &result);
        };
        outcome.status = go();
        outcome.error = moelink_last_error();
        outcome.overlapped = static_cast<int>(result.overlapped);
        outcome.done = outcome.status == MOELINK_OK && map == after;
        if (comm != nullptr) moelink_eplb_comm_describe(comm, &outcome.info, nullptr, 0);
        moelink::cuda().stream_synchronize(nullptr);
        for (int layer = 0; layer < layers; ++layer) {
            for (int slot = 0; slot < width; ++slot) {
                const int32_t expert = map[static_cast<size_t>(layer * all + rank * width + slot)];
                for (uint64_t i = 0; i < bytes; ++i) {
                    if (at(layer, slot)[i] == expert_byte(layer, expert, i)) continue;
                    outcome.wrong = "slot " + std::to_string(slot) + " of layer " + std::to_string(layer) + " does not hold what the map says";
                    break;
                }
            }
        }
        moelink_group_barrier(group);
        moelink_eplb_comm_destroy(comm);
        moelink_group_barrier(group);
        moelink::cuda().mem_free(plain);
    }

    void exchange_one(int rank, const Case &one, const std::function<void(int)> &spoil, Outcome &outcome) {
        moelink_group *group = groups_[static_cast<size_t>(rank)];
        moelink_memory *symmetric = nullptr;
        CUdeviceptr plain = 0;
        void *base = nullptr;
        moelink::ContextGuard guard(rank);
        if (one.place == Place::symmetric) {
            moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
            params.bytes = memory_bytes;
            if (moelink_memory_create(group, &params, &symmetric) != MOELINK_OK) outcome.wrong = moelink_last_error();
            moelink_memory_peer(symmetric, rank, &base);
        } else {
            moelink::cuda().mem_alloc(&plain, memory_bytes);
            base = reinterpret_cast<void *>(plain);
        }
        auto *memory = static_cast<unsigned char *>(base);
        // What is to be sent is still on its way into the rows, on the stream that the communicator works on.
        std::vector<unsigned char> coming(memory_bytes);
        for (int slot = 0; slot < slots; ++slot) {
            fill(memory, slot, 99);
            fill(coming.data(), slot, rank * slots + slot);
        }
        CUstream stream = nullptr;
        moelink::cuda().stream_create(&stream, CU_STREAM_NON_BLOCKING);
        moelink::cuda().copy_async(reinterpret_cast<CUdeviceptr>(memory), reinterpret_cast<CUdeviceptr>(coming.data()), memory_bytes, stream);
        moelink_group_barrier(group);
        if (spoil) spoil(rank);
        moelink_eplb_comm *comm = nullptr;
        outcome.status = rounds(group, rank, one, memory, stream, &comm, outcome);
        if (outcome.status != MOELINK_OK) outcome.error = moelink_last_error();
        const bool moved = outcome.status == MOELINK_OK;
        moelink::cuda().stream_synchronize(stream);
        for (int slot = 0; slot < slots; ++slot) {
            const int from = moved ? (rank + 1) % size() : rank;
            if (!holds(memory, slot, from * slots + slot)) outcome.wrong = "slot " + std::to_string(slot) + " holds something else";
        }
        moelink_group_barrier(group);
        moelink_eplb_comm_destroy(comm);
        moelink::cuda().stream_destroy(stream);
        moelink_group_barrier(group);
        moelink_memory_destroy(symmetric);
        if (plain != 0) moelink::cuda().mem_free(plain);
    }

    moelink_status rounds(moelink_group *group, int rank, const Case &one, unsigned char *memory, CUstream stream, moelink_eplb_comm **comm,
                          Outcome &outcome) {
        moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
        params.chunk_bytes = 4096;
        params.sm_budget = -1;  // there is no device to run kernels
        params.staging_experts = one.staging;
        params.flags = one.flags;
        const moelink_eplb_tensor tensors[] = {{memory, 0, 1, slot_bytes, 0},
                                               {memory + strided_at, strided_rows * stride, strided_rows, strided_bytes, stride}};
        moelink_status status = moelink_eplb_comm_create(group, one.kind, comm);
        // Ranks that cannot take part in a later step must not leave the others waiting: each step is agreed on.
        if (!all_well(group, status)) return status != MOELINK_OK ? status : MOELINK_NOT_READY;
        status = moelink_eplb_comm_init(*comm, &params);
        if (!all_well(group, status)) return status != MOELINK_OK ? status : MOELINK_NOT_READY;
        status = moelink_eplb_comm_set_stream(*comm, stream);
        if (!all_well(group, status)) return status != MOELINK_OK ? status : MOELINK_NOT_READY;
        status = moelink_eplb_comm_register(*comm, 0, tensors, 2, slots);
        if (!all_well(group, status)) return status != MOELINK_OK ? status : MOELINK_NOT_READY;
        std::vector<int32_t> old;
        for (int i = 0; i < size() * slots; ++i) old.push_back(i);
        moelink_eplb_comm_set_transfer_context(*comm, old.data(), static_cast<int64_t>(old.size()), 0);
        const int next = (rank + 1) % size(), before = (rank + size() - 1) % size();
        for (int slot = 0; slot < slots; ++slot) {
            moelink_rows rows[2] = {{memory + slot * slot_bytes, slot_bytes, 0, 0, 0},
                                    {memory + strided_at + slot * strided_rows * stride, strided_bytes, stride, 0, 0}};
            moelink_eplb_comm_add_send(*comm, nullptr, 0, before, rank * slots + slot);
            moelink_eplb_comm_add_recv(*comm, rows, 2, next, next * slots + slot);
        }
        status = moelink_eplb_comm_execute(*comm);
        char reasons[2048] = "";
        const std::string error = moelink_last_error();
        moelink_eplb_comm_describe(*comm, &outcome.info, reasons, sizeof reasons);
        moelink_eplb_comm_stats_of(*comm, &outcome.stats);
        outcome.reasons = reasons;
        outcome.error = error;
        return status;
    }

    bool all_well(moelink_group *group, moelink_status status) {
        std::vector<moelink_status> all(groups_.size());
        moelink_group_allgather(group, &status, all.data(), sizeof status);
        for (moelink_status each : all) {
            if (each != MOELINK_OK) return false;
        }
        return true;
    }

    std::vector<moelink_group *> groups_;
};

void expect_clean() {
    const fake::Outstanding left = fake::outstanding();
    if (!left.none()) fail_msg("left behind: %s", fake::text(left).c_str());
}

void expect_moved(const std::vector<Outcome> &outcomes, int32_t link) {
    for (size_t rank = 0; rank < outcomes.size(); ++rank) {
        const Outcome &outcome = outcomes[rank];
        if (outcome.status != MOELINK_OK) fail_msg("rank %zu: %s: %s", rank, moelink_status_name(outcome.status), outcome.error.c_str());
        if (!outcome.wrong.empty()) fail_msg("rank %zu: %s", rank, outcome.wrong.c_str());
        assert_int_equal(outcome.stats.experts_received, slots);
        assert_int_equal(outcome.stats.received_bytes[link], slots * (slot_bytes + strided_rows * strided_bytes));
    }
}

void test_symmetric_memory_is_read(void **) {
    for (int size : {2, 3}) {
        Ranks ranks(size);
        std::vector<Outcome> outcomes = ranks.exchange({.place = Place::symmetric});
        expect_moved(outcomes, MOELINK_EPLB_LINK_PEER);
        assert_int_equal(outcomes[0].info.read_peers, size - 1);
        assert_int_equal(fake::calls(0)["ipc_open"], 0);
        expect_clean();
    }
}

void test_plain_memory_is_read_over_ipc(void **) {
    Ranks ranks(3);
    std::vector<Outcome> outcomes = ranks.exchange({});
    expect_moved(outcomes, MOELINK_EPLB_LINK_PEER);
    assert_int_equal(outcomes[0].info.read_peers, 2);
    assert_int_equal(fake::calls(0)["ipc_open"], 2);  // once a peer, for both tensors
    assert_true(fake::calls(0)["copy_2d_async"] > 0);
    expect_clean();
}

void test_threads_read_by_address(void **) {
    Ranks ranks(3);
    expect_moved(ranks.exchange({.processes = false}), MOELINK_EPLB_LINK_PEER);
    assert_int_equal(fake::calls(0)["ipc_open"], 0);
    assert_int_equal(fake::calls(0)["ctx_enable_peer"], 4);  // two tensors of two ranks
    expect_clean();
    // Mappings of symmetric memory are for one device each, so each rank uses its own.
    expect_moved(ranks.exchange({.place = Place::symmetric, .processes = false}), MOELINK_EPLB_LINK_PEER);
    expect_clean();
}

void test_threads_that_do_not_reach_each_other_stage(void **) {
    Ranks ranks(2, false);
    std::vector<Outcome> outcomes = ranks.exchange({.processes = false});
    expect_moved(outcomes, MOELINK_EPLB_LINK_HOST);
    assert_non_null(std::strstr(outcomes[0].reasons.c_str(), "device 0 cannot reach the memory of device 1"));
    expect_clean();
}

void test_what_is_not_exported_is_staged(void **) {
    Ranks ranks(3);
    std::vector<Outcome> outcomes = ranks.exchange({}, [](int rank) {
        if (rank == 1) fake::fail_call(1, "ipc_handle", 0, CUDA_ERROR_INVALID_VALUE);
    });
    for (int rank = 0; rank < 3; ++rank) {
        const Outcome &outcome = outcomes[static_cast<size_t>(rank)];
        assert_int_equal(outcome.status, MOELINK_OK);
        assert_string_equal(outcome.wrong.c_str(), "");
        const int staged = rank == 1 ? 0 : 1;
        assert_int_equal(outcome.info.staged_peers, staged);
        assert_int_equal(outcome.info.read_peers, 2 - staged);
        const bool has_reason = outcome.reasons.find("rank 1 is staged: tensor 0 of layer 0: it lies in no moelink_memory, and CUDA IPC does "
                                                     "not export it: cuIpcGetMemHandle: CUDA_ERROR_INVALID_VALUE") != std::string::npos;
        assert_int_equal(has_reason, staged);
    }
    // Rank 0 receives from rank 1, the others from ranks that are read.
    assert_true(outcomes[0].stats.received_bytes[MOELINK_EPLB_LINK_HOST] > 0);
    assert_true(outcomes[1].stats.received_bytes[MOELINK_EPLB_LINK_HOST] == 0);
    expect_clean();
}

void test_staged(void **) {
    for (uint32_t flags : {0u, static_cast<uint32_t>(MOELINK_EPLB_COMM_F_CHECKSUM)}) {
        Ranks ranks(3);
        std::vector<Outcome> outcomes = ranks.exchange({.kind = MOELINK_EPLB_COMM_STAGED, .flags = flags});
        expect_moved(outcomes, MOELINK_EPLB_LINK_HOST);
        assert_int_equal(outcomes[0].stats.checked_experts, flags != 0 ? slots : 0);
        assert_true(outcomes[0].info.host_bytes > 0);
        assert_true(fake::calls(0)["event_query"] > 0);
        expect_clean();
    }
}

// What gives something back: when the driver refuses that, nobody can free it.
bool is_release(const std::string &function) {
    static const std::set<std::string> releases = {"mem_release", "mem_unmap", "mem_unreserve", "mem_free",     "ipc_close", "primary_release",
                                                   "ctx_pop",     "host_free", "event_destroy", "stream_destroy"};
    return releases.count(function) != 0;
}

// Two ranks do something; `spoil` runs on each when all is set up.
using Doing = std::function<std::vector<Outcome>(Ranks &, const std::function<void(int)> &spoil)>;

// A rank's every driver call fails once, but for those of which there are very many: of these every `stride`th. Whatever comes of
// it: slots hold what the rank was told, and nobody hangs.
void expect_safe_when_calls_fail(const Doing &doing, int stride) {
    const int victim = 1;
    std::map<std::string, int> before, counts;
    {
        Ranks ranks(2);
        for (const Outcome &outcome : doing(ranks, [&](int rank) {
                 if (rank == victim) before = fake::calls(victim);
             })) {
            if (outcome.status != MOELINK_OK || !outcome.wrong.empty()) fail_msg("%s%s", outcome.error.c_str(), outcome.wrong.c_str());
        }
        counts = fake::calls(victim);
    }
    int failures = 0;
    for (const auto &[function, count] : counts) {
        if (is_release(function) || function == "ctx_push") continue;
        for (int number = before[function] + 1; number <= count; number += count > 40 ? stride : 1) {
            Ranks ranks(2);
            const std::vector<Outcome> outcomes = doing(ranks, [&](int rank) {
                if (rank == victim) fake::fail_call(victim, function, number, CUDA_ERROR_OUT_OF_MEMORY);
            });
            const std::string what = function + " " + std::to_string(number);
            for (const Outcome &outcome : outcomes) {
                if (outcome.status < MOELINK_OK && outcome.error.empty()) fail_msg("%s: no text", what.c_str());
                if (outcome.status == MOELINK_ERR_TIMEOUT) fail_msg("%s: nobody was told: %s", what.c_str(), outcome.error.c_str());
                // The last copies put agreed experts into place: when the device refuses those, the rank's slots are lost.
                const bool lost = outcome.info.state == MOELINK_EPLB_COMM_POISONED;
                if (!lost && !outcome.wrong.empty()) fail_msg("%s: %s", what.c_str(), outcome.wrong.c_str());
            }
            failures += outcomes[victim].status != MOELINK_OK;
            if (function != "ctx_current") expect_clean();  // without a context nothing can be given back
        }
    }
    assert_true(failures > 5);
}

void test_every_call_may_fail(void **) {
    for (int32_t kind : {MOELINK_EPLB_COMM_READ, MOELINK_EPLB_COMM_STAGED}) {
        expect_safe_when_calls_fail([&](Ranks &ranks, const auto &spoil) { return ranks.exchange({.kind = kind}, spoil); }, 1);
    }
}

// ---- Batches that overlap ----

void test_overlapping_batches(void **) {
    for (int32_t kind : {MOELINK_EPLB_COMM_READ, MOELINK_EPLB_COMM_STAGED}) {
        for (int size : {2, 3, 4}) {
            for (Ranks::Plan plan : {Ranks::Plan::turned, Ranks::Plan::spread}) {
                if (plan == Ranks::Plan::spread && size != 4) continue;
                Ranks ranks(size);
                for (const Outcome &outcome : ranks.rearrange(kind, plan)) {
                    if (!outcome.done) fail_msg("%s: %s", moelink_status_name(outcome.status), outcome.error.c_str());
                    assert_string_equal(outcome.wrong.c_str(), "");
                    if (plan == Ranks::Plan::turned) assert_true(outcome.overlapped >= 3);
                }
                expect_clean();
            }
        }
    }
}

void test_every_call_of_overlapping_batches_may_fail(void **) {
    for (int32_t kind : {MOELINK_EPLB_COMM_READ, MOELINK_EPLB_COMM_STAGED}) {
        expect_safe_when_calls_fail([&](Ranks &ranks, const auto &spoil) { return ranks.rearrange(kind, Ranks::Plan::turned, spoil); }, 7);
    }
}

}  // namespace

int main() {
    moelink_log_set_level(MOELINK_LOG_OFF);
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_symmetric_memory_is_read),
        cmocka_unit_test(test_plain_memory_is_read_over_ipc),
        cmocka_unit_test(test_threads_read_by_address),
        cmocka_unit_test(test_threads_that_do_not_reach_each_other_stage),
        cmocka_unit_test(test_what_is_not_exported_is_staged),
        cmocka_unit_test(test_staged),
        cmocka_unit_test(test_every_call_may_fail),
        cmocka_unit_test(test_overlapping_batches),
        cmocka_unit_test(test_every_call_of_overlapping_batches_may_fail),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
