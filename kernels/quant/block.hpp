// Quantization of a row in blocks: FP8 E4M3 values with one scale for each 128. One arithmetic for host and CUDA, so that they give
// the same bits: largest magnitude, scale = max(largest, 1e-10) / 448 (UE8M0: the next power of two), value * (1 / scale) rounded to
// the nearest even E4M3, finite values beyond 448 to 448, NaN to NaN. Each of the three operations is rounded once, in fp32.
// Source of the form: DeepSeek-V3's activations (1 x 128 tiles), and the OCP 8-bit floating point specification.
#pragma once

#include "launch.hpp"

namespace moelink::kernels {

inline constexpr float largest_e4m3 = 448.0f;
inline constexpr float least_magnitude = 1e-10f;  // of a block, so that its scale is a normal number

MOELINK_BOTH inline uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    return __builtin_bit_cast(uint32_t, value);
#endif
}

MOELINK_BOTH inline float from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    return __builtin_bit_cast(float, bits);
#endif
}

struct BlockScale {
    float scale;    // what a value is multiplied by to get it back
    float inverse;

    BlockScale() = default;
    MOELINK_BOTH BlockScale(float magnitude, bool power_of_two) {
        scale = (magnitude > least_magnitude ? magnitude : least_magnitude) / largest_e4m3;
        if (power_of_two) {
            const uint32_t bits = bits_of(scale);
            const uint32_t exponent = (bits >> 23) + ((bits & 0x7fffffu) != 0 ? 1 : 0);
            scale = from_bits((exponent < 254 ? exponent : 254) << 23);
        }
        inverse = 1.0f / scale;
    }
};

// A power-of-two scale as UE8M0: its exponent.
MOELINK_BOTH inline uint8_t to_e8m0(float scale) { return static_cast<uint8_t>(bits_of(scale) >> 23); }

}  // namespace moelink::kernels
