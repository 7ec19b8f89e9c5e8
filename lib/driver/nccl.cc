#include "driver/nccl.hpp"

#include "driver/library.hpp"

#include <atomic>

namespace moelink {

namespace {

Nccl load() {
    Library library = Library::named("MOELINK_NCCL_LIBRARY", "libnccl.so.2");
    Nccl table;
    table.file = library.file();
    library.find(table.version, "ncclGetVersion");
    library.find(table.unique_id, "ncclGetUniqueId");
    library.find(table.comm_init_rank_config, "ncclCommInitRankConfig");
    library.find(table.comm_destroy, "ncclCommDestroy");
    library.find(table.comm_abort, "ncclCommAbort");
    library.find(table.comm_async_error, "ncclCommGetAsyncError");
    library.find(table.comm_count, "ncclCommCount");
    library.find(table.comm_user_rank, "ncclCommUserRank");
    library.find(table.all_gather, "ncclAllGather");
    library.find(table.reduce_scatter, "ncclReduceScatter");
    library.find(table.broadcast, "ncclBroadcast");
    library.find(table.reduce, "ncclReduce");
    library.find(table.send, "ncclSend");
    library.find(table.recv, "ncclRecv");
    library.find(table.group_start, "ncclGroupStart");
    library.find(table.group_end, "ncclGroupEnd");
    library.find(table.error_string, "ncclGetErrorString");
    library.find(table.last_error, "ncclGetLastError");
    return table;
}

std::atomic<bool> host_memory{false};

}  // namespace

const Nccl &nccl() {
    static const auto *loaded = new Loaded<Nccl>(&load);
    return loaded->get();
}

void let_nccl_take_host_memory(bool on) noexcept { host_memory = on; }

bool nccl_takes_host_memory() noexcept { return host_memory; }

std::string nccl_version() {
    int code = 0;
    check_nccl(nccl().version(&code), "ncclGetVersion");
    if (code < 10000) return fmt::format("{}.{}.{}", code / 1000, code / 100 % 10, code % 100);  // until 2.8
    return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

void check_nccl(NcclResult result, const char *what, NcclComm comm) {
    if (result == nccl_success || result == nccl_in_progress) return;
    moelink_status status = MOELINK_ERR_INTERNAL;
    if (result == nccl_unhandled_cuda_error) status = MOELINK_ERR_DEVICE;
    if (result == nccl_remote_error) status = MOELINK_ERR_PEER_EXITED;
    const char *more = nccl().last_error(comm);
    if (more == nullptr) more = "";
    fail(status, "{}: {}{}{}", what, nccl().error_string(result), *more != '\0' ? "; " : "", more);
}

}  // namespace moelink
