#include "fake_nccl_wire.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <ctime>
#include <stdexcept>

namespace fake_nccl {

namespace {
constexpr uint64_t ring_bytes = 16 << 10;
constexpr uint64_t length_bytes = sizeof(uint64_t);  // before each message
}  // namespace

// All zero is where a communicator begins, so the first to come need not tell the others that it was.
struct alignas(64) Wire::Header {
    std::atomic<uint32_t> bell;
    std::atomic<int32_t> joined;
};

struct alignas(64) Wire::Ring {
    std::atomic<uint64_t> written;
    std::atomic<uint64_t> read;
    unsigned char data[ring_bytes];

    uint64_t put(const unsigned char *from, uint64_t bytes) {
        const uint64_t at = written.load(std::memory_order_relaxed);
        const uint64_t count = std::min(bytes, ring_bytes - (at - read.load(std::memory_order_acquire)));
        const uint64_t first = std::min(count, ring_bytes - at % ring_bytes);
        std::memcpy(data + at % ring_bytes, from, first);
        std::memcpy(data, from + first, count - first);
        written.store(at + count, std::memory_order_release);
        return count;
    }
    uint64_t take(unsigned char *to, uint64_t bytes) {
        const uint64_t at = read.load(std::memory_order_relaxed);
        const uint64_t count = std::min(bytes, written.load(std::memory_order_acquire) - at);
        const uint64_t first = std::min(count, ring_bytes - at % ring_bytes);
        std::memcpy(to, data + at % ring_bytes, first);
        std::memcpy(to + first, data, count - first);
        read.store(at + count, std::memory_order_release);
        return count;
    }
    uint64_t waiting() const { return written.load(std::memory_order_acquire) - read.load(std::memory_order_relaxed); }
};

Wire::Wire(const std::string &name, int rank, int ranks) : name_(name), rank_(rank), ranks_(ranks) {
    bytes_ = sizeof(Header) + static_cast<uint64_t>(ranks) * static_cast<uint64_t>(ranks) * sizeof(Ring);
    const int fd = shm_open(name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) throw std::runtime_error("shm_open");
    const bool sized = ftruncate(fd, static_cast<off_t>(bytes_)) == 0;
    void *memory = sized ? mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (memory == MAP_FAILED) throw std::runtime_error("mmap");
    header_ = static_cast<Header *>(memory);
    if (header_->joined.fetch_add(1) + 1 == ranks_) shm_unlink(name.c_str());
    strike();
}

Wire::~Wire() {
    if (!all_joined()) shm_unlink(name_.c_str());
    munmap(header_, bytes_);
}

bool Wire::all_joined() const { return header_->joined.load() == ranks_; }

Wire::Ring &Wire::ring(int from, int to) const {
    return reinterpret_cast<Ring *>(header_ + 1)[static_cast<size_t>(from) * static_cast<size_t>(ranks_) + static_cast<size_t>(to)];
}

Progress Wire::advance(std::vector<Transfer> &transfers) {
    std::vector<char> sending(static_cast<size_t>(ranks_)), receiving(sending);
    bool moved = false, left = false;
    for (Transfer &transfer : transfers) {
        if (transfer.done == length_bytes + transfer.bytes) continue;
        char &busy = (transfer.send ? sending : receiving)[static_cast<size_t>(transfer.peer)];
        if (busy != 0) {
            left = true;
            continue;
        }
        busy = 1;
        Ring &line = transfer.send ? ring(rank_, transfer.peer) : ring(transfer.peer, rank_);
        const uint64_t before = transfer.done;
        if (transfer.done < length_bytes) {
            const auto *length = reinterpret_cast<const unsigned char *>(&transfer.bytes);
            if (transfer.send) transfer.done += line.put(length + transfer.done, length_bytes - transfer.done);
            if (!transfer.send && line.waiting() >= length_bytes) {
                uint64_t sent = 0;
                transfer.done += line.take(reinterpret_cast<unsigned char *>(&sent), length_bytes);
                if (sent != transfer.bytes) return Progress::mismatch;
            }
        }
        if (transfer.done >= length_bytes && transfer.bytes > 0) {
            const uint64_t at = transfer.done - length_bytes;
            if (transfer.send) transfer.done += line.put(transfer.from + at, transfer.bytes - at);
            if (!transfer.send) transfer.done += line.take(transfer.to + at, transfer.bytes - at);
        }
        moved |= transfer.done != before;
        if (transfer.done < length_bytes + transfer.bytes) {
            left = true;
        } else {
            busy = 0;  // the next message of this pair may follow at once
        }
    }
    if (moved) strike();
    if (!left) return Progress::all;
    return moved ? Progress::some : Progress::none;
}

uint32_t Wire::bell() const { return header_->bell.load(); }

void Wire::strike() const {
    header_->bell.fetch_add(1);
    syscall(SYS_futex, &header_->bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Wire::wait(uint32_t seen) const {
    const timespec most{0, 10'000'000};
    syscall(SYS_futex, &header_->bell, FUTEX_WAIT, seen, &most, nullptr, 0);
}

}  // namespace fake_nccl
