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
