#include "fifo.hpp"

#include <algorithm>
#include <cstring>

namespace moelink::kernels::host {

namespace {

uint64_t *position(unsigned char *slot, uint64_t offset, int32_t index) { return &part<FifoPosition>(slot, offset)[index].bytes; }

uint64_t load(uint64_t *at, std::memory_order order) { return std::atomic_ref<uint64_t>(*at).load(order); }

// Sequentially consistent, as the sleeper's look at the word is part of the wait.
void ring(uint32_t *bell) {
    std::atomic_ref<uint32_t>(*bell).fetch_add(1);
    syscall(SYS_futex, bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

FifoOut::FifoOut(const FifoWorkspace &fifos, int32_t other) {
    const Workspace &ws = fifos.workspace;
    unsigned char *there = ws.peers[other];
    const int32_t mine = other_index(other, ws.rank);
    size_ = fifos.fifo.fifo_bytes;
    ring_ = there + fifos.fifo.fifos + static_cast<uint64_t>(mine) * size_;
    written_at_ = position(there, fifos.fifo.written, mine);
    taken_at_ = position(ws.mine, fifos.fifo.taken, other_index(ws.rank, other));
    bell_ = &part<FifoBell>(there, fifos.fifo.bell)->rings;
    written_ = published_ = load(written_at_, std::memory_order_relaxed);
}

size_t FifoOut::put(const unsigned char *from, size_t bytes) {
    const uint64_t room = size_ - (written_ - load(taken_at_, std::memory_order_acquire));
    const size_t count = std::min<uint64_t>(bytes, room);
    const uint64_t at = written_ % size_;
    const size_t first = std::min<uint64_t>(count, size_ - at);
    std::memcpy(ring_ + at, from, first);
    std::memcpy(ring_, from + first, count - first);
    written_ += count;
    return count;
}

void FifoOut::publish() {
    if (written_ == published_) return;
    published_ = written_;
    std::atomic_ref<uint64_t>(*written_at_).store(written_, std::memory_order_release);
    ring(bell_);
}

FifoIn::FifoIn(const FifoWorkspace &fifos, int32_t other) {
    const Workspace &ws = fifos.workspace;
    unsigned char *there = ws.peers[other];
    const int32_t theirs = other_index(ws.rank, other);
    size_ = fifos.fifo.fifo_bytes;
    ring_ = ws.mine + fifos.fifo.fifos + static_cast<uint64_t>(theirs) * size_;
    written_at_ = position(ws.mine, fifos.fifo.written, theirs);
    taken_at_ = position(there, fifos.fifo.taken, other_index(other, ws.rank));
    bell_ = &part<FifoBell>(there, fifos.fifo.bell)->rings;
    taken_ = released_ = load(taken_at_, std::memory_order_relaxed);
}

size_t FifoIn::get(unsigned char *to, size_t bytes) {
    const uint64_t there_is = load(written_at_, std::memory_order_acquire) - taken_;
    const size_t count = std::min<uint64_t>(bytes, there_is);
    const uint64_t at = taken_ % size_;
    const size_t first = std::min<uint64_t>(count, size_ - at);
    std::memcpy(to, ring_ + at, first);
    std::memcpy(to + first, ring_, count - first);
    taken_ += count;
    return count;
}

void FifoIn::release() {
    if (taken_ == released_) return;
    released_ = taken_;
    std::atomic_ref<uint64_t>(*taken_at_).store(taken_, std::memory_order_release);
    ring(bell_);
}

void Traffic::add(int32_t other, std::unique_ptr<Outgoing> out, std::unique_ptr<Incoming> in) {
    peers_.push_back({other, FifoOut(fifos_, other), FifoIn(fifos_, other), std::move(out), std::move(in)});
}

bool Traffic::send(Peer &peer) {
    bool moved = false;
    while (!peer.sent) {
        if (peer.from_left == 0 && !peer.outgoing->next(&peer.from, &peer.from_left)) {
            peer.sent = moved = true;
            break;
        }
        const size_t count = peer.out.put(peer.from, peer.from_left);
        moved = moved || count > 0;
        peer.from += count;
        peer.from_left -= count;
        if (peer.from_left > 0) break;
    }
    peer.out.publish();
    return moved;
}

bool Traffic::receive(Peer &peer, Fault *fault) {
    bool moved = false;
    while (!peer.received) {
        if (peer.to_left == 0) {
            const Incoming::Next next = peer.incoming->next(&peer.to, &peer.to_left);
            peer.later = next == Incoming::Next::later;
            if (next == Incoming::Next::later) break;
            if (next == Incoming::Next::mismatch) {
                fault->code = fault_mismatch;
                fault->peer = peer.rank;
                break;
            }
            if (next == Incoming::Next::end) {
                peer.received = moved = true;
                break;
            }
        }
        const size_t count = peer.in.get(peer.to, peer.to_left);
        moved = moved || count > 0;
        peer.heard = peer.heard || count > 0;
        peer.to += count;
        peer.to_left -= count;
        if (peer.to_left > 0) break;
    }
    peer.in.release();
    return moved;
}

bool Traffic::turn(const std::function<bool()> &work, Fault *fault) {
    bool moved = false;
    for (Peer &peer : peers_) moved = send(peer) || moved;
    for (Peer &peer : peers_) moved = receive(peer, fault) || moved;
    return work() || moved;
}

bool Traffic::done() const {
    return std::all_of(peers_.begin(), peers_.end(), [](const Peer &peer) { return peer.sent && peer.received; });
}

int32_t Traffic::awaited() const {
    for (const Peer &peer : peers_) {
        if (!peer.heard) return peer.rank;
    }
    for (const Peer &peer : peers_) {
        if (!peer.received && !peer.later) return peer.rank;
    }
    for (const Peer &peer : peers_) {
        if (!peer.sent) return peer.rank;
    }
    return -1;
}

Fault Traffic::run(const std::function<bool()> &work, Phase phase, const Watch &watch) {
    using Clock = std::chrono::steady_clock;
    constexpr int looks = 32;  // between two readings of the clock
    constexpr long slice_ns = 20'000'000;
    const Workspace &ws = fifos_.workspace;
    uint32_t *bell = &part<FifoBell>(ws.mine, fifos_.fifo.bell)->rings;
    const std::chrono::nanoseconds timeout(ws.timeout_ns), spin = spin_time(ws.ranks);
    Fault fault{0, -1, phase, 0};
    Clock::time_point moved_at = Clock::now();
    bool idle = false;  // since moved_at
    for (int look = 1;; ++look) {
        const uint32_t heard = std::atomic_ref<uint32_t>(*bell).load();
        bool moved = turn(work, &fault);
        if (fault.code != fault_none || (!moved && done())) return fault;
        if (moved) {
            idle = false;
            continue;
        }
        if (!idle) moved_at = Clock::now();
        idle = true;
        if (look % looks != 0 || Clock::now() < moved_at + spin) {
            pause();
            continue;
        }
        if (watch.lost != nullptr && watch.lost(watch.user, &fault)) {
            // The peer may have sent everything and left in good order since the last turn.
            if (turn(work, &fault)) continue;
            if (fault.code == fault_none) fault.code = fault_peer;
            return fault;
        }
        if (Clock::now() - moved_at >= timeout) return Fault{fault_timeout, awaited(), phase, 0};
        timespec slice{0, slice_ns};
        syscall(SYS_futex, bell, FUTEX_WAIT, heard, &slice, nullptr, 0);
    }
}

}  // namespace moelink::kernels::host
