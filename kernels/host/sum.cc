#include "sum.hpp"

#include <bit>
#include <cstring>

#define MOELINK_INLINE [[gnu::always_inline]] static inline

namespace moelink::kernels::host {

namespace {

constexpr uint32_t quiet_nan = 0x7fc00000u;

// --- plain: one value at a time ------------------------------------------------------------------------------------

struct F32 {
    float value;
    static float load(F32 from) { return from.value; }
    static F32 store(float value) { return {value == value ? value : std::bit_cast<float>(quiet_nan)}; }
};

struct F16 {
    _Float16 value;
    static float load(F16 from) { return static_cast<float>(from.value); }
    static F16 store(float value) {
        return value == value ? F16{static_cast<_Float16>(value)} : std::bit_cast<F16>(uint16_t{0x7e00u});
    }
};

struct BF16 {
    uint16_t bits;
    static float load(BF16 from) { return std::bit_cast<float>(uint32_t{from.bits} << 16); }
    static BF16 store(float value) {
        uint32_t bits = std::bit_cast<uint32_t>(value == value ? value : std::bit_cast<float>(quiet_nan));
        return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
    }
};

template <class T>
void sum_plain(unsigned char *out, const unsigned char *const *rows, const float *weights, int count, size_t values) {
    for (size_t i = 0; i < values; ++i) {
        float sum = 0;
        for (int row = 0; row < count; ++row) {
            T value;
            std::memcpy(&value, rows[row] + i * sizeof(T), sizeof(T));
            sum += weights != nullptr ? weights[row] * T::load(value) : T::load(value);
        }
        const T rounded = T::store(sum);
        std::memcpy(out + i * sizeof(T), &rounded, sizeof(T));
    }
}

// --- vectors of `lanes` words of 32 bits, in the compiler's vector types ------------------------------------------------

// GCC loses the size of a vector type that depends on a template's argument, so each width is written out.
template <int lanes>
struct Widths;
#define MOELINK_WIDTH(lanes)                                        \
    template <>                                                     \
    struct Widths<lanes> {                                          \
        typedef float F __attribute__((vector_size(4 * lanes)));    \
        typedef uint32_t U __attribute__((vector_size(4 * lanes))); \
    }
MOELINK_WIDTH(4);
MOELINK_WIDTH(8);
MOELINK_WIDTH(16);

// Everything is inlined into functions that are compiled for one instruction set each, so that no vector is ever an argument.
// A word holds one value of 32 bits or two of 16, which are taken apart by shifts and masks: no lane ever moves.
template <int lanes>
struct Vectors {
    using F = typename Widths<lanes>::F;
    using U = typename Widths<lanes>::U;

    struct F32 {
        static constexpr int parts = 1;
        MOELINK_INLINE void load(const U &from, F (&to)[parts]) { to[0] = reinterpret_cast<F>(from); }
        MOELINK_INLINE void store(const F (&from)[parts], U &to) {
            to = from[0] == from[0] ? reinterpret_cast<U>(from[0]) : U{} + quiet_nan;
        }
    };

    struct BF16 {
        static constexpr int parts = 2;
        MOELINK_INLINE void load(const U &from, F (&to)[parts]) {
            to[0] = reinterpret_cast<F>(from << 16);
            to[1] = reinterpret_cast<F>(from & 0xffff0000u);
        }
        MOELINK_INLINE void store(const F (&from)[parts], U &to) {
            U rounded[parts];
            for (int i = 0; i < parts; ++i) {
                const U bits = reinterpret_cast<U>(from[i]);
                rounded[i] = from[i] == from[i] ? bits + 0x7fffu + (bits >> 16 & 1u) : U{} + quiet_nan;
            }
            to = rounded[0] >> 16 | (rounded[1] & 0xffff0000u);
        }
    };

    // Half precision in integer and fp32 operations alone: the exponent is moved by a multiplication, which also normalises
    // subnormal numbers; they are rounded by adding a number whose last place is their last place.
    struct F16 {
        static constexpr int parts = 2;
        MOELINK_INLINE void load(const U &from, F (&to)[parts]) {
            for (int i = 0; i < parts; ++i) {
                const U bits = i == 0 ? from & 0xffffu : from >> 16;
                const U magnitude = (bits & 0x7fffu) << 13;
                const U scaled = reinterpret_cast<U>(reinterpret_cast<F>(magnitude) * 0x1p112f);
                const U finite_or_not = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : scaled;
                to[i] = reinterpret_cast<F>(finite_or_not | (bits & 0x8000u) << 16);
            }
        }
        MOELINK_INLINE void store(const F (&from)[parts], U &to) {
            U half[parts];
            for (int i = 0; i < parts; ++i) {
                const U all = reinterpret_cast<U>(from[i]);
                const U bits = all & 0x7fffffffu;
                const U subnormal = reinterpret_cast<U>(reinterpret_cast<F>(bits) + 0.5f) - 0x3f000000u;
                const U normal = (bits + 0xc8000fffu + (bits >> 13 & 1u)) >> 13;
                half[i] = bits < 0x38800000u ? subnormal : normal;
                half[i] = bits >= 0x47800000u ? U{} + 0x7c00u : half[i];
                half[i] |= (all & 0x80000000u) >> 16;
                half[i] = from[i] == from[i] ? half[i] : U{} + 0x7e00u;
            }
            to = half[0] | half[1] << 16;
        }
    };

