/* NIXL's C library for tests, between processes of one host (fake_reads.h). It refuses what NIXL refuses: memory that is not registered,
 * agents that are not known. A request that is not released when its agent goes ends the process. It knows these words too:
 *   stub         it is one
 *   numbers      its numbers of memory are others
 *   plugin       it has no plugins
 *   backend      no backend is made
 *   unmapped     memory is not registered
 *   unreachable  nothing is connected */
#include "fake_reads.h"

#include "driver/nixl.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <vector>

namespace moelink {

struct Range {
    uintptr_t first;
    size_t bytes;
    bool operator==(const Range &) const = default;
};
// With a key, which is the only one while the word that it lies in holds it.
struct Registration {
    Range range;
    uint64_t *word;
    uint64_t key;
};

struct NixlRegions {
    std::vector<Range> ranges;
};
struct NixlPieces {
    std::vector<Range> ranges;
};
struct NixlParams {};
struct NixlMemories {};
struct NixlBackend {};

struct NixlAgent {
    struct Peer {
        fake_card card;
        std::vector<Registration> known;
        bool connected = false;
    };
    std::string name;
    fake_worker *worker;
    std::vector<Registration> registered;
    std::map<std::string, Peer> peers;
    int requests = 0;
};

struct NixlRequest {
    fake_card peer;
    Range from;
    uintptr_t to;
    fake_request *read = nullptr;
    bool released = false;
};

}  // namespace moelink

using namespace moelink;

namespace {

constexpr NixlStatus refused = -1;
constexpr NixlStatus failed = -2;

struct MetadataHead {
    char name[64];
    fake_card card;
    uint64_t ranges;
};

// As NIXL does, they take the first of several.
Registration *covering(std::vector<Registration> &all, const Range &one) {
    for (Registration &entry : all) {
        const Range &range = entry.range;
        if (one.first >= range.first && one.bytes <= range.bytes && one.first - range.first <= range.bytes - one.bytes) return &entry;
    }
    return nullptr;
}
Registration *same(std::vector<Registration> &all, const Range &one) {
    for (Registration &entry : all) {
        if (entry.range == one) return &entry;
    }
    return nullptr;
}

[[noreturn]] void misused(const char *what) {
    std::fprintf(stderr, "fake NIXL: %s\n", what);
    std::abort();
}

}  // namespace

