/* Carries out a plan of transfers on an array of slots, and fails the running test at the first move that breaks a rule. */
#ifndef MOELINK_TESTS_TRANSFER_SIM_H
#define MOELINK_TESTS_TRANSFER_SIM_H

#include <moelink/eplb_transfer.h>

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* [layers, shape.slots] of one of the maps of params, as the ranks act: rank mapping written plainly. old: 1 for the old map. */
void acting_map(const moelink_eplb_shape *shape, const moelink_eplb_transfer_params *params, int old, int32_t *out);

/* Plans and simulates; every figure of the summary is counted again. *out may be NULL. */
void expect_good_transfer(const moelink_eplb_shape *shape, const moelink_eplb_transfer_params *params, moelink_eplb_transfer_summary *out);

#ifdef __cplusplus
}
#endif
#endif
