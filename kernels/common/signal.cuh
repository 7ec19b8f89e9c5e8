// Words between GPUs: system-scope loads, stores and adds, bounded waits, and the fault word. docs/kernels.md says who writes
// what before which of these, and who reads after which.
#pragma once

#include "launch.hpp"

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

__device__ __forceinline__ uint64_t load_acquire(const uint64_t *at) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
}

// Everything that this thread has seen done, also by its block before a barrier, comes before its stores and additions after.
__device__ __forceinline__ void fence() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

__device__ __forceinline__ void store_relaxed(uint64_t *at, uint64_t value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
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

// Called by all threads at a kernel's entry, before anything in the workspace is touched. False: do nothing.
__device__ inline bool may_run(const Workspace &ws) {
    bool stop = false;
    if (threadIdx.x == 0 && *static_cast<volatile uint64_t *>(&ws.anchor->generation) != ws.generation) {
        stop = true;
        static_cast<volatile Fault *>(ws.fault)->stale = 1;
    }
    if (threadIdx.x == 32 && read_volatile(&ws.anchor->faulted) != 0u) stop = true;
    return !__syncthreads_or(stop);
}

// One thread's wait with a deadline; `ready` is polled and says when it is over.
template <class Ready>
__device__ inline bool await(const Workspace &ws, int32_t peer, Phase phase, Ready &&ready) {
    const uint64_t start = now_ns();
    for (uint32_t polls = 1;; ++polls) {
        if (ready()) return true;
        if (polls % 64 != 0) continue;
        if (read_volatile(&ws.anchor->faulted) != 0u) return false;
        if (now_ns() - start > ws.timeout_ns) {
            report(ws, fault_timeout, peer, phase);
            return false;
        }
    }
}

// Awaits one peer's rows of a round: its count word, the shape it must share with ours, then the rows themselves.
// `expected` below 0: the count is the peer's to say.
__device__ inline bool await_rows(const Workspace &ws, const uint64_t *count_word, const uint64_t *shape_word, const uint64_t *rows_word,
                                  uint64_t base, uint32_t epoch, uint32_t shape, int32_t expected, int32_t peer, Phase phase,
                                  int32_t *out_rows) {
    uint64_t word = 0;
    if (!await(ws, peer, phase, [&] {
            word = load_acquire(count_word);
            return static_cast<uint32_t>(word >> 32) == epoch;
        })) {
        return false;
    }
    const uint32_t rows = static_cast<uint32_t>(word);
    if (load_acquire(shape_word) != tagged(epoch, shape) || (expected >= 0 && rows != static_cast<uint32_t>(expected))) {
        report(ws, fault_mismatch, peer, phase);
        return false;
    }
    if (!await(ws, peer, phase, [&] { return load_acquire(rows_word) - base == rows; })) return false;
    *out_rows = static_cast<int32_t>(rows);
    return true;
}

}  // namespace moelink::kernels::cuda
