// NIXL's C library, looked up at run time: MOELINK_NIXL_LIBRARY (a path), else libnixl_capi.so. It comes without a header, so what is
// used of it is declared here, as of NIXL 1.0 (https://github.com/ai-dynamo/nixl, src/bindings/rust/wrapper.h).
#pragma once

#include "base/error.hpp"

#include <cstddef>
#include <cstdint>
#include <string>

namespace moelink {

// 0, in progress, or, negative, an error; which one differs between releases.
using NixlStatus = int;
constexpr NixlStatus nixl_in_progress = 1;

enum NixlMemory : int { nixl_dram = 0, nixl_vram = 1 };
enum NixlOperation : int { nixl_read = 0 };

struct NixlAgent;
struct NixlParams;
struct NixlMemories;
struct NixlBackend;
struct NixlOptions;
struct NixlPieces;    // of a transfer
struct NixlRegions;   // of a registration
struct NixlRequest;

struct NixlAgentConfig {
    bool progress_thread;
    bool listen_thread;
    int listen_port;
    int thread_sync;  // 0: calls come from one thread at a time
    unsigned workers;
    uint64_t progress_delay_us;
    uint64_t listen_delay_us;
    bool telemetry;
    char later[64];  // zeros, for releases that add to it
};

struct Nixl {
    bool (*is_stub)() = nullptr;
    NixlStatus (*memory_name)(int memory, const char **name) = nullptr;
    NixlStatus (*create_agent)(const char *name, const NixlAgentConfig *config, NixlAgent **agent) = nullptr;
    NixlStatus (*destroy_agent)(NixlAgent *agent) = nullptr;
    NixlStatus (*plugin_params)(NixlAgent *agent, const char *plugin, NixlMemories **memories, NixlParams **params) = nullptr;
    NixlStatus (*destroy_memories)(NixlMemories *memories) = nullptr;
    NixlStatus (*destroy_params)(NixlParams *params) = nullptr;
    NixlStatus (*create_backend)(NixlAgent *agent, const char *plugin, NixlParams *params, NixlBackend **backend) = nullptr;
    NixlStatus (*destroy_backend)(NixlBackend *backend) = nullptr;  // the handle alone
    NixlStatus (*create_regions)(int memory, NixlRegions **regions) = nullptr;
    NixlStatus (*add_region)(NixlRegions *regions, uintptr_t base, size_t bytes, uint64_t device, const void *notes, size_t note_bytes) = nullptr;
    NixlStatus (*destroy_regions)(NixlRegions *regions) = nullptr;
    NixlStatus (*register_memory)(NixlAgent *agent, NixlRegions *regions, NixlOptions *options) = nullptr;
    NixlStatus (*deregister_memory)(NixlAgent *agent, NixlRegions *regions, NixlOptions *options) = nullptr;
    // Of the regions; without any, how to reach the agent. The caller frees it.
    NixlStatus (*local_metadata)(NixlAgent *agent, NixlRegions *regions, void **data, size_t *bytes, NixlOptions *options) = nullptr;
    // Gives the agent's name, which the caller frees.
    NixlStatus (*load_metadata)(NixlAgent *agent, const void *data, size_t bytes, char **name) = nullptr;
    NixlStatus (*drop_metadata)(NixlAgent *agent, const char *name) = nullptr;
    NixlStatus (*connect)(NixlAgent *agent, const char *name, NixlOptions *options) = nullptr;
    NixlStatus (*create_pieces)(int memory, NixlPieces **pieces) = nullptr;
    NixlStatus (*add_piece)(NixlPieces *pieces, uintptr_t base, size_t bytes, uint64_t device) = nullptr;
    NixlStatus (*destroy_pieces)(NixlPieces *pieces) = nullptr;
    NixlStatus (*create_request)(NixlAgent *agent, int operation, NixlPieces *local, NixlPieces *remote, const char *name,
                                 NixlRequest **request, NixlOptions *options) = nullptr;
    NixlStatus (*post_request)(NixlAgent *agent, NixlRequest *request, NixlOptions *options) = nullptr;
    NixlStatus (*request_status)(NixlAgent *agent, NixlRequest *request) = nullptr;
    NixlStatus (*release_request)(NixlAgent *agent, NixlRequest *request) = nullptr;
    NixlStatus (*destroy_request)(NixlRequest *request) = nullptr;  // the handle, once released
    std::string file;
};

// Throws Error NO_DRIVER with the loader's text, or with what is not as it should be. Any thread.
const Nixl &nixl();

// Throws Error INTERNAL for everything but success.
void check_nixl(NixlStatus status, const char *what);

}  // namespace moelink