extern "C" {

EXPORT bool nixl_capi_is_stub() { return fake_is_told("stub") != 0; }

EXPORT NixlStatus nixl_capi_mem_type_to_string(int memory, const char **name) {
    static const char *const names[] = {"DRAM", "VRAM"};
    if (memory < 0 || memory > 1) return refused;
    *name = names[fake_is_told("numbers") ? 1 - memory : memory];
    return 0;
}

EXPORT NixlStatus nixl_capi_create_configured_agent(const char *name, const NixlAgentConfig *config, NixlAgent **agent) {
    if (!config->progress_thread || config->listen_thread) return refused;
    *agent = new NixlAgent;
    (*agent)->name = name;
    (*agent)->worker = fake_worker_make();
    return 0;
}
EXPORT NixlStatus nixl_capi_destroy_agent(NixlAgent *agent) {
    if (agent->requests != 0) misused("an agent goes before its requests");
    fake_worker_free(agent->worker);
    delete agent;
    return 0;
}

EXPORT NixlStatus nixl_capi_get_plugin_params(NixlAgent *, const char *plugin, NixlMemories **memories, NixlParams **params) {
    if (fake_is_told("plugin") || std::strcmp(plugin, "UCX") != 0) return failed;
    *memories = new NixlMemories;
    *params = new NixlParams;
    return 0;
}
EXPORT NixlStatus nixl_capi_destroy_mem_list(NixlMemories *memories) {
    delete memories;
    return 0;
}
EXPORT NixlStatus nixl_capi_destroy_params(NixlParams *params) {
    delete params;
    return 0;
}
EXPORT NixlStatus nixl_capi_create_backend(NixlAgent *, const char *, NixlParams *, NixlBackend **backend) {
    if (fake_is_told("backend")) return failed;
    *backend = new NixlBackend;
    return 0;
}
EXPORT NixlStatus nixl_capi_destroy_backend(NixlBackend *backend) {
    delete backend;
    return 0;
}

EXPORT NixlStatus nixl_capi_create_reg_dlist(int memory, NixlRegions **regions) {
    if (memory != nixl_dram) return refused;
    *regions = new NixlRegions;
    return 0;
}
EXPORT NixlStatus nixl_capi_reg_dlist_add_desc(NixlRegions *regions, uintptr_t base, size_t bytes, uint64_t device, const void *, size_t) {
    if (device != 0 || bytes == 0) return refused;
    regions->ranges.push_back({base, bytes});
    return 0;
}
EXPORT NixlStatus nixl_capi_destroy_reg_dlist(NixlRegions *regions) {
    delete regions;
    return 0;
}
EXPORT NixlStatus nixl_capi_register_mem(NixlAgent *agent, NixlRegions *regions, NixlOptions *) {
    if (fake_is_told("unmapped")) return failed;
    static std::deque<uint64_t> words;  // their places stay, for peers that look
    static uint64_t last;
    for (const Range &range : regions->ranges) {
        words.push_back(++last);
        agent->registered.push_back({range, &words.back(), last});
    }
    return 0;
}
EXPORT NixlStatus nixl_capi_deregister_mem(NixlAgent *agent, NixlRegions *regions, NixlOptions *) {
    for (const Range &range : regions->ranges) {
        Registration *found = same(agent->registered, range);
        if (found == nullptr) misused("memory is taken back that was not registered");
        *found->word = 0;
        agent->registered.erase(agent->registered.begin() + (found - agent->registered.data()));
    }
    return 0;
}

EXPORT NixlStatus nixl_capi_get_local_partial_md(NixlAgent *agent, NixlRegions *regions, void **data, size_t *bytes, NixlOptions *) {
    MetadataHead head = {};
    std::vector<Registration> told;
    for (const Range &range : regions->ranges) {
        const Registration *found = same(agent->registered, range);
        if (found == nullptr) return failed;
        told.push_back(*found);
    }
    std::snprintf(head.name, sizeof head.name, "%s", agent->name.c_str());
    head.card = fake_worker_card(agent->worker);
    head.ranges = told.size();
    *bytes = sizeof head + head.ranges * sizeof(Registration);
    *data = std::malloc(*bytes);
    std::memcpy(*data, &head, sizeof head);
    if (head.ranges != 0) std::memcpy(static_cast<char *>(*data) + sizeof head, told.data(), head.ranges * sizeof(Registration));
    return 0;
}
// As in NIXL, how to reach an agent comes before its memory, and known memory has one key.
EXPORT NixlStatus nixl_capi_load_remote_md(NixlAgent *agent, const void *data, size_t bytes, char **name) {
    MetadataHead head;
    if (bytes < sizeof head) return failed;
    std::memcpy(&head, data, sizeof head);
    if (bytes != sizeof head + head.ranges * sizeof(Registration)) return failed;
    if (head.ranges != 0 && agent->peers.count(head.name) == 0) return failed;
    NixlAgent::Peer &peer = agent->peers[head.name];
    peer.card = head.card;
    for (uint64_t i = 0; i < head.ranges; ++i) {
        Registration told;
        std::memcpy(&told, static_cast<const char *>(data) + sizeof head + i * sizeof told, sizeof told);
        const Registration *known = same(peer.known, told.range);
        if (known != nullptr && known->key != told.key) return failed;
        if (known == nullptr) peer.known.push_back(told);
    }
    *name = strdup(head.name);
    return 0;
}
EXPORT NixlStatus nixl_capi_invalidate_remote_md(NixlAgent *agent, const char *name) { return agent->peers.erase(name) == 1 ? 0 : failed; }
EXPORT NixlStatus nixl_capi_agent_make_connection(NixlAgent *agent, const char *name, NixlOptions *) {
    auto found = agent->peers.find(name);
    if (found == agent->peers.end() || fake_is_told("unreachable")) return failed;
    found->second.connected = true;
    return 0;
}

EXPORT NixlStatus nixl_capi_create_xfer_dlist(int memory, NixlPieces **pieces) {
    if (memory != nixl_dram) return refused;
    *pieces = new NixlPieces;
    return 0;
}
EXPORT NixlStatus nixl_capi_xfer_dlist_add_desc(NixlPieces *pieces, uintptr_t base, size_t bytes, uint64_t device) {
    if (device != 0) return refused;
    pieces->ranges.push_back({base, bytes});
    return 0;
}
EXPORT NixlStatus nixl_capi_destroy_xfer_dlist(NixlPieces *pieces) {
    delete pieces;
    return 0;
}

EXPORT NixlStatus nixl_capi_create_xfer_req(NixlAgent *agent, int operation, NixlPieces *local, NixlPieces *remote, const char *name,
                                            NixlRequest **request, NixlOptions *) {
    auto found = agent->peers.find(name);
    if (operation != nixl_read || local->ranges.size() != 1 || remote->ranges.size() != 1) return refused;
    const Range to = local->ranges[0], from = remote->ranges[0];
    if (found == agent->peers.end() || !found->second.connected || to.bytes != from.bytes) return failed;
    const Registration *remote_memory = covering(found->second.known, from);
    if (covering(agent->registered, to) == nullptr || remote_memory == nullptr) return failed;
    uint64_t key = 0;
    if (!fake_peek(&found->second.card, &key, reinterpret_cast<uintptr_t>(remote_memory->word), sizeof key)) return failed;
    if (key != remote_memory->key) return failed;
    *request = new NixlRequest{found->second.card, from, to.first};
    ++agent->requests;
    return 0;
}
EXPORT NixlStatus nixl_capi_post_xfer_req(NixlAgent *agent, NixlRequest *request, NixlOptions *) {
    request->read = fake_read(agent->worker, &request->peer, reinterpret_cast<void *>(request->to), request->from.first, request->from.bytes);
    return nixl_in_progress;
}
EXPORT NixlStatus nixl_capi_get_xfer_status(NixlAgent *agent, NixlRequest *request) {
    if (request->read == nullptr || request->released) return refused;
    fake_worker_progress(agent->worker);
    const fake_state state = fake_request_state(request->read);
    return state == FAKE_UNDER_WAY ? nixl_in_progress : state == FAKE_CAME ? 0 : failed;
}
EXPORT NixlStatus nixl_capi_release_xfer_req(NixlAgent *agent, NixlRequest *request) {
    if (request->released) misused("a request is released twice");
    if (request->read != nullptr) fake_request_forget(request->read);
    request->released = true;
    --agent->requests;
    return 0;
}
EXPORT NixlStatus nixl_capi_destroy_xfer_req(NixlRequest *request) {
    if (!request->released) return -3;
    delete request;
    return 0;
}
}
