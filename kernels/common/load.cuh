// Loading kernels: see load_kernels.
#pragma once

#include "launch.hpp"

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

}  // namespace moelink::kernels::cuda
