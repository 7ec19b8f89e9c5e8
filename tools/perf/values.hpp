// The numbers that travel: element types, random rows that every rank can compute for every other, and the experts' maps.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include <moelink/base.h>

// Functions that host and kernels share.
#if defined(__CUDACC__)
#define PERF_BOTH __host__ __device__
#else
#define PERF_BOTH
#endif

namespace perf {

// 64 well-mixed bits from a counter (the finaliser of splitmix64, Steele, Lea and Flood 2014).
PERF_BOTH inline uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
PERF_BOTH inline uint64_t mix(uint64_t a, uint64_t b) {
    return mix(mix(a) ^ b);
}

// 32 bits for a column of a row whose key has these halves; cheap enough to recompute every row of every rank.
PERF_BOTH inline uint32_t column_bits(uint32_t low, uint32_t high, uint32_t column) {
    uint32_t x = low + column * 0x9e3779b9u;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = ((x ^ high) ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// A stream of uniform numbers in (0, 1).
class Random {
public:
    explicit Random(uint64_t key) : key_(key) {}
    double next() { return (static_cast<double>(mix(key_, count_++) >> 11) + 0.5) * 0x1p-53; }

private:
    uint64_t key_;
    uint64_t count_ = 0;
};

struct Dtype {
    int32_t id;  // MOELINK_DTYPE_*
    int bytes;
    double round;      // largest relative error of one rounding
    double underflow;  // largest absolute error of one rounding
    int octaves;       // powers of two between the largest value of a fresh row and overflow
    const char *name;
};
// Throws std::invalid_argument for a name that is none of bf16, fp16, fp32.
Dtype dtype_of(const std::string &name);

inline float half_to_float(uint16_t half) {
    uint32_t bits = static_cast<uint32_t>(half & 0x7fffu) << 13;
    uint32_t rescaled = std::bit_cast<uint32_t>(std::bit_cast<float>(bits) * 0x1p112f);
    if ((half & 0x7c00u) == 0x7c00u) {
        rescaled = bits | 0x7f800000u;
    }
    return std::bit_cast<float>(rescaled | static_cast<uint32_t>(half & 0x8000u) << 16);
}
inline uint16_t float_to_half(float value) {
    uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = bits & 0x80000000u;
    bits ^= sign;
    uint32_t half;
    if (bits >= 0x47800000u) {  // 65536 and above, infinity, NaN
        half = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    } else if (bits < 0x38800000u) {  // below the least normal number: let an addition do the rounding
        half = std::bit_cast<uint32_t>(std::bit_cast<float>(bits) + 0.5f) - 0x3f000000u;
    } else {
        half = (bits + 0xc8000fffu + ((bits >> 13) & 1u)) >> 13;
    }
    return static_cast<uint16_t>(half | sign >> 16);
}
inline float bf16_to_float(uint16_t bf16) {
    return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16);
}
inline uint16_t float_to_bf16(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return static_cast<uint16_t>(bits >> 16 | 0x40u);
    }
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// FP8 E4M3 of a finite value.
PERF_BOTH inline float e4m3_to_float(uint8_t code) {
    const unsigned exponent = code >> 3 & 15u;
    const unsigned mantissa = code & 7u;
    const float steps = exponent == 0 ? static_cast<float>(2 * mantissa) : static_cast<float>((8 + mantissa) << exponent);
    return (code & 0x80u ? -0x1p-10f : 0x1p-10f) * steps;
}
inline constexpr int scale_block = 128;  // FP8 values with one scale
// A scale of a normal number in fp32, or as E8M0.
PERF_BOTH inline float scale_at(const void *scales, bool e8m0, int index) {
    const auto *bytes = static_cast<const unsigned char *>(scales);
    union {
        uint32_t bits;
        float value;
    } scale;
    if (e8m0) {
        scale.bits = static_cast<uint32_t>(bytes[index]) << 23;
    } else {
        bytes += 4 * index;
        scale.bits = bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint32_t>(bytes[3]) << 24;
    }
    return scale.value;
}

// Row `token` of rank `rank`: values of both signs, magnitudes in [0.25, 4), every one exact in its type, never zero.
void fill_row(const Dtype &dtype, uint64_t seed, int rank, int64_t token, int hidden, void *out);
// count elements to fp32 and back (round to nearest even).
void to_floats(const Dtype &dtype, const void *in, int64_t count, float *out);
void from_floats(const Dtype &dtype, const float *in, int64_t count, void *out);

// The stand-in for an expert: x -> scale * x + sign(column) * bias. Scale, bias and the pattern of signs differ between any two
// experts, so that a row computed by a wrong expert differs by far more than rounding in about half of its columns.
struct ExpertMap {
    float scale;
    float bias;
    uint64_t signs;  // bit (column % 64) set: +bias
};
ExpertMap expert_map(int expert);

// Experts of a rank, as moe.h defines it: E/R each, the first E%R ranks one more.
inline int first_expert(int rank, int experts, int ranks) {
    const int extra = experts % ranks;
    return rank * (experts / ranks) + (rank < extra ? rank : extra);
}
PERF_BOTH inline int owner_of(int expert, int experts, int ranks) {
    const int base = experts / ranks;
    const int extra = experts % ranks;
    const int long_ones = extra * (base + 1);
    return expert < long_ones ? expert / (base + 1) : extra + (expert - long_ones) / base;
}

}  // namespace perf
