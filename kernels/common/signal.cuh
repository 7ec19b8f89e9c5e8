// Words between GPUs: system-scope loads, stores and adds, bounded waits, and the fault word. docs/kernels.md says who writes
// what before which of these, and who reads after which.
#pragma once

#include "launch.hpp"

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

// Builds for stress tests only (-Dkernel_defines=MOELINK_DELAYS=1): a random part of all warps loses some microseconds here, so that
// ranks, blocks and warps meet in orders that do not come about by themselves.
__device__ __forceinline__ void stagger() {
#if MOELINK_DELAYS
    uint32_t mix = static_cast<uint32_t>(clock64()) * 2654435761u ^ (blockIdx.x * 40503u + threadIdx.x / 32 * 97u);
    mix ^= mix >> 15;
    if (mix % 8 == 0) __nanosleep((mix >> 8) % 20000);
#endif
}

// In the same builds: brings lines that are still to be written into this multiprocessor's cache, where a reader without its
// acquire finds them.
__device__ __forceinline__ void touch([[maybe_unused]] const unsigned char *at, [[maybe_unused]] uint64_t bytes) {
#if MOELINK_DELAYS
    for (uint64_t offset = 0; offset < bytes && offset < 1024; offset += 128) {
        if (at[offset] == 0x5c) __nanosleep(20);  // so that the load is not left out
    }
#endif
}

// What is polled is loaded relaxed; an acquire of the same word follows once it holds what is awaited.
__device__ __forceinline__ uint64_t load_relaxed(const uint64_t *at) {
    uint64_t value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}

__device__ __forceinline__ uint32_t load_relaxed(const uint32_t *at) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

// The places that order depends on: fences, acquires, and what packets have in their stead.
// -Dkernel_defines=MOELINK_WITHOUT_FENCE=NAME leaves out one of them, or all, to see that stress tests notice.
enum class Site {
    none,
    all,
    dispatch_count,    // fence: rows in planes before the count of them
    dispatch_await,    // acquire: the count before rows in planes
    bulk_written,      // wait: bulk copies are done before the count or mark of their rows
    combine_push,      // fence: a row in the plane before its mark
    combine_await,     // acquire: a row's mark before the row
    combine_fallback,  // acquire: the same, where packets were as likely
    packet_come,       // look: a vector has come before it is taken
    packet_bits,       // look: the bits beside a tile are of this round
    packet_clear,      // store: a vector that was taken is cleared
    packet_routing,    // look: a word of routing is of this round
    fifo_taken,        // fence: tiles are taken and cleared before the credit for them
    fifo_credit,       // acquire: the credit before tiles that use it
};

#ifndef MOELINK_WITHOUT_FENCE
#define MOELINK_WITHOUT_FENCE none
#endif

template <Site site>
inline constexpr bool left_out = Site::MOELINK_WITHOUT_FENCE == Site::all || Site::MOELINK_WITHOUT_FENCE == site;

// What others wrote before they released the word `at` is seen by this thread from here on, and by its block after a barrier.
template <Site site>
__device__ __forceinline__ void acquire(const uint64_t *at) {
    uint64_t value;
    if constexpr (!left_out<site>) asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
}

template <Site site>
__device__ __forceinline__ void acquire(const uint32_t *at) {
    uint32_t value;
    if constexpr (!left_out<site>) asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
}

// Everything that this thread has seen done, also by its block before a barrier, comes before its stores and additions after.
template <Site site>
__device__ __forceinline__ void fence() {
    if constexpr (!left_out<site>) asm volatile("fence.acq_rel.sys;" ::: "memory");
}

__device__ __forceinline__ void store_relaxed(uint64_t *at, uint64_t value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

__device__ __forceinline__ void store_relaxed(uint32_t *at, uint32_t value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

__device__ __forceinline__ void add_relaxed(uint64_t *at, uint64_t value) {
    asm volatile("red.relaxed.sys.global.add.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

__device__ __forceinline__ uint64_t now_ns() {
    uint64_t time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
}

__device__ __forceinline__ uint64_t tagged(uint32_t epoch, uint32_t value) { return uint64_t{epoch} << 32 | value; }

template <class T>
__device__ __forceinline__ T *part(unsigned char *slot, uint64_t offset) {
    return reinterpret_cast<T *>(slot + offset);
}

__device__ __forceinline__ uint32_t read_volatile(const uint32_t *at) { return *static_cast<const volatile uint32_t *>(at); }

// The first fault of a manager is kept: in device memory for later kernels, in pinned memory for the host.
__device__ inline void report(const Workspace &ws, FaultCode code, int32_t peer, Phase phase) {
    if (atomicCAS(&ws.anchor->faulted, 0u, static_cast<uint32_t>(code)) != 0u) return;
    volatile Fault *fault = ws.fault;
    fault->peer = peer;
    fault->phase = phase;
    __threadfence_system();
    fault->code = code;
}

// A kernel's entry, by all threads; false: do nothing. The workspace may be gone, which only the host can bring about, so this is
// asked before the kernel ahead has ended (programmatic dependent launch). Nothing that it wrote may be read, and nothing that
// it reads written, before its end, which comes next. Then the next kernel of the stream may take its place on the multiprocessors.
__device__ __forceinline__ bool enter(const Workspace &ws) {
    bool stale = false;
    if (threadIdx.x == 0 && *static_cast<volatile uint64_t *>(&ws.anchor->generation) != ws.generation) {
        stale = true;
        static_cast<volatile Fault *>(ws.fault)->stale = 1;
    }
    stale = __syncthreads_or(stale);
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    stagger();
    return !stale;
}

// One thread's finding, to be shared with the others before a peer is told anything: an earlier kernel has left a fault.
__device__ __forceinline__ bool found_fault(const Workspace &ws) { return threadIdx.x == 32 && read_volatile(&ws.anchor->faulted) != 0u; }

// One thread's wait with a deadline; `ready` is polled and says when it is over.
template <class Ready>
__device__ inline bool await(const Workspace &ws, int32_t peer, Phase phase, Ready &&ready) {
    uint64_t start = 0;
    for (uint32_t polls = 1;; ++polls) {
        if (ready()) return true;
        if (polls % 64 != 0) continue;
        if (read_volatile(&ws.anchor->faulted) != 0u) return false;
        const uint64_t now = now_ns();
        if (start == 0) start = now;
        if (now - start > ws.timeout_ns) {
            report(ws, fault_timeout, peer, phase);
            return false;
        }
    }
}

// Awaits a peer's count of this round and checks the shape that it must share with ours. The two words come in any order.
__device__ inline bool await_count(const Workspace &ws, const uint64_t *count_word, const uint64_t *shape_word, uint32_t epoch, uint32_t shape,
                                   int32_t peer, Phase phase, uint32_t *out) {
    uint64_t count = 0, hash = 0;
    if (!await(ws, peer, phase, [&] {
            count = load_relaxed(count_word);
            hash = load_relaxed(shape_word);
            return static_cast<uint32_t>(count >> 32) == epoch && static_cast<uint32_t>(hash >> 32) == epoch;
        })) {
        return false;
    }
    *out = static_cast<uint32_t>(count);
    if (static_cast<uint32_t>(hash) == shape) return true;
    report(ws, fault_mismatch, peer, phase);
    return false;
}

}  // namespace moelink::kernels::cuda
