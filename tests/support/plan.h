/* What a test that is built for both devices runs on: TEST_DEVICE is set by the source in tests/gpu that includes it. */
#ifndef MOELINK_TESTS_PLAN_H
#define MOELINK_TESTS_PLAN_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef TEST_DEVICE
#define TEST_DEVICE MOELINK_DEVICE_HOST
#endif

enum { PLAN_KINDS = 4 };
extern const int32_t plan_kinds[PLAN_KINDS];

/* The kinds, and what else their flags make of them. */
typedef struct plan_variant {
    int32_t kind;
    uint32_t flags; /* MOELINK_MANAGER_F_* */
} plan_variant;
enum { PLAN_VARIANTS = 6 };
extern const plan_variant plan_variants[PLAN_VARIANTS];

/* Whether this machine runs so many ranks: any on the host; on GPUs 1 to 4, and 8 where there are two or more. */
int plan_has_ranks(int32_t device, int ranks);

/* Whether a variant runs with this rank's group: NCCL wants a GPU for every rank, and to be installed (else the reason is noted). */
int plan_has_variant(rank_context *ctx, plan_variant variant);

/* Options of a run on TEST_DEVICE. Ranks that are threads each want a GPU of their own, since in one process a call that waits
 * for a whole device, such as cudaFree, holds up other ranks' launches there: where there are fewer they become processes. */
rank_options plan_options(int32_t device, const char *name, int ranks, int threads);

/* Runs the function in that many ranks and fails the cmocka test unless all is well; nothing where there are too few GPUs. */
#define PLAN_RUN(options, function)                                              \
    do {                                                                         \
        if (plan_has_ranks((options)->device, (options)->size)) {                \
            assert_int_equal(ranks_run((options), (function)), 0);               \
        } else {                                                                 \
            print_message("%s: left out: %d ranks on this machine's GPUs\n", (options)->name, (options)->size); \
        }                                                                        \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
