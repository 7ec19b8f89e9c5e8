/* CUDA providers over the fake driver: what they choose, what they say, and that nothing stays behind when a call fails.
 * Ranks are threads; results are compared on the main thread. */
#include "fake_driver.hpp"

#include "memory/place.hpp"

#include <moelink/moelink.h>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

extern "C" {
#include <cmocka.h>
}

namespace {

using fake::granule;
constexpr uint64_t ipc_granule = uint64_t{2} << 20;

struct Outcome {
    moelink_status status = MOELINK_NOT_READY;
    std::string error;
    moelink_memory_info info = MOELINK_MEMORY_INFO_INIT;
    std::string reasons;
    std::string wrong;  // what the memory itself did wrong
};

struct Asked {
    int32_t provider = MOELINK_MEMORY_AUTO;
    uint64_t bytes = 100000;
    uint64_t page_bytes = 0;
    bool processes = false;  // ranks take each other for other processes
    moelink_memory_params params() const {
        moelink_memory_params result = MOELINK_MEMORY_PARAMS_INIT;
        result.provider = provider;
        result.bytes = bytes;
        result.page_bytes = page_bytes;
        return result;
    }
};

// Threads of one process, each with a fake GPU of its own or all on one.
class Ranks {
public:
    Ranks(int size, bool share_gpu = false) : groups_(static_cast<size_t>(size)) {
        fake::install(fake::Machine{.devices = size});
        std::vector<moelink_group_params> params(groups_.size(), moelink_group_params(MOELINK_GROUP_PARAMS_INIT));
        for (int rank = 0; rank < size; ++rank) {
            params[static_cast<size_t>(rank)].device = MOELINK_DEVICE_CUDA;
            params[static_cast<size_t>(rank)].device_ordinal = share_gpu ? 0 : rank;
        }
        assert_int_equal(moelink_group_create_threads(size, params.data(), groups_.data()), MOELINK_OK);
    }
    Ranks(const Ranks &) = delete;
    ~Ranks() {
        for (moelink_group *group : groups_) moelink_group_destroy(group);
        fake::uninstall();
    }
    int size() const { return static_cast<int>(groups_.size()); }

    std::vector<Outcome> run(const Asked &asked, const std::function<void(moelink_group *, int, Outcome &)> &body) {
        std::vector<Outcome> outcomes(groups_.size());
        std::vector<std::thread> threads;
        for (int rank = 0; rank < size(); ++rank) {
            threads.emplace_back([&, rank] {
                fake::act_as(rank);
                moelink::pretend_own_process(asked.processes);
                body(groups_[static_cast<size_t>(rank)], rank, outcomes[static_cast<size_t>(rank)]);
            });
        }
        for (std::thread &thread : threads) thread.join();
        return outcomes;
    }

    std::vector<Outcome> create(const Asked &asked) {
        return run(asked, [&](moelink_group *group, int rank, Outcome &outcome) { create_one(group, rank, asked, outcome); });
    }

    std::vector<Outcome> query(const Asked &asked) {
        return run(asked, [&](moelink_group *group, int, Outcome &outcome) {
            moelink_memory_params params = asked.params();
            char reasons[2048] = "";
            outcome.status = moelink_memory_query(group, &params, &outcome.info, reasons, sizeof reasons);
            if (outcome.status != MOELINK_OK) outcome.error = moelink_last_error();
            outcome.reasons = reasons;
        });
    }

private:
    static bool is_all(const void *at, uint64_t bytes, unsigned char value) {
        const auto *byte = static_cast<const unsigned char *>(at);
        for (uint64_t i = 0; i < bytes; ++i) {
            if (byte[i] != value) return false;
        }
        return true;
    }

    void create_one(moelink_group *group, int rank, const Asked &asked, Outcome &outcome) {
        moelink_memory_params params = asked.params();
        moelink_memory *memory = reinterpret_cast<moelink_memory *>(&params);
        outcome.status = moelink_memory_create(group, &params, &memory);
        if (outcome.status != MOELINK_OK) {
            outcome.error = moelink_last_error();
            if (memory != nullptr) outcome.wrong = "the handle is not NULL after a failure";
            return;
        }
        char reasons[2048] = "";
        moelink_memory_describe(memory, &outcome.info, reasons, sizeof reasons);
        outcome.reasons = reasons;
        std::vector<void *> peers(groups_.size());
        for (int peer = 0; peer < size(); ++peer) moelink_memory_peer(memory, peer, &peers[static_cast<size_t>(peer)]);
        for (void *peer : peers) {
            if (!is_all(peer, outcome.info.bytes, 0)) outcome.wrong = "fresh memory is not zero";
        }
        moelink_group_barrier(group);
        // Every rank writes its byte at its own place in every copy.
        for (void *peer : peers) std::memset(static_cast<char *>(peer) + rank * 1000, rank + 1, 1000);
        moelink_group_barrier(group);
        for (int writer = 0; writer < size(); ++writer) {
            auto *at = static_cast<char *>(peers[static_cast<size_t>(rank)]) + writer * 1000;
            if (!is_all(at, 1000, static_cast<unsigned char>(writer + 1))) outcome.wrong = "a peer's write is missing";
        }
        moelink_group_barrier(group);
        moelink_memory_destroy(memory);
    }

