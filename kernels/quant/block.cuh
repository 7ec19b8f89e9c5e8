// Quantization of blocks by the eight lanes that hold their 128 values.
#pragma once

#include "quant/block.hpp"

#include <cuda_fp8.h>

namespace moelink::kernels::cuda {

// A lane's 16 BF16 values, which become one vector of E4M3.
struct BlockPart {
    uint4 half[2];

    // The part that becomes vector `vector` of the row.
    __device__ __forceinline__ void load(const unsigned char *row, int64_t vector) {
        half[0] = reinterpret_cast<const uint4 *>(row)[2 * vector];
        half[1] = reinterpret_cast<const uint4 *>(row)[2 * vector + 1];
    }

    // By all eight lanes of a block; *scale is the block's.
    __device__ __forceinline__ uint4 quantize(bool power_of_two, float *scale) const {
        const uint32_t words[8] = {half[0].x, half[0].y, half[0].z, half[0].w, half[1].x, half[1].y, half[1].z, half[1].w};
        float magnitude = 0.0f;
#pragma unroll
        for (int w = 0; w < 8; ++w) {
            magnitude = fmaxf(magnitude, fmaxf(__uint_as_float(words[w] << 16 & 0x7fffffffu), __uint_as_float(words[w] & 0x7fff0000u)));
        }
        const uint32_t lanes = 0xffu << (threadIdx.x & 24u);
#pragma unroll
        for (int step = 1; step < 8; step *= 2) magnitude = fmaxf(magnitude, __shfl_xor_sync(lanes, magnitude, step));
        const BlockScale block(magnitude, power_of_two);
        *scale = block.scale;
        uint32_t packed[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
            packed[w] = pair(words[2 * w], block.inverse) | pair(words[2 * w + 1], block.inverse) << 16;
        }
        return {packed[0], packed[1], packed[2], packed[3]};
    }

private:
    static __device__ __forceinline__ uint32_t pair(uint32_t word, float inverse) {
        const float2 values = {__fmul_rn(__uint_as_float(word << 16), inverse), __fmul_rn(__uint_as_float(word & 0xffff0000u), inverse)};
        return __nv_cvt_float2_to_fp8x2(values, __NV_SATFINITE, __NV_E4M3);
    }
};

inline constexpr int block_vectors = static_cast<int>(quantize_block / 16);

// Writes the scale of vector `vector`'s block into a row of scales, by one lane of the block.
__device__ __forceinline__ void store_scale(unsigned char *row, QuantizeForm form, int64_t vector, float scale) {
    if (form == quantize_e8m0) {
        row[vector / block_vectors] = to_e8m0(scale);
    } else {
        reinterpret_cast<float *>(row)[vector / block_vectors] = scale;
    }
}

// Whether this lane is the one that writes its block's scale.
__device__ __forceinline__ bool holds_scale(int lane) { return lane % block_vectors == 0; }

}  // namespace moelink::kernels::cuda
