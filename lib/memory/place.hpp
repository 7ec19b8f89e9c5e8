// Where a rank runs, as far as sharing memory goes. Host names play no part.
#pragma once

#include <cstdint>
#include <cstring>

namespace moelink {

// Zero bytes where the system does not tell.
struct ProcessPlace {
    uint8_t boot[16];            // the kernel that runs
    uint64_t network_namespace;  // abstract socket names are valid inside it
    uint8_t process[16];         // random, of this process alone (a forked child has its own)
    int32_t pid;
    uint32_t uid;
};

// Throws Error when the system gives no random bytes.
ProcessPlace process_place();

// For unit tests that run several ranks in one process: places of this thread count as another process than those of others.
void pretend_own_process(bool on);

inline bool same_process(const ProcessPlace &a, const ProcessPlace &b) {
    return std::memcmp(a.process, b.process, sizeof a.process) == 0 && a.pid == b.pid;
}

// False only when the two are known to run on different hosts.
bool may_share_host(const ProcessPlace &a, const ProcessPlace &b);

// False only when the two are known to see different abstract sockets.
bool may_share_network(const ProcessPlace &a, const ProcessPlace &b);

}  // namespace moelink
