// Adding values of rows in fp32.
#pragma once

#include "launch.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace moelink::kernels::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void from_float(float value, float *out) { *out = value; }
__device__ __forceinline__ void from_float(float value, __half *out) { *out = __float2half_rn(value); }
__device__ __forceinline__ void from_float(float value, __nv_bfloat16 *out) { *out = __float2bfloat16_rn(value); }

// Values that are read and written in one access.
template <class T, int Count>
struct alignas(sizeof(T) * Count) Pack {
    T value[Count];
};

template <class T, int Count>
struct Sum {
    float value[Count] = {};

    __device__ __forceinline__ void add(const Pack<T, Count> &pack, float weight, bool weighted) {
#pragma unroll
        for (int i = 0; i < Count; ++i) value[i] = weighted ? value[i] + weight * to_float(pack.value[i]) : value[i] + to_float(pack.value[i]);
    }

    __device__ __forceinline__ Pack<T, Count> rounded() const {
        Pack<T, Count> pack;
#pragma unroll
        for (int i = 0; i < Count; ++i) from_float(value[i], &pack.value[i]);
        return pack;
    }
};

}  // namespace moelink::kernels::cuda