    // `depth` vectors side by side, the last of them with `last` bytes.
    template <class T, int depth, bool weighted>
    MOELINK_INLINE void sum_block(unsigned char *out, const unsigned char *const *rows, size_t offset, const float *weights,
                                  int count, size_t last) {
        F sum[depth][T::parts] = {};
        for (int row = 0; row < count; ++row) {
            const unsigned char *from = rows[row] + offset;
            for (int i = 0; i < depth; ++i) {
                U raw{};
                std::memcpy(&raw, from + static_cast<size_t>(i) * sizeof raw, i + 1 < depth ? sizeof raw : last);
                F values[T::parts];
                T::load(raw, values);
                for (int part = 0; part < T::parts; ++part) {
                    if constexpr (weighted) values[part] = weights[row] * values[part];
                    sum[i][part] += values[part];
                }
            }
        }
        for (int i = 0; i < depth; ++i) {
            U raw;
            T::store(sum[i], raw);
            std::memcpy(out + offset + static_cast<size_t>(i) * sizeof raw, &raw, i + 1 < depth ? sizeof raw : last);
        }
    }

    template <class T, bool weighted>
    MOELINK_INLINE void sum_all(unsigned char *out, const unsigned char *const *rows, const float *weights, int count,
                                size_t values) {
        constexpr int depth = 4;
        constexpr size_t vector = sizeof(U);
        const size_t bytes = values * (4 / T::parts);
        size_t at = 0;
        for (; bytes - at >= depth * vector; at += depth * vector) {
            sum_block<T, depth, weighted>(out, rows, at, weights, count, vector);
        }
        for (; bytes - at >= vector; at += vector) sum_block<T, 1, weighted>(out, rows, at, weights, count, vector);
        if (at < bytes) sum_block<T, 1, weighted>(out, rows, at, weights, count, bytes - at);
    }

    template <class T>
    MOELINK_INLINE void sum(unsigned char *out, const unsigned char *const *rows, const float *weights, int count, size_t values) {
        if (weights != nullptr) {
            sum_all<T, true>(out, rows, weights, count, values);
        } else {
            sum_all<T, false>(out, rows, weights, count, values);
        }
    }
};

// The three functions of one instruction set.
#define MOELINK_SUM_CODE(name, lanes, attributes)                                                                            \
    struct name {                                                                                                            \
        attributes static void f32(unsigned char *out, const unsigned char *const *rows, const float *weights, int count,    \
                                   size_t values) {                                                                          \
            Vectors<lanes>::sum<Vectors<lanes>::F32>(out, rows, weights, count, values);                                     \
        }                                                                                                                    \
        attributes static void f16(unsigned char *out, const unsigned char *const *rows, const float *weights, int count,    \
                                   size_t values) {                                                                          \
            Vectors<lanes>::sum<Vectors<lanes>::F16>(out, rows, weights, count, values);                                     \
        }                                                                                                                    \
        attributes static void bf16(unsigned char *out, const unsigned char *const *rows, const float *weights, int count,   \
                                    size_t values) {                                                                         \
            Vectors<lanes>::sum<Vectors<lanes>::BF16>(out, rows, weights, count, values);                                    \
        }                                                                                                                    \
    }

bool always() { return true; }

// What the architecture always has: SSE2, NEON.
MOELINK_SUM_CODE(Vector128, 4, );
#if defined(__x86_64__)
// AVX-512's own conversion to bf16 is not used: it takes subnormal numbers for 0.
MOELINK_SUM_CODE(Avx2, 8, [[gnu::target("avx2")]]);
MOELINK_SUM_CODE(Avx512, 16, [[gnu::target("avx512f,avx512bw,avx512vl,avx512dq")]]);

bool has_avx2() { return __builtin_cpu_supports("avx2") != 0; }
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
           __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
}
#endif

constexpr SumCode codes[] = {
    {"plain", &always, &sum_plain<F32>, &sum_plain<F16>, &sum_plain<BF16>},
    {"128-bit", &always, &Vector128::f32, &Vector128::f16, &Vector128::bf16},
#if defined(__x86_64__)
    {"AVX2", &has_avx2, &Avx2::f32, &Avx2::f16, &Avx2::bf16},
    {"AVX-512", &has_avx512, &Avx512::f32, &Avx512::f16, &Avx512::bf16},
#endif
};

}  // namespace

std::span<const SumCode> sum_codes() { return codes; }

const SumCode &best_sum_code() {
    static const SumCode &best = [&]() -> const SumCode & {
        size_t last = std::size(codes) - 1;
        while (!codes[last].runs_here()) --last;
        return codes[last];
    }();
    return best;
}

}  // namespace moelink::kernels::host
