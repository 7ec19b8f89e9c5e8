// Quantization of rows on the host.
#include "launch.hpp"
#include "quant/block.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace moelink::kernels::host {

namespace {

float from_bf16(uint16_t value) { return from_bits(uint32_t{value} << 16); }

// To the nearest, ties to even.
uint8_t to_e4m3(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 24 & 0x80u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7f;
    uint32_t code;
    if (magnitude < 0x3c800000u) {  // below 2^-6: steps of 2^-9
        code = static_cast<uint32_t>(std::nearbyint(from_bits(magnitude) * 512.0f));
    } else {
        const uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
        code = std::min((rounded >> 20) - (120u << 3), 0x7eu);
    }
    return static_cast<uint8_t>(sign | code);
}

}  // namespace

void quantize_row(QuantizeForm form, const void *values, uint64_t count, unsigned char *out, unsigned char *out_scales) {
    const auto *from = static_cast<const unsigned char *>(values);
    for (uint64_t block = 0; block < count / quantize_block; ++block) {
        float block_values[quantize_block];
        float magnitude = 0.0f;
        for (uint64_t i = 0; i < quantize_block; ++i) {
            uint16_t raw;
            std::memcpy(&raw, from + (block * quantize_block + i) * sizeof raw, sizeof raw);
            block_values[i] = from_bf16(raw);
            const float size = std::fabs(block_values[i]);
            if (size > magnitude) magnitude = size;  // fmax gives NaN for a signalling one
        }
        const BlockScale scale(magnitude, form == quantize_e8m0);
        for (uint64_t i = 0; i < quantize_block; ++i) out[block * quantize_block + i] = to_e4m3(block_values[i] * scale.inverse);
        if (form == quantize_e8m0) {
            out_scales[block] = to_e8m0(scale.scale);
        } else {
            std::memcpy(out_scales + block * sizeof(float), &scale.scale, sizeof(float));
        }
    }
}

}  // namespace moelink::kernels::host
