// NCCL, looked up at run time: MOELINK_NCCL_LIBRARY (a path), else libnccl.so.2.
#pragma once

#include "base/error.hpp"

#include <cstddef>
#include <string>

namespace moelink {

// NCCL's interface as far as it is used here. Its enums are int in its ABI.
struct NcclCommunicator;
using NcclComm = NcclCommunicator *;
using NcclResult = int;

struct NcclUniqueId {
    char bytes[128];
};

enum NcclResultValue : int {
    nccl_success = 0,
    nccl_unhandled_cuda_error = 1,
    nccl_system_error = 2,
    nccl_internal_error = 3,
    nccl_invalid_argument = 4,
    nccl_invalid_usage = 5,
    nccl_remote_error = 6,
    nccl_in_progress = 7
};

enum NcclType : int {
    nccl_int8 = 0,
    nccl_uint8 = 1,
    nccl_int32 = 2,
    nccl_int64 = 4,
    nccl_float16 = 6,
    nccl_float32 = 7,
    nccl_bfloat16 = 9
};

enum NcclOperation : int { nccl_sum = 0 };

// ncclConfig_t as of 2.14, which every later release accepts: it reads `size` bytes and takes its defaults for what came later.
struct NcclConfig {
    size_t size = sizeof(NcclConfig);
    unsigned magic = 0xcafebeef;
    unsigned version = 21400;
    int blocking = 1;
    int unused = 0;
};

struct Nccl {
    NcclResult (*version)(int *) = nullptr;
    NcclResult (*unique_id)(NcclUniqueId *) = nullptr;
    // With blocking = 0 it and every later call may return nccl_in_progress; comm_async_error then tells the outcome.
    NcclResult (*comm_init_rank_config)(NcclComm *, int ranks, NcclUniqueId, int rank, NcclConfig *) = nullptr;
    NcclResult (*comm_destroy)(NcclComm) = nullptr;
    NcclResult (*comm_abort)(NcclComm) = nullptr;
    NcclResult (*comm_async_error)(NcclComm, NcclResult *) = nullptr;
    NcclResult (*comm_count)(NcclComm, int *) = nullptr;
    NcclResult (*comm_user_rank)(NcclComm, int *) = nullptr;
    NcclResult (*all_gather)(const void *, void *, size_t, int type, NcclComm, moelink_stream) = nullptr;
    NcclResult (*reduce_scatter)(const void *, void *, size_t, int type, int operation, NcclComm, moelink_stream) = nullptr;
    NcclResult (*broadcast)(const void *, void *, size_t, int type, int root, NcclComm, moelink_stream) = nullptr;
    NcclResult (*reduce)(const void *, void *, size_t, int type, int operation, int root, NcclComm, moelink_stream) = nullptr;
    NcclResult (*send)(const void *, size_t, int type, int peer, NcclComm, moelink_stream) = nullptr;
    NcclResult (*recv)(void *, size_t, int type, int peer, NcclComm, moelink_stream) = nullptr;
    NcclResult (*group_start)() = nullptr;
    NcclResult (*group_end)() = nullptr;
    const char *(*error_string)(NcclResult) = nullptr;
    const char *(*last_error)(NcclComm) = nullptr;
    std::string file;
};

// Throws Error NO_DRIVER with the loader's text. Any thread.
const Nccl &nccl();

// For unit tests with an NCCL that moves host memory: groups on the host may use NCCL too. False at first.
void let_nccl_take_host_memory(bool on) noexcept;
bool nccl_takes_host_memory() noexcept;

// "2.28.9"
std::string nccl_version();

// Throws Error for everything but success and in-progress; comm may be NULL.
void check_nccl(NcclResult result, const char *what, NcclComm comm = nullptr);

}  // namespace moelink
