/* Quantization of one block as its definition in moe.h reads, with a table of E4M3 values: the tests' own. */
#include "values.h"

#include <math.h>
#include <string.h>

enum { LARGEST_CODE = 0x7e };

static float code_value(int code) {
    return (code >> 3) == 0 ? ldexpf((float)code, -9) : ldexpf((float)(8 + (code & 7)), (code >> 3) - 10);
}

/* The code whose value is nearest; of two, the even one. Between neighbours decides their middle, which is exact in fp32. */
static uint8_t nearest_code(float value) {
    if (isnan(value)) return 0x7f;
    float magnitude = fabsf(value);
    int low = 0, high = LARGEST_CODE;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (code_value(middle) <= magnitude) {
            low = middle;
        } else {
            high = middle;
        }
    }
    float tie = (code_value(low) + code_value(high)) / 2;
    int up = magnitude > tie || (magnitude == tie && high % 2 == 0);
    return (uint8_t)((up ? high : low) | (signbit(value) ? 0x80 : 0));
}

void value_quantize_block(const uint16_t *rows, int power_of_two, uint8_t *values, void *scale) {
    float largest = 1e-10f;
    for (int i = 0; i < QUANTIZE_BLOCK; ++i) {
        float magnitude = fabsf(value_load(rows, MOELINK_DTYPE_BF16, (uint64_t)i));
        if (magnitude > largest) largest = magnitude;
    }
    float factor = largest / 448.0f;
    if (power_of_two) {
        int exponent = 127;
        if (isfinite(factor)) {
            exponent = ilogbf(factor);
            if (ldexpf(1.0f, exponent) < factor) ++exponent;
        }
        factor = ldexpf(1.0f, exponent);
        *(uint8_t *)scale = (uint8_t)(exponent + 127);
    } else {
        memcpy(scale, &factor, sizeof(factor));
    }
    float inverse = 1.0f / factor;
    for (int i = 0; i < QUANTIZE_BLOCK; ++i) {
        values[i] = nearest_code(value_load(rows, MOELINK_DTYPE_BF16, (uint64_t)i) * inverse);
    }
}
