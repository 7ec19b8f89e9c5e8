/* The host's quantization of rows gives the bytes of the naive manager's, which shares no code with it, for every BF16 value; and
 * both give what the definition in moe.h says for values where one can see it. */
#include "kernels/launch.hpp"
#include "moe/reference_quantize.hpp"

#include <bit>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" {
#include <cmocka.h>

#include "values.h"
}

using namespace moelink;
using namespace moelink::kernels;

namespace {

constexpr size_t block = quantize_block;
constexpr QuantizeForm forms[] = {quantize_f32, quantize_e8m0};

uint16_t to_bf16(float value) {
    uint16_t result;
    value_store(&result, MOELINK_DTYPE_BF16, 0, value);
    return result;
}

QuantizedRows quantize_here(QuantizeForm form, const std::vector<uint16_t> &rows) {
    QuantizedRows result;
    result.values.assign(rows.size(), 0xa5);
    result.scales.assign(rows.size() / block * (form == quantize_f32 ? 4 : 1), 0xa5);
    host::quantize_row(form, rows.data(), rows.size(), result.values.data(), result.scales.data());
    return result;
}

QuantizedRows quantize_there(QuantizeForm form, const std::vector<uint16_t> &rows) {
    std::vector<unsigned char> bytes(rows.size() * 2);
    std::memcpy(bytes.data(), rows.data(), bytes.size());
    return quantize_naively(bytes, form == quantize_e8m0);
}

// As the tests of whole rounds expect it.
QuantizedRows quantize_for_tests(QuantizeForm form, const std::vector<uint16_t> &rows) {
    QuantizedRows result;
    for (size_t at = 0; at < rows.size(); at += block) {
        uint8_t values[block], scale[4];
        value_quantize_block(&rows[at], form == quantize_e8m0, values, scale);
        result.values.insert(result.values.end(), values, values + block);
        result.scales.insert(result.scales.end(), scale, scale + (form == quantize_f32 ? 4 : 1));
    }
    return result;
}

void compare(const char *what, const std::vector<uint16_t> &rows) {
    for (QuantizeForm form : forms) {
        const QuantizedRows tests = quantize_for_tests(form, rows), naive = quantize_there(form, rows);
        assert_true(tests.values == naive.values && tests.scales == naive.scales);
        const char *name = form == quantize_f32 ? "F32" : "E8M0";
        const QuantizedRows got = quantize_here(form, rows), &expected = naive;
        assert_int_equal(got.values.size(), expected.values.size());
        assert_int_equal(got.scales.size(), expected.scales.size());
        const size_t width = got.scales.size() / (rows.size() / block);
        for (size_t i = 0; i < got.scales.size(); ++i) {
            if (got.scales[i] != expected.scales[i]) {
                fail_msg("%s, %s scales: byte %zu of block %zu is 0x%02x, naively 0x%02x", what, name, i % width, i / width, got.scales[i],
                         expected.scales[i]);
            }
        }
        for (size_t i = 0; i < rows.size(); ++i) {
            if (got.values[i] != expected.values[i]) {
                fail_msg("%s, %s scales: value %zu of block %zu (BF16 0x%04x) is 0x%02x, naively 0x%02x", what, name, i % block, i / block,
                         rows[i], got.values[i], expected.values[i]);
            }
        }
    }
}

/* Every pattern stands once in each arrangement: beside its neighbours, beside patterns far away, and below a largest value that is
 * close to it, so that it does not vanish. */
void test_every_value(void **) {
    std::vector<uint16_t> rows(65536);
    for (uint32_t stride : {1u, 129u, 517u, 32769u}) {
        for (uint32_t i = 0; i < 65536; ++i) rows[i] = static_cast<uint16_t>(i * stride);
        compare("every value", rows);
    }
    uint64_t state = 11;
    std::vector<uint16_t> below;
    for (uint32_t first = 0; first < 65536; first += block - 1) {
        const auto up = static_cast<uint32_t>(random_range(&state, 1, 0x700));
        const uint32_t largest = (first & 0x7fffu) + up;
        below.push_back(static_cast<uint16_t>(largest < 0x7f80u ? largest : 0x7f7fu));
        for (uint32_t i = 0; i + 1 < block; ++i) below.push_back(static_cast<uint16_t>(first + i));
    }
    compare("every value below a larger one", below);
}

/* Blocks of one kind next to blocks of another: a scale is its own block's. */
void test_mixed_blocks(void **) {
    static const uint16_t odd[] = {0x0000, 0x8000, 0x0001, 0x807f, 0x7f80, 0xff80, 0x7fc0, 0xff81, 0x7f7f, 0xff7f, 0x0080};
    uint64_t state = 7;
    for (int row = 0; row < 200; ++row) {
        std::vector<uint16_t> values(block * static_cast<size_t>(random_range(&state, 1, 5)));
        for (size_t at = 0; at < values.size(); at += block) {
            const int kind = random_range(&state, 0, 5), odd_percent = random_range(&state, 0, 1) * 10;
            random_bytes(random_next(&state), &values[at], block * 2);
            for (size_t i = at; i < at + block; ++i) {
                if (kind == 0) values[i] = 0;                                             /* zeros, of both signs below */
                if (kind == 1) values[i] &= 0x807f;                                       /* denormals */
                if (kind == 2) values[i] = static_cast<uint16_t>((values[i] & 0x83ff) | 0x3c00); /* near 1 */
                if (kind == 3) values[i] = static_cast<uint16_t>(0x7fc0 | values[i]);     /* NaN alone */
                if (kind == 4) values[i] = static_cast<uint16_t>((values[i] & 0x807f) | 0x2e80); /* near the least magnitude of a block */
                if (random_chance(&state, odd_percent)) values[i] = odd[random_range(&state, 0, 10)];
            }
        }
        compare("mixed blocks", values);
    }
}

struct Known {
    float value;
    uint8_t code;
    const char *what;
};

constexpr Known known[] = {
    {448, 0x7e, "the largest"},       {-448, 0xfe, "the largest, negative"}, {1, 0x38, "one"},
    {-0.0f, 0x80, "minus zero"},      {17, 0x58, "a tie, down to even"},     {19, 0x5a, "a tie, up to even"},
    {0x1p-6f, 0x08, "least normal"},  {0x1p-9f, 0x01, "least of all"},       {0x1p-10f, 0x00, "half of the least: a tie, down to even"},
    {0x3p-10f, 0x02, "3/2 of the least: a tie, up to even"},                 {0x1.0ep4f, 0x58, "just below a tie"},
    {0x1.12p4f, 0x59, "just above a tie"}, {0x1.fp-7f, 0x08, "from below the least normal: a tie, up to even"},
};

/* A largest value of 448 makes the scale 1, so that values are rounded as they stand. */
void test_known_values(void **) {
    std::vector<uint16_t> row(block, 0);
    row[0] = to_bf16(448);
    for (size_t i = 0; i < std::size(known); ++i) row[i + 1] = to_bf16(known[i].value);
    for (QuantizeForm form : forms) {
        for (const QuantizedRows &got : {quantize_here(form, row), quantize_there(form, row)}) {
            for (size_t i = 0; i < std::size(known); ++i) {
                if (got.values[i + 1] != known[i].code) fail_msg("%s: 0x%02x, must be 0x%02x", known[i].what, got.values[i + 1], known[i].code);
            }
            const float one = 1;
            if (form == quantize_f32) assert_memory_equal(got.scales.data(), &one, 4);
            if (form == quantize_e8m0) assert_int_equal(got.scales[0], 127);
        }
    }
}

/* Scales of blocks whose largest value is given; 449 needs more than 1, which as a power of two is 2. */
void test_known_scales(void **) {
    struct Scale {
        uint16_t largest;
        float scale;
        uint8_t exponent;
    };
    const Scale scales[] = {{0, 1e-10f / 448.0f, 85},         {to_bf16(1e-12f), 1e-10f / 448.0f, 85}, {to_bf16(224), 0.5f, 126},
                            {to_bf16(450), 450.0f / 448.0f, 128}, {to_bf16(-896), 2.0f, 128},         {0x7f7f, 0x1.fep127f / 448.0f, 247}};
    for (const Scale &one : scales) {
        std::vector<uint16_t> row(block, 0);
        row[block - 1] = one.largest;
        for (const auto &quantize : {quantize_here, quantize_there}) {
            const QuantizedRows wide = quantize(quantize_f32, row), narrow = quantize(quantize_e8m0, row);
            assert_memory_equal(wide.scales.data(), &one.scale, 4);
            assert_int_equal(narrow.scales[0], one.exponent);
        }
    }
}

}  // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_every_value),
        cmocka_unit_test(test_mixed_blocks),
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_known_scales),
    };
    return cmocka_run_group_tests_name("quantize", tests, nullptr, nullptr);
}
