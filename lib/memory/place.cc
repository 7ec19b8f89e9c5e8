#include "memory/place.hpp"

#include "base/error.hpp"

#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <memory>
#include <mutex>

namespace moelink {

namespace {

thread_local bool pretended = false;

// The 32 hexadecimal digits of the boot id.
void read_boot(uint8_t (&boot)[16]) {
    std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen("/proc/sys/kernel/random/boot_id", "re"), std::fclose);
    char text[64] = {};
    if (!file || std::fgets(text, sizeof text, file.get()) == nullptr) return;
    size_t length = 0;
    if (sodium_hex2bin(boot, sizeof boot, text, std::strlen(text), "-\n", &length, nullptr) != 0 || length != sizeof boot) {
        std::memset(boot, 0, sizeof boot);
    }
}

void random_bytes(void *to, size_t size) {
    if (sodium_init() < 0) fail(MOELINK_ERR_INTERNAL, "libsodium cannot be initialised");
    randombytes_buf(to, size);
}

// Made once in each process; the pid tells a forked child from its parent.
void process_token(uint8_t (&token)[16]) {
    static std::mutex mutex;
    static uint8_t kept[16];
    static pid_t owner = -1;
    std::lock_guard lock(mutex);
    if (owner != getpid()) {
        random_bytes(kept, sizeof kept);
        owner = getpid();
    }
    std::memcpy(token, kept, sizeof kept);
}

}  // namespace

ProcessPlace process_place() {
    ProcessPlace place{};
    read_boot(place.boot);
    struct stat info;
    if (stat("/proc/self/ns/net", &info) == 0) place.network_namespace = info.st_ino;
    if (pretended) {
        random_bytes(place.process, sizeof place.process);
    } else {
        process_token(place.process);
    }
    place.pid = getpid();
    place.uid = geteuid();
    return place;
}

void pretend_own_process(bool on) { pretended = on; }

bool may_share_host(const ProcessPlace &a, const ProcessPlace &b) {
    const uint8_t unknown[16] = {};
    if (std::memcmp(a.boot, unknown, 16) == 0 || std::memcmp(b.boot, unknown, 16) == 0) return true;
    return std::memcmp(a.boot, b.boot, 16) == 0;
}

bool may_share_network(const ProcessPlace &a, const ProcessPlace &b) {
    if (!may_share_host(a, b)) return false;
    return a.network_namespace == 0 || b.network_namespace == 0 || a.network_namespace == b.network_namespace;
}

}  // namespace moelink
