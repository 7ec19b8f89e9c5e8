#include "fake_nccl.h"

#include "fake_nccl_wire.hpp"

#include "driver/nccl.hpp"

#include <sys/random.h>

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using namespace moelink;
using fake_nccl::Progress;
using fake_nccl::Transfer;
using fake_nccl::Wire;

namespace {

struct Failure {
    std::string function;
    int number;  // calls until it happens; 0: every one; negative: it has happened
    int result;
};

std::atomic<int> communicators{0};
std::atomic<int> open_groups{0};
std::atomic<int> queued_transfers{0};
std::atomic<int> misuses{0};

// Transfers, and what is to be done with the bytes when they are all there.
struct Batch {
    std::vector<Transfer> transfers;
    std::vector<std::function<void()>> after;
};

struct Thread {
    std::map<std::string, int> calls;
    std::vector<Failure> failures;
    int depth = 0;
    NcclResult error = nccl_success;  // the first of this group
    NcclComm comm = nullptr;          // of this group
    Batch queued;
    std::string words;
};
thread_local Thread mine;

NcclResult misuse(const std::string &words) {
    ++misuses;
    mine.words = words;
    return nccl_invalid_usage;
}

// What a test wants this call to give; success: nothing.
NcclResult wanted(const std::string &function) {
    ++mine.calls[function];
    NcclResult result = nccl_success;
    for (Failure &failure : mine.failures) {
        if (failure.function != function) continue;
        if (failure.number == 0 || failure.number == 1) result = failure.result;
        if (failure.number != 0) failure.number = failure.number == 1 ? -1 : failure.number - 1;
    }
    if (result == FAKE_NCCL_DIE) raise(SIGKILL);
    if (result > 0) mine.words = "as the test wants it";
    return result;
}

}  // namespace

namespace moelink {

struct NcclCommunicator {
    NcclCommunicator(const std::string &name, int rank_, int ranks_, bool blocking_) : rank(rank_), ranks(ranks_), blocking(blocking_), wire(name, rank, ranks) {
        ++communicators;
        if (blocking) {
            join();
        } else {
            worker = std::thread([this] { work(); });
        }
    }
    ~NcclCommunicator() {
        {
            std::lock_guard lock(mutex);
            closing = true;
        }
        wake.notify_all();
        if (worker.joinable()) worker.join();
        --communicators;
    }

    void join() {
        while (!stopped) {
            const uint32_t seen = wire.bell();
            if (wire.all_joined()) return;
            wire.wait(seen);
        }
    }

    NcclResult run(Batch &batch) {
        while (!stopped) {
            const uint32_t seen = wire.bell();
            const Progress progress = wire.advance(batch.transfers);
            if (progress == Progress::mismatch) {
                ++misuses;
                return nccl_internal_error;
            }
            if (progress == Progress::all) {
                for (auto &step : batch.after) step();
                return nccl_success;
            }
            if (progress == Progress::none) wire.wait(seen);
        }
        return nccl_internal_error;
    }

    // The stream of a communicator that does not block: joining, then batch after batch.
    void work() {
        join();
        std::unique_lock lock(mutex);
        state = nccl_success;
        for (;;) {
            wake.wait(lock, [&] { return closing || !batches.empty(); });
            if (batches.empty() || stopped) return;
            Batch batch = std::move(batches.front());
            batches.pop_front();
            lock.unlock();
            const NcclResult result = run(batch);
            lock.lock();
            if (result != nccl_success || batches.empty()) state = result;
        }
    }

    NcclResult launch(Batch batch) {
        if (blocking) return run(batch);
        std::lock_guard lock(mutex);
        state = nccl_in_progress;
        batches.push_back(std::move(batch));
        wake.notify_all();
        return nccl_in_progress;
    }

    const int rank;
    const int ranks;
    const bool blocking;
    Wire wire;
    std::atomic<bool> stopped{false};
    std::mutex mutex;
    std::condition_variable wake;
    NcclResult state = blocking ? nccl_success : nccl_in_progress;
    bool closing = false;
    std::deque<Batch> batches;
    std::thread worker;
};

}  // namespace moelink