    std::vector<moelink_group *> groups_;
};

// early_is_fine: after a local destroy of IPC memory, which waits for no peer.
void expect_clean(bool early_is_fine = false) {
    fake::Outstanding left = fake::outstanding();
    if (early_is_fine) left.early = 0;
    if (!left.none()) fail_msg("left behind: %s", fake::text(left).c_str());
}

void expect_alike(const std::vector<Outcome> &outcomes, moelink_status status) {
    for (size_t rank = 0; rank < outcomes.size(); ++rank) {
        const Outcome &outcome = outcomes[rank];
        if (outcome.status != status) {
            fail_msg("rank %zu: %s, expected %s: %s", rank, moelink_status_name(outcome.status), moelink_status_name(status),
                     outcome.error.c_str());
        }
        if (!outcome.wrong.empty()) fail_msg("rank %zu: %s", rank, outcome.wrong.c_str());
        if (outcome.error != outcomes[0].error || outcome.reasons != outcomes[0].reasons) {
            fail_msg("rank %zu says \"%s%s\", rank 0 \"%s%s\"", rank, outcome.error.c_str(), outcome.reasons.c_str(),
                     outcomes[0].error.c_str(), outcomes[0].reasons.c_str());
        }
    }
}

void expect_text(const std::string &text, const char *part) {
    if (text.find(part) == std::string::npos) fail_msg("\"%s\" is not in \"%s\"", part, text.c_str());
}

void expect_provider(const std::vector<Outcome> &outcomes, int32_t provider) {
    expect_alike(outcomes, MOELINK_OK);
    for (const Outcome &outcome : outcomes) {
        assert_int_equal(outcome.info.provider, provider);
        assert_int_equal(outcome.info.status[provider], MOELINK_OK);
    }
    expect_clean(provider == MOELINK_MEMORY_CUDA_IPC);
}

fake::Machine machine_for(const Ranks &ranks) { return fake::Machine{.devices = ranks.size()}; }

void test_each_provider(void **) {
    for (int size : {1, 2, 3, 5}) {
        for (bool share : {false, true}) {
            Ranks ranks(size, share);
            for (int32_t provider : {MOELINK_MEMORY_FABRIC, MOELINK_MEMORY_POSIX_FD, MOELINK_MEMORY_CUDA_IPC}) {
                for (bool processes : {false, true}) {
                    fake::install(machine_for(ranks));
                    std::vector<Outcome> outcomes = ranks.create({.provider = provider, .processes = processes});
                    expect_provider(outcomes, provider);
                    uint64_t unit = provider == MOELINK_MEMORY_CUDA_IPC ? ipc_granule : granule;
                    assert_true(outcomes[0].info.granularity == unit);
                    assert_true(outcomes[0].info.bytes == (100000 + unit - 1) / unit * unit);
                    assert_int_equal(outcomes[0].info.ranks, size);
                    assert_int_equal(outcomes[0].info.tried, 1 << provider);
                    bool opens = provider == MOELINK_MEMORY_CUDA_IPC && processes && size > 1;
                    assert_int_equal(fake::calls(0)["ipc_open"] > 0, opens);
                }
            }
        }
    }
}

void test_auto_takes_fabric(void **) {
    Ranks ranks(2);
    std::vector<Outcome> outcomes = ranks.create({});
    expect_provider(outcomes, MOELINK_MEMORY_FABRIC);
    assert_int_equal(outcomes[0].info.tried, 1 << MOELINK_MEMORY_FABRIC);
    assert_int_equal(outcomes[0].info.status[MOELINK_MEMORY_POSIX_FD], MOELINK_NOT_READY);
    assert_string_equal(outcomes[0].reasons.c_str(), "fabric: works on every rank; taken\n");
}

void test_fabric_attribute_but_refusal(void **) {
    for (const char *function : {"mem_create:fabric", "mem_export:fabric", "mem_import:fabric"}) {
        for (int refuser : {0, 1, 2}) {
            Ranks ranks(3);
            fake::install(machine_for(ranks));
            fake::fail_call(refuser, function, 0, CUDA_ERROR_NOT_PERMITTED);
            std::vector<Outcome> outcomes = ranks.create({});
            expect_provider(outcomes, MOELINK_MEMORY_POSIX_FD);
            assert_int_equal(outcomes[0].info.status[MOELINK_MEMORY_FABRIC], MOELINK_ERR_UNSUPPORTED);
            assert_int_equal(outcomes[0].info.tried, 1 << MOELINK_MEMORY_FABRIC | 1 << MOELINK_MEMORY_POSIX_FD);
            expect_text(outcomes[0].reasons, ("fabric: rank " + std::to_string(refuser) + ": cuMem").c_str());
            expect_text(outcomes[0].reasons, "CUDA_ERROR_NOT_PERMITTED");
            expect_text(outcomes[0].reasons, "posix-fd: works on every rank; taken\n");
        }
    }
}

void test_fabric_named_and_refused(void **) {
    Ranks ranks(2);
    fake::install(machine_for(ranks));
    fake::fail_call(1, "mem_create:fabric", 0, CUDA_ERROR_NOT_PERMITTED);
    std::vector<Outcome> outcomes = ranks.create({.provider = MOELINK_MEMORY_FABRIC});
    expect_alike(outcomes, MOELINK_ERR_UNSUPPORTED);
    expect_text(outcomes[0].error, "fabric: rank 1: cuMemCreate: CUDA_ERROR_NOT_PERMITTED");
    expect_text(outcomes[0].error, "IMEX");
    expect_clean();
}

void test_fallback_to_ipc_and_to_nothing(void **) {
    Ranks ranks(2);
    fake::Machine machine = machine_for(ranks);
    machine.fabric_attribute = false;
    machine.posix_fd_attribute = false;
    fake::install(machine);
    std::vector<Outcome> outcomes = ranks.create({});
    expect_provider(outcomes, MOELINK_MEMORY_CUDA_IPC);
    expect_text(outcomes[0].reasons, "fabric: rank 0: the driver reports no fabric handles for device 0 (and 1 more rank)\n");
    expect_text(outcomes[0].reasons, "posix-fd: rank 0: the driver reports no POSIX file descriptor handles for device 0");

    machine.peers = false;
    fake::install(machine);
    outcomes = ranks.create({});
    expect_alike(outcomes, MOELINK_ERR_UNSUPPORTED);
    expect_text(outcomes[0].error, "cuda-ipc: rank 0: device 0 cannot reach the memory of device 1");
    expect_clean();

    outcomes = ranks.query({});
    expect_alike(outcomes, MOELINK_ERR_UNSUPPORTED);
    assert_int_equal(outcomes[0].info.provider, MOELINK_MEMORY_AUTO);
    assert_int_equal(outcomes[0].info.status[MOELINK_MEMORY_CUDA_IPC], MOELINK_ERR_UNSUPPORTED);
    expect_text(outcomes[0].reasons, "cuda-ipc: rank 0: ");
    expect_clean();
}

void test_query_tries_all(void **) {
    Ranks ranks(2);
    fake::install(machine_for(ranks));
    std::vector<Outcome> outcomes = ranks.query({.bytes = granule + 1});
    expect_alike(outcomes, MOELINK_OK);
    assert_int_equal(outcomes[0].info.provider, MOELINK_MEMORY_FABRIC);
    assert_true(outcomes[0].info.bytes == 2 * granule);
    assert_int_equal(outcomes[0].info.tried,
                     1 << MOELINK_MEMORY_FABRIC | 1 << MOELINK_MEMORY_POSIX_FD | 1 << MOELINK_MEMORY_CUDA_IPC);
    assert_string_equal(outcomes[0].reasons.c_str(), "fabric: works on every rank; taken\nposix-fd: works on every rank\n"
                                                     "cuda-ipc: works on every rank\n");
    expect_clean();
}

void test_wrong_device(void **) {
    Ranks ranks(2);
    fake::install(machine_for(ranks));
    std::vector<Outcome> outcomes = ranks.create({.provider = MOELINK_MEMORY_HOST_SHM});
    expect_alike(outcomes, MOELINK_ERR_UNSUPPORTED);
    expect_text(outcomes[0].error, "host-shm: it serves host groups");
    expect_clean();
}

void test_sizes(void **) {
    Ranks ranks(2);
    fake::install(machine_for(ranks));
    std::vector<Outcome> outcomes = ranks.create({.bytes = 5000, .page_bytes = 4 * granule});
    expect_provider(outcomes, MOELINK_MEMORY_FABRIC);
    assert_true(outcomes[0].info.bytes == 4 * granule);
    for (int32_t provider : {MOELINK_MEMORY_FABRIC, MOELINK_MEMORY_POSIX_FD, MOELINK_MEMORY_CUDA_IPC}) {
        // More than the fake device has; then what does not even fit in 64 bits.
        for (uint64_t bytes : {uint64_t{100} << 30, uint64_t{1} << 62, ~uint64_t{0}}) {
            expect_alike(ranks.create({.provider = provider, .bytes = bytes}), MOELINK_ERR_OUT_OF_MEMORY);
            expect_clean();
        }
    }
}

void test_lost_device(void **) {
    Ranks ranks(2);
    fake::install(machine_for(ranks));
    fake::fail_call(1, "memset_d8_async", 1, CUDA_ERROR_ILLEGAL_ADDRESS);
    std::vector<Outcome> outcomes = ranks.create({});
    expect_alike(outcomes, MOELINK_ERR_DEVICE);
    expect_text(outcomes[0].error, "rank 1: cuMemsetD8Async: CUDA_ERROR_ILLEGAL_ADDRESS");
    expect_clean();
}

// What gives something back: when the driver refuses that, nobody can free it.
bool is_release(const std::string &function) {
    static const std::set<std::string> releases = {"mem_release",     "mem_unmap", "mem_unreserve", "mem_free", "ipc_close",
                                                   "primary_release", "ctx_pop",   "stream_destroy"};
    return releases.count(function) != 0;
}

// What a named provider cannot do without.
bool is_needed(const std::string &function) {
    return function.rfind("mem_", 0) == 0 || function == "ipc_handle" || function == "ipc_open" || function == "stream_create" ||
           function == "stream_synchronize" || function == "memset_d8_async" || function == "copy_to_host_async";
}

// Makes every single call of the last rank fail, one after the other.
void fail_every_call(const Asked &asked, CUresult result, moelink_status expected) {
    Ranks ranks(3);
    int victim = ranks.size() - 1;
    fake::install(machine_for(ranks));
    expect_alike(ranks.create(asked), MOELINK_OK);
    std::map<std::string, int> counts = fake::calls(victim);
    int failures = 0;
    for (const auto &[function, count] : counts) {
        for (int number = 1; number <= count; ++number) {
            fake::install(machine_for(ranks));
            fake::fail_call(victim, function, number, result);
            std::vector<Outcome> outcomes = ranks.create(asked);
            moelink_status status = outcomes[0].status;
            expect_alike(outcomes, status);
            // Plain device memory cannot be freed without a context.
            bool lost = is_release(function) || (asked.provider == MOELINK_MEMORY_CUDA_IPC && function == "ctx_push");
            if (!lost) expect_clean(status == MOELINK_OK);
            bool must_fail = asked.provider != MOELINK_MEMORY_AUTO && is_needed(function) && !is_release(function);
            if (must_fail && status != expected) {
                fail_msg("call %d of %s failed and create gave %s: %s", number, function.c_str(), moelink_status_name(status),
                         outcomes[0].error.c_str());
            }
            if (status == MOELINK_OK) continue;
            ++failures;
            expect_text(outcomes[0].error, ("rank " + std::to_string(victim) + ": ").c_str());
        }
    }
    assert_true(failures > 0);
}

size_t open_files() {
    auto folder = std::filesystem::directory_iterator("/proc/self/fd");
    return static_cast<size_t>(std::distance(begin(folder), end(folder)));
}

void test_every_call_may_fail(void **) {
    size_t files = open_files();
    for (int32_t provider : {MOELINK_MEMORY_FABRIC, MOELINK_MEMORY_POSIX_FD, MOELINK_MEMORY_CUDA_IPC, MOELINK_MEMORY_AUTO}) {
        for (bool processes : {false, true}) {
            if (processes && provider != MOELINK_MEMORY_CUDA_IPC) continue;
            Asked asked{.provider = provider, .processes = processes};
            fail_every_call(asked, CUDA_ERROR_OUT_OF_MEMORY, MOELINK_ERR_OUT_OF_MEMORY);
        }
    }
    assert_int_equal(open_files(), files);
}

}  // namespace

int main() {
    moelink_log_set_level(MOELINK_LOG_OFF);  // refused releases are warned of, one by one
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_each_provider),
        cmocka_unit_test(test_auto_takes_fabric),
        cmocka_unit_test(test_fabric_attribute_but_refusal),
        cmocka_unit_test(test_fabric_named_and_refused),
        cmocka_unit_test(test_fallback_to_ipc_and_to_nothing),
        cmocka_unit_test(test_query_tries_all),
        cmocka_unit_test(test_wrong_device),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_lost_device),
        cmocka_unit_test(test_every_call_may_fail),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
