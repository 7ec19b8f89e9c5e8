// Shared host memory: one sealed memfd a rank, passed as a file descriptor and mapped by all. The host device's provider.
#include "memory/fd_exchange.hpp"
#include "memory/host_limit.hpp"
#include "memory/provider.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace moelink {

namespace {

constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

class SharedCopies final : public Copies {
public:
    SharedCopies(int ranks, int rank, uint64_t size, uint64_t page) : rank_(static_cast<size_t>(rank)) {
        peers.assign(static_cast<size_t>(ranks), nullptr);
        bytes = size;
        granularity = page;
    }
    ~SharedCopies() override {
        for (void *copy : peers) {
            if (copy != nullptr) munmap(copy, bytes);
        }
    }
    void map(size_t rank, int fd) {
        void *copy = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (copy == MAP_FAILED) {
            fail(errno_status(errno, MOELINK_ERR_UNSUPPORTED), "{}",
                 errno_text(fmt::format("mmap of {} bytes", bytes).c_str(), errno));
        }
        peers[rank] = copy;
    }
    void fill(uint8_t value) override { std::memset(peers[rank_], value, bytes); }
    void clear() override {}  // fresh pages of a memfd are zero
    void read(int rank, void *to, uint64_t size) override { std::memcpy(to, peers[static_cast<size_t>(rank)], size); }

private:
    size_t rank_;
};

// Taking pages that do not exist would end in a kill, so the sizes are compared first.
void require_available(uint64_t bytes, int ranks) {
    uint64_t available = host_bytes_available();
    if (bytes > available / static_cast<uint64_t>(ranks)) {
        fail(MOELINK_ERR_OUT_OF_MEMORY, "{} x {} bytes of host memory are asked for, and {} are available", ranks, bytes,
             available);
    }
    rlimit limit{};
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur) {
        fail(MOELINK_ERR_OUT_OF_MEMORY, "{} bytes are asked for, and the limit of a file's size (ulimit -f) is {}", bytes,
             limit.rlim_cur);
    }
}

Fd open_memfd() {
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    Fd fd(memfd_create("moelink", flags | MFD_NOEXEC_SEAL));
    if (!fd && errno == EINVAL) fd = Fd(memfd_create("moelink", flags));  // kernels before 6.3
    if (!fd) fail(errno_status(errno, MOELINK_ERR_UNSUPPORTED), "{}", errno_text("memfd_create", errno));
    return fd;
}

// Takes the pages now: later a lack of them would be a SIGBUS. In pieces, since a signal undoes the piece that it interrupts.
void take_pages(int fd, uint64_t bytes, const Deadline &deadline) {
    constexpr uint64_t piece = uint64_t{64} << 20;
    for (uint64_t at = 0; at < bytes;) {
        if (deadline.passed()) fail(MOELINK_ERR_TIMEOUT, "the deadline passed while taking {} bytes of host memory", bytes);
        uint64_t size = std::min(piece, bytes - at);
        int error = posix_fallocate(fd, static_cast<off_t>(at), static_cast<off_t>(size));
        if (error == EINTR) continue;
        if (error != 0) {
            bool full = error == ENOSPC || error == ENOMEM || error == EFBIG || error == EDQUOT;
            fail(full ? MOELINK_ERR_OUT_OF_MEMORY : MOELINK_ERR_UNSUPPORTED, "{}",
                 errno_text(fmt::format("taking {} bytes of host memory", bytes).c_str(), error));
        }
        at += size;
    }
}

Fd make_sealed(uint64_t bytes, const Deadline &deadline) {
    Fd fd = open_memfd();
    if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
        fail(MOELINK_ERR_OUT_OF_MEMORY, "{}", errno_text(fmt::format("ftruncate to {} bytes", bytes).c_str(), errno));
    }
    take_pages(fd.get(), bytes, deadline);
    if (fcntl(fd.get(), F_ADD_SEALS, seals) != 0) fail(MOELINK_ERR_UNSUPPORTED, "{}", errno_text("F_ADD_SEALS", errno));
    return fd;
}

// What a peer sends is only mapped when it can never shrink under this rank.
void require_sealed(int fd, uint64_t bytes) {
    int found = fcntl(fd, F_GET_SEALS);
    if (found < 0 || (found & seals) != seals) {
        fail(MOELINK_ERR_INTERNAL, "the file descriptor is no sealed memfd (seals {})", found);
    }
    struct stat info{};
    if (fstat(fd, &info) != 0) fail(MOELINK_ERR_INTERNAL, "{}", errno_text("fstat", errno));
    if (static_cast<uint64_t>(info.st_size) != bytes) {
        fail(MOELINK_ERR_INTERNAL, "its memfd has {} bytes and should have {}", info.st_size, bytes);
    }
}

}  // namespace

uint64_t host_shm_granularity(const Group &) { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

std::unique_ptr<Copies> map_host_shm(Group &group, uint64_t bytes, const Deadline &deadline) {
    auto rank = static_cast<size_t>(group.rank());
    std::unique_ptr<SharedCopies> copies;
    Fd mine;
    step(group, deadline, [&] {
        require_available(bytes, group.size());
        copies = std::make_unique<SharedCopies>(group.size(), group.rank(), bytes, host_shm_granularity(group));
    });
    step(group, deadline, [&] {
        mine = make_sealed(bytes, deadline);
        copies->map(rank, mine.get());
    });
    exchange_fds(group, mine.get(), deadline, [&](int peer, Fd fd) {
        require_sealed(fd.get(), bytes);
        copies->map(static_cast<size_t>(peer), fd.get());
    });
    return copies;
}

}  // namespace moelink