namespace {

uint64_t size_of(int type) {
    switch (type) {
    case nccl_int8:
    case nccl_uint8: return 1;
    case nccl_float16:
    case nccl_bfloat16: return 2;
    case nccl_int32:
    case nccl_float32: return 4;
    case nccl_int64: return 8;
    default: return 0;
    }
}

// Adds up `ranks` blocks of `count` values in rank order.
template <class T>
void sum_blocks(const std::vector<unsigned char> &blocks, void *out, size_t count) {
    std::vector<T> sums(count);
    for (size_t at = 0; at < blocks.size(); at += sizeof(T)) {
        T value;
        std::memcpy(&value, &blocks[at], sizeof value);
        sums[at / sizeof(T) % count] += value;
    }
    std::memcpy(out, sums.data(), count * sizeof(T));
}

bool can_sum(int type) { return type == nccl_float32 || type == nccl_int32 || type == nccl_int64; }

void sum(const std::vector<unsigned char> &blocks, void *out, size_t count, int type) {
    if (count == 0) return;
    if (type == nccl_float32) sum_blocks<float>(blocks, out, count);
    if (type == nccl_int32) sum_blocks<int32_t>(blocks, out, count);
    if (type == nccl_int64) sum_blocks<int64_t>(blocks, out, count);
}

Transfer to_peer(const void *from, uint64_t bytes, int peer) { return {true, static_cast<const unsigned char *>(from), nullptr, bytes, peer}; }
Transfer from_peer(void *to, uint64_t bytes, int peer) { return {false, nullptr, static_cast<unsigned char *>(to), bytes, peer}; }

NcclResult close_group() {
    Batch batch = std::exchange(mine.queued, {});
    queued_transfers -= static_cast<int>(batch.transfers.size());
    NcclComm comm = std::exchange(mine.comm, nullptr);
    const NcclResult error = std::exchange(mine.error, nccl_success);
    if (error != nccl_success || comm == nullptr) return error;
    return comm->launch(std::move(batch));
}

// One operation, in a group or as one.
NcclResult enqueue(const char *function, NcclComm comm, int peer, int type, const std::function<void(Batch &)> &add) {
    const NcclResult asked = wanted(function);
    NcclResult result = asked == FAKE_NCCL_LOST ? nccl_success : asked;
    if (asked == nccl_success) {
        if (comm == nullptr || peer < 0 || peer >= comm->ranks || size_of(type) == 0) {
            result = misuse("no such communicator, peer or type");
        } else if (mine.comm != nullptr && mine.comm != comm) {
            result = misuse("this fake takes one communicator in a group");
        } else {
            std::lock_guard lock(comm->mutex);
            if (comm->state != nccl_success) result = misuse("the communicator is not ready");
        }
        if (result == nccl_success) {
            const size_t before = mine.queued.transfers.size();
            mine.comm = comm;
            add(mine.queued);
            queued_transfers += static_cast<int>(mine.queued.transfers.size() - before);
        }
    }
    if (result != nccl_success && mine.error == nccl_success) mine.error = result;
    return mine.depth > 0 ? result : close_group();
}

}  // namespace

extern "C" {

FAKE_NCCL_API void fake_nccl_fail(const char *function, int number, int result) {
    if (function == nullptr) return mine.failures.clear();
    mine.failures.push_back({function, number, result});
}

FAKE_NCCL_API int fake_nccl_calls(const char *function) { return mine.calls[function]; }

FAKE_NCCL_API fake_nccl_left fake_nccl_outstanding(void) { return {communicators, open_groups, queued_transfers, misuses}; }

FAKE_NCCL_API NcclResult ncclGetVersion(int *version) {
    *version = 22809;
    return wanted("ncclGetVersion");
}

FAKE_NCCL_API NcclResult ncclGetUniqueId(NcclUniqueId *id) {
    if (NcclResult result = wanted("ncclGetUniqueId"); result != nccl_success) return result;
    uint64_t random = 0;
    if (getrandom(&random, sizeof random, 0) != sizeof random) return nccl_system_error;
    *id = {};
    std::snprintf(id->bytes, sizeof id->bytes, "/moelink-fake-nccl-%016llx", static_cast<unsigned long long>(random));
    return nccl_success;
}

FAKE_NCCL_API NcclResult ncclCommInitRankConfig(NcclComm *comm, int ranks, NcclUniqueId id, int rank, NcclConfig *config) {
    *comm = nullptr;
    if (NcclResult result = wanted("ncclCommInitRankConfig"); result != nccl_success) return result;
    if (mine.depth > 0) return misuse("this fake makes no communicator in a group");
    if (rank < 0 || rank >= ranks || (config != nullptr && config->magic != 0xcafebeef)) return misuse("a wrong rank or config");
    try {
        *comm = new NcclCommunicator(id.bytes, rank, ranks, config == nullptr || config->blocking != 0);
    } catch (const std::exception &error) {
        mine.words = error.what();
        return nccl_system_error;
    }
    return (*comm)->blocking ? nccl_success : nccl_in_progress;
}

FAKE_NCCL_API NcclResult ncclCommInitRank(NcclComm *comm, int ranks, NcclUniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, ranks, id, rank, nullptr);
}

