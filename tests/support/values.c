#include "values.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t random_mix(uint64_t a, uint64_t b) {
    uint64_t state = a * 0xd1342543de82ef95u + b;
    return random_next(&state);
}

int random_range(uint64_t *state, int low, int high) {
    return low + (int)(random_next(state) % (uint64_t)(high - low + 1));
}

int random_chance(uint64_t *state, int percent) {
    return random_range(state, 0, 99) < percent;
}

void random_bytes(uint64_t seed, void *out, uint64_t bytes) {
    unsigned char *at = out;
    for (; bytes >= 8; bytes -= 8, at += 8) {
        uint64_t word = random_next(&seed);
        memcpy(at, &word, 8);
    }
    uint64_t word = random_next(&seed);
    memcpy(at, &word, bytes);
}

uint64_t test_number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text != NULL && *text != '\0' ? strtoull(text, NULL, 0) : otherwise;
}

void random_values(uint64_t seed, void *row, int32_t dtype, uint64_t count) {
    uint64_t word = 0;
    for (uint64_t i = 0; i < count; ++i) {
        if (i % 4 == 0) word = random_next(&seed);
        /* 11 bits of mantissa and sign, 2 of exponent: exact in F16 and F32, rounded in BF16 */
        int mantissa = (int)(word & 0x7ff) - 1024;
        float scale = 1.0f / (float)(64 << (word >> 11 & 7));
        value_store(row, dtype, i, (float)mantissa * scale);
        word >>= 16;
    }
}

int expert_owner(int64_t id, int experts, int ranks) {
    if (id < 0 || id >= experts) return -1;
    int64_t first = 0;
    for (int rank = 0; rank < ranks; ++rank) {
        first += experts / ranks + (rank < experts % ranks);
        if (id < first) return rank;
    }
    return -1;
}

int token_ranks(const int64_t *ids, int top_k, int experts, int ranks, unsigned char *marks) {
    int count = 0;
    memset(marks, 0, (size_t)ranks);
    for (int k = 0; k < top_k; ++k) {
        int owner = expert_owner(ids[k], experts, ranks);
        if (owner < 0 || marks[owner]) continue;
        marks[owner] = 1;
        ++count;
    }
    return count;
}

void combine_add(combine_sum *sum, double weight, double weight_magnitude, double value) {
    sum->value += weight * value;
    sum->magnitude += weight_magnitude * fabs(value);
    ++sum->terms;
}

int combine_close(const combine_sum *sum, float result, int32_t dtype, int weighted, int wire_roundings) {
    double u = dtype_unit(dtype);
    double adding = (sum->terms + weighted) * 0x1p-24 * sum->magnitude;
    double allowed = u * fabs(sum->value) + adding + wire_roundings * u * sum->magnitude;
    if (dtype == MOELINK_DTYPE_F16) allowed += 0x1p-25; /* half a step of subnormals */
    return fabs((double)result - sum->value) <= allowed;
}
