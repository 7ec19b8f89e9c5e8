#include "send.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace perf {

Send send_of(const std::string &name) {
    constexpr Send known[] = {{"rows", false, false, false},
                              {"fp8", true, false, false},
                              {"fp8-quantized", true, true, false},
                              {"fp8-quantized-e8m0", true, true, true}};
    for (const Send &send : known) {
        if (name == send.name) {
            return send;
        }
    }
    throw std::invalid_argument("unknown form of rows \"" + name + "\"; choose rows, fp8, fp8-quantized or fp8-quantized-e8m0");
}

namespace {

constexpr int finite_codes = 127;

// Middles between neighbouring E4M3 values: below middle i lies code i, above it code i + 1.
std::array<float, finite_codes - 1> make_middles() {
    std::array<float, finite_codes - 1> middles{};
    for (int code = 0; code + 1 < finite_codes; ++code) {
        middles[static_cast<size_t>(code)] =
            (e4m3_to_float(static_cast<uint8_t>(code)) + e4m3_to_float(static_cast<uint8_t>(code + 1))) / 2;
    }
    return middles;
}

// Of a finite value; ties to the even code.
uint8_t float_to_e4m3(float value) {
    static const auto middles = make_middles();
    const auto middle = std::lower_bound(middles.begin(), middles.end(), std::abs(value));
    auto code = static_cast<unsigned>(middle - middles.begin());
    if (middle != middles.end() && *middle == std::abs(value) && code % 2 == 1) {
        ++code;
    }
    return static_cast<uint8_t>(code | (std::signbit(value) ? 0x80u : 0u));
}

}  // namespace

void send_row(const Send &send, const Dtype &dtype, const void *row, int hidden, void *sent) {
    auto *values = static_cast<uint8_t *>(sent);
    if (!send.fp8) {
        std::memcpy(values, row, sent_bytes(send, dtype, hidden));
        return;
    }
    uint8_t *scales = values + hidden;
    for (int first = 0; first < hidden; first += scale_block) {
        float x[scale_block];
        to_floats(dtype, static_cast<const char *>(row) + static_cast<size_t>(first) * static_cast<size_t>(dtype.bytes), scale_block, x);
        float largest = 1e-10f;
        for (const float value : x) {
            largest = std::max(largest, std::abs(value));
        }
        float scale = largest / 448.0f;
        if (send.e8m0) {
            int exponent = 0;
            const float mantissa = std::frexp(scale, &exponent);  // in [0.5, 1)
            exponent -= mantissa == 0.5f ? 1 : 0;
            scale = std::ldexp(1.0f, exponent);
            *scales++ = static_cast<uint8_t>(exponent + 127);
        } else {
            std::memcpy(scales, &scale, sizeof scale);
            scales += sizeof scale;
        }
        const float inverse = 1.0f / scale;
        for (const float value : x) {
            *values++ = float_to_e4m3(value * inverse);
        }
    }
}

void read_sent(const Send &send, const Dtype &dtype, const void *sent, int hidden, float *out) {
    if (!send.fp8) {
        to_floats(dtype, sent, hidden, out);
        return;
    }
    const auto *values = static_cast<const uint8_t *>(sent);
    for (int column = 0; column < hidden; ++column) {
        out[column] = e4m3_to_float(values[column]) * scale_at(values + hidden, send.e8m0, column / scale_block);
    }
}

}  // namespace perf
