// Loading kernels: see load_kernels.
#pragma once

#include "common/bulk.cuh"

#include <initializer_list>

#include <cuda_runtime.h>

namespace moelink::kernels::cuda {

template <class... Params>
const void *address_of(void (*kernel)(Params...)) {
    return reinterpret_cast<const void *>(kernel);
}

// On the current device; asking for a kernel's attributes loads it.
inline Result load_each(std::initializer_list<const void *> kernels) {
    for (const void *kernel : kernels) {
        cudaFuncAttributes attributes;
        if (cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

// The same of kernels with memory for bulk copies. Where a device has too little of it, they are launched without on all.
inline Result load_each_with_bulk(std::initializer_list<const void *> kernels) {
    for (const void *kernel : kernels) {
        const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(BulkMemory));
        if (error == cudaErrorInvalidValue) {
            cudaGetLastError();
            bulk_memory_allowed = false;
        } else if (error != cudaSuccess) {
            return error;
        }
    }
    return load_each(kernels);
}

}  // namespace moelink::kernels::cuda
