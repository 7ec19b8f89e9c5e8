/* Loads, and slow independent answers about expert maps: the planner's references. */
#ifndef MOELINK_TESTS_EPLB_CASE_H
#define MOELINK_TESTS_EPLB_CASE_H

#include <moelink/eplb.h>

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

moelink_eplb_shape eplb_shape(int32_t layers, int32_t experts, int32_t slots, int32_t ranks, int32_t nodes, int32_t groups);

/* A normally distributed number. */
double random_normal(uint64_t *state);
/* load [count] exp(N(0, sigma)), scaled to whole numbers below 2^20, so that fp32 holds them; distinct: no two are equal. */
void random_loads(uint64_t *state, double sigma, int distinct, double *load, int64_t count);
/* to = from x exp(N(0, sigma)). */
void drift_loads(uint64_t *state, double sigma, const double *from, double *to, int64_t count);

/* The published algorithm, written plainly: no heaps, every choice by a scan. One layer; log2phy [experts, width]. */
void slow_replicate(const float *load, int experts, int slots, int32_t *phy2log, int32_t *replica, int32_t *counts);
void slow_pack(const float *load, int items, int packs, int32_t *pack, int32_t *place);
void slow_rebalance(const moelink_eplb_shape *shape, const double *load, int32_t *phy2log, int32_t *log2phy, int32_t width,
                    int32_t *counts);

/* The slowest rank's load over its speed in one layer and step; below 0 when an expert that has load has no copy. speed and active
 * may be NULL. */
double slow_time(const moelink_eplb_shape *shape, const double *load, const int32_t *phy2log, const double *speed, const uint8_t *active);
/* Copies that must cross ranks, in one layer: experts new to a rank that some active rank had. */
int64_t slow_copies(const moelink_eplb_shape *shape, const int32_t *before, const int32_t *after, const uint8_t *active);

/* Fails the running test unless every layer of the map keeps the planner's rules. active may be NULL. */
void expect_valid_map(const moelink_eplb_shape *shape, const int32_t *phy2log, const uint8_t *active);

/* Row `topic` of tests/data/expert_load.csv: 384 counts; 0 when there is no such row or file. name [32] may be NULL. */
int real_loads(int topic, double *load, char *name);

#ifdef __cplusplus
}
#endif
#endif
