// Announcing and awaiting a round in a peer's control words: a release store and a futex, shared between processes.
#pragma once

#include "../launch.hpp"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace moelink::kernels::host {

static_assert(std::atomic_ref<uint64_t>::is_always_lock_free);

// The epoch is the upper half of a word: the 32 bits that the futex watches.
inline uint32_t *epoch_half(uint64_t *word) {
    return reinterpret_cast<uint32_t *>(word) + (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 1 : 0);
}

inline void store_word(uint64_t *word, uint32_t epoch, uint32_t value, std::memory_order order) {
    std::atomic_ref<uint64_t>(*word).store(uint64_t{epoch} << 32 | value, order);
}

inline void announce(uint64_t *word, uint32_t epoch, uint32_t value) {
    store_word(word, epoch, value, std::memory_order_release);
    syscall(SYS_futex, epoch_half(word), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Waits until the word carries the epoch; its value into *value. False on a fault.
inline bool await_word(uint64_t *word, uint32_t epoch, uint32_t *value, int32_t peer, Phase phase,
                       std::chrono::steady_clock::time_point deadline, const Watch &watch, Fault *fault) {
    constexpr int spins = 200;
    constexpr long slice_ns = 20'000'000;
    for (int spin = 0;; ++spin) {
        uint64_t seen = std::atomic_ref<uint64_t>(*word).load(std::memory_order_acquire);
        if (static_cast<uint32_t>(seen >> 32) == epoch) {
            *value = static_cast<uint32_t>(seen);
            return true;
        }
        if (spin < spins) continue;
        if (watch.lost != nullptr && watch.lost(watch.user, fault)) {
            // The peer may have announced and left in good order since the word was read.
            seen = std::atomic_ref<uint64_t>(*word).load(std::memory_order_acquire);
            if (static_cast<uint32_t>(seen >> 32) == epoch) continue;
            fault->code = fault_peer;
            fault->phase = phase;
            return false;
        }
        if (std::chrono::steady_clock::now() >= deadline) {
            *fault = Fault{fault_timeout, peer, phase, 0};
            return false;
        }
        timespec slice{0, slice_ns};
        syscall(SYS_futex, epoch_half(word), FUTEX_WAIT, static_cast<uint32_t>(seen >> 32), &slice, nullptr, 0);
    }
}

template <class T>
T *part(unsigned char *slot, uint64_t offset) {
    return reinterpret_cast<T *>(slot + offset);
}

}  // namespace moelink::kernels::host