FAKE_NCCL_API NcclResult ncclCommDestroy(NcclComm comm) {
    const NcclResult result = wanted("ncclCommDestroy");
    if (mine.depth > 0) return misuse("a communicator destroyed in a group");
    {
        std::lock_guard lock(comm->mutex);
        if (comm->state == nccl_in_progress) misuse("a busy communicator destroyed");
    }
    delete comm;
    return result;
}

FAKE_NCCL_API NcclResult ncclCommAbort(NcclComm comm) {
    const NcclResult result = wanted("ncclCommAbort");
    if (mine.comm == comm) return misuse("a communicator aborted while a group holds its operations");
    comm->stopped = true;
    delete comm;
    return result;
}

FAKE_NCCL_API NcclResult ncclCommGetAsyncError(NcclComm comm, NcclResult *state) {
    if (NcclResult result = wanted("ncclCommGetAsyncError"); result != nccl_success) return result;
    std::lock_guard lock(comm->mutex);
    const NcclResult asked = wanted("ncclCommGetAsyncError:state");
    if (asked != nccl_success) comm->state = asked;
    *state = comm->state;
    return nccl_success;
}

FAKE_NCCL_API NcclResult ncclCommCount(NcclComm comm, int *count) {
    *count = comm->ranks;
    return wanted("ncclCommCount");
}

FAKE_NCCL_API NcclResult ncclCommUserRank(NcclComm comm, int *rank) {
    *rank = comm->rank;
    return wanted("ncclCommUserRank");
}

FAKE_NCCL_API NcclResult ncclSend(const void *from, size_t count, int type, int peer, NcclComm comm, moelink_stream) {
    return enqueue("ncclSend", comm, peer, type, [&](Batch &batch) { batch.transfers.push_back(to_peer(from, count * size_of(type), peer)); });
}

FAKE_NCCL_API NcclResult ncclRecv(void *to, size_t count, int type, int peer, NcclComm comm, moelink_stream) {
    return enqueue("ncclRecv", comm, peer, type, [&](Batch &batch) { batch.transfers.push_back(from_peer(to, count * size_of(type), peer)); });
}

FAKE_NCCL_API NcclResult ncclBroadcast(const void *from, void *to, size_t count, int type, int root, NcclComm comm, moelink_stream) {
    return enqueue("ncclBroadcast", comm, root, type, [&](Batch &batch) {
        const uint64_t bytes = count * size_of(type);
        for (int peer = 0; comm->rank == root && peer < comm->ranks; ++peer) {
            if (peer != root || from != to) batch.transfers.push_back(to_peer(from, bytes, peer));
        }
        if (comm->rank != root || from != to) batch.transfers.push_back(from_peer(to, bytes, root));
    });
}

FAKE_NCCL_API NcclResult ncclAllGather(const void *from, void *to, size_t count, int type, NcclComm comm, moelink_stream) {
    return enqueue("ncclAllGather", comm, 0, type, [&](Batch &batch) {
        const uint64_t bytes = count * size_of(type);
        for (int peer = 0; peer < comm->ranks; ++peer) {
            auto *block = static_cast<unsigned char *>(to) + static_cast<uint64_t>(peer) * bytes;
            if (peer == comm->rank && block == from) continue;
            batch.transfers.push_back(to_peer(from, bytes, peer));
            batch.transfers.push_back(from_peer(block, bytes, peer));
        }
    });
}

