#include "values.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace perf {

Dtype dtype_of(const std::string &name) {
    if (name == "bf16") {
        return {MOELINK_DTYPE_BF16, 2, 0x1p-8, 0, 125, "bf16"};
    }
    if (name == "fp16") {
        return {MOELINK_DTYPE_F16, 2, 0x1p-11, 0x1p-25, 13, "fp16"};
    }
    if (name == "fp32") {
        return {MOELINK_DTYPE_F32, 4, 0x1p-24, 0, 125, "fp32"};
    }
    throw std::invalid_argument("unknown element type \"" + name + "\"; choose bf16, fp16 or fp32");
}

namespace {

// Sign from the top bit, one of four exponents from the next two, mantissa from the low bits.
template <class Word>
void fill(uint64_t key, int hidden, int mantissa_bits, uint32_t low_exponent, int sign_shift, Word *out) {
    const auto low = static_cast<uint32_t>(key);
    const auto high = static_cast<uint32_t>(key >> 32);
    const uint32_t mantissa = (1u << mantissa_bits) - 1;
    for (int column = 0; column < hidden; ++column) {
        const uint32_t bits = column_bits(low, high, static_cast<uint32_t>(column));
        out[column] = static_cast<Word>((bits >> 31) << sign_shift | (low_exponent + ((bits >> 29) & 3u)) << mantissa_bits |
                                        (bits & mantissa));
    }
}

}  // namespace

void fill_row(const Dtype &dtype, uint64_t seed, int rank, int64_t token, int hidden, void *out) {
    const uint64_t key = mix(mix(seed, static_cast<uint64_t>(rank)), static_cast<uint64_t>(token));
    if (dtype.id == MOELINK_DTYPE_F32) {
        fill(key, hidden, 23, 125u, 31, static_cast<uint32_t *>(out));
    } else if (dtype.id == MOELINK_DTYPE_BF16) {
        fill(key, hidden, 7, 125u, 15, static_cast<uint16_t *>(out));
    } else {
        fill(key, hidden, 10, 13u, 15, static_cast<uint16_t *>(out));
    }
}

void to_floats(const Dtype &dtype, const void *in, int64_t count, float *out) {
    if (dtype.id == MOELINK_DTYPE_F32) {
        std::memcpy(out, in, static_cast<size_t>(count) * 4);
        return;
    }
    const auto *words = static_cast<const uint16_t *>(in);
    if (dtype.id == MOELINK_DTYPE_BF16) {
        for (int64_t i = 0; i < count; ++i) {
            out[i] = bf16_to_float(words[i]);
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            out[i] = half_to_float(words[i]);
        }
    }
}

void from_floats(const Dtype &dtype, const float *in, int64_t count, void *out) {
    if (dtype.id == MOELINK_DTYPE_F32) {
        std::memcpy(out, in, static_cast<size_t>(count) * 4);
        return;
    }
    auto *words = static_cast<uint16_t *>(out);
    if (dtype.id == MOELINK_DTYPE_BF16) {
        for (int64_t i = 0; i < count; ++i) {
            words[i] = float_to_bf16(in[i]);
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            words[i] = float_to_half(in[i]);
        }
    }
}

ExpertMap expert_map(int expert) {
    Random random(mix(0x65787065727473u, static_cast<uint64_t>(expert)));
    ExpertMap map;
    map.scale = static_cast<float>(0.5 + 1.5 * random.next());
    map.bias = static_cast<float>(0.5 + random.next());
    map.signs = mix(0x7369676e73u, static_cast<uint64_t>(expert));
    return map;
}

}  // namespace perf
