/* Values that every rank can compute for every other rank, float formats, and who must receive what: the tests' references. */
#ifndef MOELINK_TESTS_VALUES_H
#define MOELINK_TESTS_VALUES_H

#include <moelink/base.h>

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Deterministic random numbers (splitmix64). */
uint64_t random_mix(uint64_t a, uint64_t b);
uint64_t random_next(uint64_t *state);
int random_range(uint64_t *state, int low, int high); /* both included */
int random_chance(uint64_t *state, int percent);
void random_bytes(uint64_t seed, void *out, uint64_t bytes);

/* The environment's number of that name, else the default. */
uint64_t test_number(const char *name, uint64_t otherwise);

/* F32, F16 and BF16; stores round to nearest even. */
uint64_t dtype_bytes(int32_t dtype);
double dtype_unit(int32_t dtype); /* unit roundoff */
float value_load(const void *row, int32_t dtype, uint64_t index);
void value_store(void *row, int32_t dtype, uint64_t index, float value);
/* Values of both signs, zero included, over several binades. */
void random_values(uint64_t seed, void *row, int32_t dtype, uint64_t count);

/* A block of BF16 values as FP8 E4M3, and its scale as F32, or as E8M0 with power_of_two (moe.h: F8E4M3_BLOCK128). */
enum { QUANTIZE_BLOCK = 128 };
void value_quantize_block(const uint16_t *rows, int power_of_two, uint8_t *values, void *scale);

/* Owner of an expert: R ranks own E experts in order, the first E % R ranks one more; -1 for ids that are dropped. */
int expert_owner(int64_t id, int experts, int ranks);

/* Marks the distinct ranks that a token's ids go to, marks [ranks]; returns how many. */
int token_ranks(const int64_t *ids, int top_k, int experts, int ranks, unsigned char *marks);

/* A sum in double of what combine was given, and how far the library's result may be from it. */
typedef struct combine_sum {
    double value;
    double magnitude; /* sum of |x_i| */
    int terms;
} combine_sum;

void combine_add(combine_sum *sum, double weight, double weight_magnitude, double value);

/* |y - y64| <= u |y64| + (terms + weighted) 2^-24 sum |x_i| + wire_roundings u sum |x_i|; weighted: extra fp32 roundings. */
int combine_close(const combine_sum *sum, float result, int32_t dtype, int weighted, int wire_roundings);

#ifdef __cplusplus
}
#endif
#endif
