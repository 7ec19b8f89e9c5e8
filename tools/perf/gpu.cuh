// What several CUDA sources need of a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda_status.cuh"

namespace perf {

__device__ inline uint64_t now_ns() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

// Words between GPUs, of system scope.
__device__ inline unsigned acquire_word(const unsigned *word) {
    unsigned value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}
__device__ inline void add_relaxed(uint32_t *at, uint32_t value) {
    asm volatile("red.relaxed.sys.global.add.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
__device__ inline void fence() {
    asm volatile("fence.acq_rel.sys;" ::: "memory");
}
__device__ inline void store_whole(uint4 *at, const uint4 &value) {
    const uint64_t low = uint64_t{value.y} << 32 | value.x, high = uint64_t{value.w} << 32 | value.z;
    asm volatile("{ .reg .b128 whole; mov.b128 whole, {%1, %2}; st.relaxed.sys.global.b128 [%0], whole; }" ::"l"(at), "l"(low), "l"(high) : "memory");
}
__device__ inline uint4 load_whole(const uint4 *at) {
    uint64_t low, high;
    asm volatile("{ .reg .b128 whole; ld.relaxed.sys.global.b128 whole, [%2]; mov.b128 {%0, %1}, whole; }" : "=l"(low), "=l"(high) : "l"(at) : "memory");
    return {static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)};
}

inline void enable_peer(int from, int to) {
    check(cudaSetDevice(from), "cudaSetDevice");
    const cudaError_t status = cudaDeviceEnablePeerAccess(to, 0);
    if (status == cudaErrorPeerAccessAlreadyEnabled) {
        static_cast<void>(cudaGetLastError());
        return;
    }
    check(status, "cudaDeviceEnablePeerAccess");
}

}  // namespace perf