FAKE_NCCL_API NcclResult ncclReduce(const void *from, void *to, size_t count, int type, int operation, int root, NcclComm comm, moelink_stream) {
    if (operation != nccl_sum || !can_sum(type)) return misuse("this fake sums float, int32 and int64");
    return enqueue("ncclReduce", comm, root, type, [&](Batch &batch) {
        const uint64_t bytes = count * size_of(type);
        batch.transfers.push_back(to_peer(from, bytes, root));
        if (comm->rank != root) return;
        auto blocks = std::make_shared<std::vector<unsigned char>>(bytes * static_cast<uint64_t>(comm->ranks));
        for (int peer = 0; peer < comm->ranks; ++peer) batch.transfers.push_back(from_peer(blocks->data() + static_cast<uint64_t>(peer) * bytes, bytes, peer));
        batch.after.push_back([=] { sum(*blocks, to, count, type); });
    });
}

FAKE_NCCL_API NcclResult ncclReduceScatter(const void *from, void *to, size_t count, int type, int operation, NcclComm comm, moelink_stream) {
    if (operation != nccl_sum || !can_sum(type)) return misuse("this fake sums float, int32 and int64");
    return enqueue("ncclReduceScatter", comm, 0, type, [&](Batch &batch) {
        const uint64_t bytes = count * size_of(type);
        auto blocks = std::make_shared<std::vector<unsigned char>>(bytes * static_cast<uint64_t>(comm->ranks));
        for (int peer = 0; peer < comm->ranks; ++peer) {
            const uint64_t at = static_cast<uint64_t>(peer) * bytes;
            batch.transfers.push_back(to_peer(static_cast<const unsigned char *>(from) + at, bytes, peer));
            batch.transfers.push_back(from_peer(blocks->data() + at, bytes, peer));
        }
        batch.after.push_back([=] { sum(*blocks, to, count, type); });
    });
}

FAKE_NCCL_API NcclResult ncclGroupStart() {
    if (NcclResult result = wanted("ncclGroupStart"); result != nccl_success) return result;
    ++mine.depth;
    ++open_groups;
    return nccl_success;
}

FAKE_NCCL_API NcclResult ncclGroupEnd() {
    const NcclResult asked = wanted("ncclGroupEnd");
    if (mine.depth == 0) return misuse("a group closed that nobody opened");
    --open_groups;
    if (--mine.depth > 0) return asked;
    if (asked != nccl_success && mine.error == nccl_success) mine.error = asked;
    const NcclResult result = close_group();
    return result == FAKE_NCCL_LOST ? nccl_success : result;
}

FAKE_NCCL_API const char *ncclGetErrorString(NcclResult result) {
    switch (result) {
    case nccl_success: return "no error";
    case nccl_unhandled_cuda_error: return "unhandled cuda error";
    case nccl_system_error: return "unhandled system error";
    case nccl_internal_error: return "internal error";
    case nccl_invalid_argument: return "invalid argument";
    case nccl_invalid_usage: return "invalid usage";
    case nccl_remote_error: return "remote process exited or there was a network error";
    case nccl_in_progress: return "operation in progress";
    default: return "unknown result code";
    }
}

FAKE_NCCL_API const char *ncclGetLastError(NcclComm) { return mine.words.c_str(); }

}  // extern "C"

// The library's table and these functions are one interface.
#define SAME(function, member) static_assert(std::is_same_v<decltype(&function), decltype(Nccl::member)>)
SAME(ncclGetVersion, version);
SAME(ncclGetUniqueId, unique_id);
SAME(ncclCommInitRankConfig, comm_init_rank_config);
SAME(ncclCommDestroy, comm_destroy);
SAME(ncclCommAbort, comm_abort);
SAME(ncclCommGetAsyncError, comm_async_error);
SAME(ncclCommCount, comm_count);
SAME(ncclCommUserRank, comm_user_rank);
SAME(ncclAllGather, all_gather);
SAME(ncclReduceScatter, reduce_scatter);
SAME(ncclBroadcast, broadcast);
SAME(ncclReduce, reduce);
SAME(ncclSend, send);
SAME(ncclRecv, recv);
SAME(ncclGroupStart, group_start);
SAME(ncclGroupEnd, group_end);
SAME(ncclGetErrorString, error_string);
SAME(ncclGetLastError, last_error);
