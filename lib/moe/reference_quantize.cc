#include "moe/reference_quantize.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace moelink {

namespace {

constexpr size_t block = 128;

double e4m3_value(int code) {
    const int exponent = code >> 3, mantissa = code & 7;
    return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
}

// The nearest of all finite values; of two, the one with the even code.
unsigned char nearest_e4m3(float value) {
    if (std::isnan(value)) return 0x7f;
    const double magnitude = std::min(std::fabs(static_cast<double>(value)), 448.0);
    int best = 0;
    for (int code = 1; code < 0x7f; ++code) {
        const double gain = std::fabs(magnitude - e4m3_value(best)) - std::fabs(magnitude - e4m3_value(code));
        if (gain > 0 || (gain == 0 && code % 2 == 0)) best = code;
    }
    return static_cast<unsigned char>(best | (std::signbit(value) ? 0x80 : 0));
}

float next_power_of_two(float value) {
    if (std::isinf(value)) return std::ldexp(1.0f, 127);
    int exponent;
    const float mantissa = std::frexp(value, &exponent);
    return std::ldexp(1.0f, mantissa == 0.5f ? exponent - 1 : exponent);
}

}  // namespace

QuantizedRows quantize_naively(const std::vector<unsigned char> &rows, bool power_of_two) {
    QuantizedRows result;
    const size_t count = rows.size() / 2;
    for (size_t first = 0; first < count; first += block) {
        float values[block];
        float largest = 0.0f;
        for (size_t i = 0; i < block; ++i) {
            uint16_t half;
            std::memcpy(&half, &rows[(first + i) * 2], 2);
            values[i] = std::bit_cast<float>(uint32_t{half} << 16);
            if (std::fabs(values[i]) > largest) largest = std::fabs(values[i]);
        }
        float scale = std::max(largest, 1e-10f) / 448.0f;
        if (power_of_two) scale = next_power_of_two(scale);
        const float inverse = 1.0f / scale;
        for (float value : values) result.values.push_back(nearest_e4m3(value * inverse));
        unsigned char bytes[sizeof scale];
        std::memcpy(bytes, &scale, sizeof scale);
        if (power_of_two) {
            result.scales.push_back(static_cast<unsigned char>(std::ilogb(scale) + 127));
        } else {
            result.scales.insert(result.scales.end(), bytes, bytes + sizeof bytes);
        }
    }
    return result;
}

}  // namespace moelink
