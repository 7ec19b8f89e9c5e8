// Announcing and awaiting a round in a peer's control words: a release store and a futex, shared between processes.
#pragma once

#include "../launch.hpp"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sched.h>
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

// How long to look before sleeping. A wake-up costs tens of microseconds; but where ranks outnumber cores, whoever looks keeps
// the one who is waited for from running.
inline std::chrono::nanoseconds spin_time(int32_t ranks) {
    static const int cores = [] {
        cpu_set_t mine;
        return sched_getaffinity(0, sizeof mine, &mine) == 0 ? CPU_COUNT(&mine) : 1;
    }();
    return std::chrono::microseconds(ranks <= cores ? 20 : 1);
}

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Whether the word carries the epoch; then its value into *value. What epoch was seen goes into *seen.
inline bool arrived(uint64_t *word, uint32_t epoch, uint32_t *value, uint32_t *seen) {
    const uint64_t all = std::atomic_ref<uint64_t>(*word).load(std::memory_order_acquire);
    *seen = static_cast<uint32_t>(all >> 32);
    if (*seen != epoch) return false;
    *value = static_cast<uint32_t>(all);
    return true;
}

// Waits until the word carries the epoch; its value into *value. False on a fault.
inline bool await_word(uint64_t *word, uint32_t epoch, uint32_t *value, int32_t peer, int32_t ranks, Phase phase,
                       std::chrono::steady_clock::time_point deadline, const Watch &watch, Fault *fault) {
    constexpr int looks = 32;  // between two readings of the clock
    constexpr long slice_ns = 20'000'000;
    uint32_t seen = 0;
    const auto sleep_from = std::chrono::steady_clock::now() + spin_time(ranks);
    for (int look = 1; look % looks != 0 || std::chrono::steady_clock::now() < sleep_from; ++look) {
        if (arrived(word, epoch, value, &seen)) return true;
        pause();
    }
    for (;;) {
        if (arrived(word, epoch, value, &seen)) return true;
        if (watch.lost != nullptr && watch.lost(watch.user, fault)) {
            // The peer may have announced and left in good order since the word was read.
            if (arrived(word, epoch, value, &seen)) return true;
            fault->code = fault_peer;
            fault->phase = phase;
            return false;
        }
        if (std::chrono::steady_clock::now() >= deadline) {
            *fault = Fault{fault_timeout, peer, phase, 0};
            return false;
        }
        timespec slice{0, slice_ns};
        syscall(SYS_futex, epoch_half(word), FUTEX_WAIT, seen, &slice, nullptr, 0);
    }
}

template <class T>
T *part(unsigned char *slot, uint64_t offset) {
    return reinterpret_cast<T *>(slot + offset);
}

}  // namespace moelink::kernels::host
