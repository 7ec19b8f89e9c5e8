#include "values.h"

#include <string.h>

static uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Drops `shift` low bits, to nearest even. */
static uint32_t round_off(uint32_t bits, int shift) {
    uint32_t half = 1u << (shift - 1);
    uint32_t odd = bits >> shift & 1u;
    return (bits + half - 1u + odd) >> shift;
}

static uint16_t to_bf16(float value) {
    return (uint16_t)round_off(float_bits(value), 16);
}

static uint16_t to_f16(float value) {
    uint32_t bits = float_bits(value);
    uint32_t sign = bits >> 16 & 0x8000u;
    int exponent = (int)(bits >> 23 & 0xffu) - 127 + 15;
    uint32_t mantissa = bits & 0x7fffffu;
    if (exponent >= 31) return (uint16_t)(sign | 0x7c00u);
    if (exponent > 0) return (uint16_t)(sign | round_off((uint32_t)exponent << 23 | mantissa, 13));
    if (exponent < -10) return (uint16_t)sign;
    return (uint16_t)(sign | round_off(mantissa | 0x800000u, 14 - exponent));
}

static float from_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = half >> 10 & 31u, mantissa = half & 0x3ffu;
    if (exponent == 0) {
        float value = (float)mantissa * 0x1p-24f;
        return sign != 0 ? -value : value;
    }
    if (exponent == 31) return bits_float(sign | 0x7f800000u | mantissa << 13);
    return bits_float(sign | (exponent - 15 + 127) << 23 | mantissa << 13);
}

uint64_t dtype_bytes(int32_t dtype) {
    return dtype == MOELINK_DTYPE_F32 ? 4 : 2;
}

double dtype_unit(int32_t dtype) {
    return dtype == MOELINK_DTYPE_F32 ? 0x1p-24 : dtype == MOELINK_DTYPE_F16 ? 0x1p-11 : 0x1p-8;
}

float value_load(const void *row, int32_t dtype, uint64_t index) {
    const unsigned char *at = (const unsigned char *)row + index * dtype_bytes(dtype);
    if (dtype == MOELINK_DTYPE_F32) {
        float value;
        memcpy(&value, at, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, at, 2);
    return dtype == MOELINK_DTYPE_F16 ? from_f16(half) : bits_float((uint32_t)half << 16);
}

void value_store(void *row, int32_t dtype, uint64_t index, float value) {
    unsigned char *at = (unsigned char *)row + index * dtype_bytes(dtype);
    if (dtype == MOELINK_DTYPE_F32) {
        memcpy(at, &value, 4);
        return;
    }
    uint16_t half = dtype == MOELINK_DTYPE_F16 ? to_f16(value) : to_bf16(value);
    memcpy(at, &half, 2);
}
