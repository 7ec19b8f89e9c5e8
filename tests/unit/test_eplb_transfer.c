/* Plans of transfers, carried out by a simulator that knows the rules; and the least number of transfers by search. */
#include <moelink/moelink.h>

#include "eplb_case.h"
#include "transfer_sim.h"
#include "values.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MOST = 4096 };

static moelink_eplb_shape one_thread(int32_t layers, int32_t experts, int32_t slots, int32_t ranks, int32_t nodes) {
    moelink_eplb_shape shape = eplb_shape(layers, experts, slots, ranks, nodes, 1);
    shape.threads = 1;
    return shape;
}

static moelink_eplb_transfer_params maps(const int32_t *before, const int32_t *after, int staging) {
    moelink_eplb_transfer_params params = MOELINK_EPLB_TRANSFER_PARAMS_INIT;
    params.old_map = before;
    params.new_map = after;
    params.staging = staging;
    return params;
}

/* As much staging for a batch, and batches that overlap. */
static void overlap(moelink_eplb_transfer_params *params) {
    params->flags |= MOELINK_EPLB_TRANSFER_F_OVERLAP;
    params->staging *= 2;
}

/* The digits of number to this base, less one: all maps of a few slots. */
static void digits(int number, int base, int count, int32_t *out) {
    for (int i = 0; i < count; ++i, number /= base) out[i] = number % base - 1;
}

static int all_known(const int32_t *before, const int32_t *after, int count) {
    for (int i = 0; i < count; ++i) {
        int known = after[i] < 0;
        for (int j = 0; j < count; ++j) known |= before[j] == after[i];
        if (!known) return 0;
    }
    return 1;
}

/* Every pair of maps of 2 ranks with 2 slots, and of 4 ranks with 1, for 3 experts and empty slots. */
static void test_all_small(void **state) {
    (void)state;
    static const int32_t gpus[] = {0, 1, 2, 2};
    int32_t before[4], after[4];
    for (int ranks = 2; ranks <= 4; ranks += 2) {
        for (int nodes = 1; nodes <= 2; ++nodes) {
            moelink_eplb_shape shape = one_thread(1, 3, 4, ranks, nodes);
            for (int a = 0; a < 256; ++a) {
                digits(a, 4, 4, before);
                for (int b = 0; b < 256; ++b) {
                    digits(b, 4, 4, after);
                    moelink_eplb_transfer_params params = maps(before, after, 1 + (a + b) % 2);
                    if (nodes == 2) params.rank_gpu = gpus;
                    params.flags = MOELINK_EPLB_TRANSFER_F_SKIP_LOST;
                    expect_good_transfer(&shape, &params, NULL);
                    overlap(&params);
                    expect_good_transfer(&shape, &params, NULL);
                }
            }
        }
    }
}

/* Every permutation of 8 experts over 4 ranks: rings of all kinds, with one staging place and with two. */
static void permute(int32_t *map, int left, const int32_t *before, int *count) {
    if (left == 1) {
        static const int32_t gpus[] = {0, 0, 1, 1};
        moelink_eplb_shape shape = one_thread(1, 8, 8, 4, 1 + *count % 2);
        moelink_eplb_transfer_params params = maps(before, map, 1 + *count / 2 % 2);
        if (*count % 3 == 0) params.rank_gpu = gpus;
        if (*count % 5 < 2) overlap(&params);
        expect_good_transfer(&shape, &params, NULL);
        ++*count;
        return;
    }
    for (int i = 0; i < left; ++i) {
        permute(map, left - 1, before, count);
        int other = left % 2 == 0 ? i : 0;
        int32_t kept = map[other];
        map[other] = map[left - 1];
        map[left - 1] = kept;
    }
}

static void test_all_rings(void **state) {
    (void)state;
    int32_t before[8], map[8];
    for (int i = 0; i < 8; ++i) before[i] = map[i] = i;
    int count = 0;
    permute(map, 8, before, &count);
    assert_int_equal(count, 40320);
}

/* ---- The least number of transfers by search ----
 * A state is what 2 ranks hold in 2 slots and 1 staging place each, 6 digits. Moves within a rank cost nothing, others 1. */
enum { STATES = 4096 };

static int digit(int number, int place) {
    return number >> (2 * place) & 3;
}

static int with_digit(int number, int place, int value) {
    return (number & ~(3 << (2 * place))) | value << (2 * place);
}

static void search(int from, int *least) {
    static int current[STATES * 40], next[STATES * 40];
    int count = 1, next_count = 0;
    for (int i = 0; i < STATES; ++i) least[i] = -1;
    current[0] = from;
    least[from] = 0;
    for (int cost = 0; count > 0; ++cost) {
        for (int i = 0; i < count; ++i) {
            int at = current[i];
            for (int a = 0; a < 6; ++a) { /* places 0, 1: slots of rank 0; 2, 3: of rank 1; 4, 5: staging of each */
                for (int b = 0; b < 6; ++b) {
                    int rank_a = a < 4 ? a / 2 : a - 4, rank_b = b < 4 ? b / 2 : b - 4;
                    if (a == b || digit(at, a) == 0 || (rank_a != rank_b && (a >= 4 || b < 4))) continue;
                    int to = with_digit(at, b, digit(at, a));
                    if (least[to] >= 0 && least[to] <= cost + (rank_a != rank_b)) continue;
                    least[to] = cost + (rank_a != rank_b);
                    if (rank_a == rank_b) {
                        assert_true(count < STATES * 40);
                        current[count++] = to;
                    } else {
                        assert_true(next_count < STATES * 40);
                        next[next_count++] = to;
                    }
                }
            }
        }
        memcpy(current, next, sizeof *next * (size_t)next_count);
        count = next_count;
        next_count = 0;
    }
}

static void test_least_transfers(void **state) {
    (void)state;
    static int least[STATES];
    int32_t before[4], after[4];
    moelink_eplb_shape shape = one_thread(1, 3, 4, 2, 1);
    int compared = 0, most = 0;
    for (int a = 0; a < 256; ++a) {
        digits(a, 4, 4, before);
        search(a, least);
        for (int b = 0; b < 256; ++b) {
            digits(b, 4, 4, after);
            int filled = after[0] >= 0 && after[1] >= 0 && after[2] >= 0 && after[3] >= 0;
            if (!filled || !all_known(before, after, 4)) continue;
            int best = 100;
            for (int staged = 0; staged < 16; ++staged) {
                int reached = least[b | staged << 8];
                if (reached >= 0 && reached < best) best = reached;
            }
            moelink_eplb_transfer_params params = maps(before, after, 1);
            moelink_eplb_transfer_summary summary;
            expect_good_transfer(&shape, &params, &summary);
            assert_int_equal(summary.copies[MOELINK_EPLB_HOP_NODE], best);
            most = best > most ? best : most;
            ++compared;
        }
    }
    assert_int_equal(most, 3);
    assert_true(compared > 1000);
}

/* Rings that are held and transfers to the same rank take all of its places: a batch then waits for the end of the one before it. */
static void test_no_place_left(void **state) {
    (void)state;
    const int32_t before[] = {8, 1, 2, -1, 0, 9, 11, 4, 13, 10, 14, 6, 5, 7, 3, 12};
    const int32_t after[] = {8, 12, 13, 3, -1, 9, 2, 4, 6, 7, 1, 11, 5, 14, 0, 10};
    moelink_eplb_shape shape = one_thread(1, 15, 16, 4, 1);
    moelink_eplb_transfer_params params = maps(before, after, 1);
    overlap(&params);
    moelink_eplb_transfer_summary summary;
    expect_good_transfer(&shape, &params, &summary);
    print_message("  %d batches, %d of them early\n", summary.batches, summary.early_batches);
    assert_true(summary.open_batches > 0);
    assert_true(summary.early_batches < summary.batches - 1);
}

/* ---- Random maps ---- */

/* Each expert at least once where that fits, hot ones often, some slots empty. */
static void random_map(uint64_t *seed, int experts, int slots, int empty_percent, int hot_percent, int32_t *map) {
    for (int i = 0; i < slots; ++i) {
        map[i] = i < experts ? i : random_range(seed, 0, random_chance(seed, hot_percent) ? (experts - 1) / 8 : experts - 1);
        if (i >= experts && random_chance(seed, empty_percent)) map[i] = -1;
    }
    for (int i = slots - 1; i > 0; --i) {
        int j = random_range(seed, 0, i);
        int32_t kept = map[i];
        map[i] = map[j];
        map[j] = kept;
    }
}

static void test_random(void **state) {
    (void)state;
    static int32_t before[MOST], after[MOST];
    int32_t gpus[16];
    uint64_t bytes[3];
    uint64_t seed = test_number("MOELINK_TEST_SEED", 7);
    for (int turn = 0; turn < 4000; ++turn) {
        int nodes = random_range(&seed, 1, 4), ranks = nodes * random_range(&seed, 1, 4), width = random_range(&seed, 1, 10);
        int slots = ranks * width, experts = random_range(&seed, 1, slots), layers = random_range(&seed, 1, 3);
        moelink_eplb_shape shape = one_thread(layers, experts, slots, ranks, nodes);
        for (int layer = 0; layer < layers; ++layer) {
            random_map(&seed, experts, slots, 20, 40, before + layer * slots);
            if (random_chance(&seed, 40)) {
                memcpy(after + layer * slots, before + layer * slots, sizeof *after * (size_t)slots);
                for (int change = random_range(&seed, 0, slots); change > 0; --change) {
                    after[layer * slots + random_range(&seed, 0, slots - 1)] = random_range(&seed, -1, experts - 1);
                }
            } else {
                random_map(&seed, experts, slots, 20, 40, after + layer * slots);
            }
            bytes[layer] = (uint64_t)random_range(&seed, 0, 1000);
        }
        for (int rank = 0; rank < ranks; ++rank) gpus[rank] = rank / 2 + 100 * (rank / (ranks / nodes));
        moelink_eplb_transfer_params params = maps(before, after, random_range(&seed, 1, 6));
        if (random_chance(&seed, 50)) params.rank_gpu = gpus;
        if (random_chance(&seed, 50)) params.expert_bytes = bytes;
        if (params.expert_bytes != NULL && random_chance(&seed, 70)) params.step_bytes = (uint64_t)random_range(&seed, 1, 5000);
        if (random_chance(&seed, 40)) params.flags = MOELINK_EPLB_TRANSFER_F_OVERLAP;
        expect_good_transfer(&shape, &params, NULL);
    }
}

static void test_published_matrix(void **state) {
    (void)state;
    static const int sizes[][4] = {{2, 1, 2, 3}, {2, 2, 3, 4}, {2, 4, 8, 16}, {4, 1, 2, 6}, {4, 2, 2, 5}, {4, 8, 8, 16}};
    static int32_t before[MOST], after[MOST];
    uint64_t seed = 42;
    for (int turn = 0; turn < 100; ++turn) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
            int slots = sizes[i][0] * sizes[i][2];
            moelink_eplb_shape shape = one_thread(sizes[i][1], sizes[i][3], slots, sizes[i][0], 1);
            for (int layer = 0; layer < sizes[i][1]; ++layer) {
                random_map(&seed, sizes[i][3], slots, 0, 0, before + layer * slots);
                random_map(&seed, sizes[i][3], slots, 0, 0, after + layer * slots);
            }
            moelink_eplb_transfer_params params = maps(before, after, 1 + turn % 8);
            if (turn % 3 == 0) overlap(&params);
            expect_good_transfer(&shape, &params, NULL);
        }
    }
}

/* ---- Rank mapping ---- */

static void test_rank_mapping(void **state) {
    (void)state;
    static int32_t before[MOST], after[MOST];
    int32_t mapping[8];
    uint64_t seed = 3;
    for (int turn = 0; turn < 1000; ++turn) {
        int old_ranks = random_range(&seed, 1, 6), new_ranks = random_range(&seed, 1, 6), width = random_range(&seed, 2, 6);
        int down = new_ranks < old_ranks && random_chance(&seed, 50);
        int ranks = down ? old_ranks : new_ranks;
        int experts = random_range(&seed, 1, width * (old_ranks < new_ranks ? old_ranks : new_ranks));
        moelink_eplb_shape shape = one_thread(1, experts, ranks * width, ranks, 1);
        random_map(&seed, experts, old_ranks * width, 20, 0, before);
        random_map(&seed, experts, new_ranks * width, 20, 0, after);
        for (int rank = 0; rank < old_ranks; ++rank) mapping[rank] = rank < new_ranks ? rank : -1;
        for (int rank = old_ranks - 1; rank > 0; --rank) {
            int other = random_range(&seed, 0, rank);
            int32_t kept = mapping[rank];
            mapping[rank] = mapping[other];
            mapping[other] = kept;
        }
        moelink_eplb_transfer_params params = maps(before, after, random_range(&seed, 1, 3));
        params.old_ranks = old_ranks;
        params.new_ranks = new_ranks;
        params.rank_mapping = mapping;
        params.flags = MOELINK_EPLB_TRANSFER_F_SKIP_LOST;
        if (turn % 2 == 0) overlap(&params);
        expect_good_transfer(&shape, &params, NULL);
    }
}

/* Two ranks become three, under other numbers; then the second of them leaves, gone or giving. */
static void test_rank_mapping_by_hand(void **state) {
    (void)state;
    const int32_t two[] = {0, 1, 2, 3}, mapping[] = {2, 0}, three[] = {2, 3, 0, 1, 0, 1};
    moelink_eplb_shape shape = one_thread(1, 4, 6, 3, 1);
    moelink_eplb_transfer_params params = maps(two, three, 4);
    params.old_ranks = 2;
    params.rank_mapping = mapping;
    moelink_eplb_transfer_summary summary;
    expect_good_transfer(&shape, &params, &summary);
    assert_int_equal(summary.copies[MOELINK_EPLB_HOP_NODE], 2);
    int32_t map[6];
    const int32_t grown[] = {2, 3, -1, -1, 0, 1};
    moelink_eplb_transfer *transfer;
    assert_int_equal(moelink_eplb_transfer_create(&shape, &params, &transfer), MOELINK_OK);
    assert_int_equal(moelink_eplb_transfer_map(transfer, 0, map), MOELINK_OK);
    assert_memory_equal(map, grown, sizeof map);
    moelink_eplb_transfer_destroy(transfer);

    const int32_t leaving[] = {0, -1, 1}, before[] = {0, 1, 2, 3, 0, 1}, after[] = {0, 1, 2, 3};
    params = maps(before, after, 4);
    params.new_ranks = 2;
    params.rank_mapping = leaving;
    expect_good_transfer(&shape, &params, &summary);
    assert_int_equal(summary.copies[MOELINK_EPLB_HOP_NODE], 2);

    shape = one_thread(1, 4, 4, 2, 1);
    params.old_ranks = 3;
    assert_int_equal(moelink_eplb_transfer_create(&shape, &params, &transfer), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(moelink_last_error(), "expert 2 in layer 0"));
    params.flags = MOELINK_EPLB_TRANSFER_F_SKIP_LOST;
    expect_good_transfer(&shape, &params, &summary);
    assert_int_equal(summary.lost, 2);
    assert_int_equal(summary.copies[MOELINK_EPLB_HOP_NODE], 0);
}

/* ---- Shapes of plans ---- */

/* One expert goes from one rank to all: who has received sends on. */
static void test_fan_out(void **state) {
    (void)state;
    int32_t before[64], after[64];
    for (int i = 0; i < 64; ++i) before[i] = i, after[i] = 0;
    for (int staging = 1; staging <= 4; ++staging) {
        moelink_eplb_shape shape = one_thread(1, 64, 64, 64, 1);
        moelink_eplb_transfer_params params = maps(before, after, staging);
        moelink_eplb_transfer_summary summary;
        expect_good_transfer(&shape, &params, &summary);
        assert_int_equal(summary.rounds, 6); /* 64 = 2^6: every rank that has the expert sends in every round */
        shape.nodes = 8;
        expect_good_transfer(&shape, &params, &summary);
        assert_int_equal(summary.copies[MOELINK_EPLB_HOP_NET], 7);
    }
}

/* Ranks exchange all that they have: with a place for each expert in one batch, and always in as many rounds as they receive. */
static void test_exchange(void **state) {
    (void)state;
    int32_t before[32], after[32];
    for (int i = 0; i < 32; ++i) before[i] = i, after[i] = (i + 8) % 32;
    for (int staging = 1; staging <= 8; ++staging) {
        moelink_eplb_shape shape = one_thread(1, 32, 32, 4, 1);
        moelink_eplb_transfer_params params = maps(before, after, staging);
        moelink_eplb_transfer_summary summary;
        expect_good_transfer(&shape, &params, &summary);
        assert_int_equal(summary.rounds, 8);
        assert_int_equal(summary.least_rounds, 8);
        assert_int_equal(summary.batches, (8 + staging - 1) / staging);
        assert_int_equal(summary.staging, staging);
    }
}

static void test_steps(void **state) {
    (void)state;
    int32_t before[32], after[32];
    uint64_t bytes[1] = {1000};
    for (int i = 0; i < 32; ++i) before[i] = i, after[i] = (i + 8) % 32;
    moelink_eplb_shape shape = one_thread(1, 32, 32, 4, 1);
    moelink_eplb_transfer_params params = maps(before, after, 1);
    moelink_eplb_transfer_summary summary;
    params.expert_bytes = bytes;
    expect_good_transfer(&shape, &params, &summary);
    assert_int_equal(summary.steps, 1);
    assert_int_equal(summary.bytes[MOELINK_EPLB_HOP_NODE], 32000);
    params.step_bytes = 3999;
    expect_good_transfer(&shape, &params, &summary);
    assert_int_equal(summary.steps, 3);
    params.step_bytes = 1; /* no step can be shorter than a batch */
    expect_good_transfer(&shape, &params, &summary);
    assert_int_equal(summary.steps, 8);
    params.step_bytes = 0;
    params.node_rate = 1e9; /* 1 us a round */
    params.round_ns = 500;
    params.step_ns = 6000;
    expect_good_transfer(&shape, &params, &summary);
    assert_int_equal(summary.steps, 2);
    assert_int_equal(summary.time_ns, 12000);
}

/* From the planner's maps of real sizes: how far from the least number of rounds. */
static void test_model_sizes(void **state) {
    (void)state;
    static const int sizes[][4] = {{4, 256, 288, 8}, {4, 256, 288, 32}, {2, 384, 448, 64}, {2, 256, 320, 320}};
    static double load[4 * 384];
    static int32_t before[4 * 448], after[4 * 448];
    uint64_t seed = 5;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        moelink_eplb_shape shape = eplb_shape(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], 1, 1);
        random_loads(&seed, 1.0, 0, load, (int64_t)shape.layers * shape.experts);
        assert_int_equal(moelink_eplb_rebalance(&shape, load, before, NULL, 0, NULL), MOELINK_OK);
        drift_loads(&seed, 0.3, load, load, (int64_t)shape.layers * shape.experts);
        assert_int_equal(moelink_eplb_rebalance(&shape, load, after, NULL, 0, NULL), MOELINK_OK);
        for (int staging = 1; staging <= 36; staging = staging * 2 + staging / 4) {
            moelink_eplb_transfer_params params = maps(before, after, staging);
            moelink_eplb_transfer_summary summary;
            expect_good_transfer(&shape, &params, &summary);
            print_message("%d experts, %d slots, %d ranks, staging %d: %d rounds in %d batches, least %d\n", shape.experts, shape.slots,
                          shape.ranks, staging, summary.rounds, summary.batches, summary.least_rounds);
            assert_true(summary.rounds <= 3 * summary.least_rounds);
            overlap(&params);
            expect_good_transfer(&shape, &params, &summary);
            print_message("  overlapping, staging %d: %d rounds in %d batches, %d of them early\n", params.staging, summary.rounds,
                          summary.batches, summary.early_batches);
            assert_true(4 * summary.early_batches > summary.batches || summary.batches < 16);
        }
    }
}

/* ---- Refusals ---- */

static void refused(const moelink_eplb_shape *shape, const moelink_eplb_transfer_params *params, const char *part) {
    moelink_eplb_transfer *transfer = (moelink_eplb_transfer *)&transfer;
    assert_int_equal(moelink_eplb_transfer_create(shape, params, &transfer), MOELINK_ERR_INVALID_ARGUMENT);
    assert_null(transfer);
    if (strstr(moelink_last_error(), part) == NULL) fail_msg("\"%s\" does not say \"%s\"", moelink_last_error(), part);
}

static void test_refusals(void **state) {
    (void)state;
    const int32_t before[] = {0, 1, 2, 0, 0, 1, 0, 1}, after[] = {0, 1, 2, 1, 0, 2, 1, 1};
    const int32_t gpus[] = {3, 3}, twice[] = {1, 1}, far[] = {0, 2}, none[] = {-1, 0};
    const moelink_eplb_shape good = one_thread(2, 3, 4, 2, 1);
    const moelink_eplb_transfer_params all = maps(before, after, 1);
    moelink_eplb_shape shape = good;
    moelink_eplb_transfer_params params = all;
    refused(&shape, &params, "expert 2 in layer 1, slot 1");
    refused(NULL, &params, "shape is NULL");
    refused(&shape, NULL, "params is NULL");
    shape.slots = 5;
    refused(&shape, &params, "5 slots are no multiple of 2 ranks");
    shape = good;
    params.old_map = NULL;
    refused(&shape, &params, "old_map is NULL");
    params = all, params.new_map = NULL;
    refused(&shape, &params, "new_map is NULL");
    params = all, shape.experts = 2;
    refused(&shape, &params, "old_map has 2 in layer 0, slot 2");
    shape = good, params.staging = 0;
    refused(&shape, &params, "params.staging is 0");
    params = all, params.flags = 4;
    refused(&shape, &params, "params.flags has 0x4");
    params = all, params.reserved = 1;
    refused(&shape, &params, "params.reserved is 1");
    params = all, params.struct_size = 0;
    refused(&shape, &params, "struct_size is 0");
    params = all, params.old_ranks = 1;
    refused(&shape, &params, "needs a rank_mapping");
    params = all, params.rank_mapping = twice;
    refused(&shape, &params, "new rank 1 of both old rank 0 and old rank 1");
    params.rank_mapping = far;
    refused(&shape, &params, "rank_mapping has 2 for old rank 1");
    params.rank_mapping = none, params.new_ranks = 3;
    refused(&shape, &params, "shape has 2 ranks");
    params = all, params.rank_mapping = none, params.new_ranks = 1, params.old_ranks = 3;
    refused(&shape, &params, "shape has 2 ranks");
    const int32_t leavers[] = {-1, -1};
    params = all, params.rank_mapping = leavers, params.new_ranks = 1;
    refused(&shape, &params, "no old rank new rank 0");
    params = all, params.rank_gpu = gpus, shape.nodes = 2;
    refused(&shape, &params, "rank_gpu has GPU 3 in node 0");
    shape = good, params = all, params.step_bytes = 1;
    refused(&shape, &params, "expert_bytes is NULL");
    params = all, params.net_rate = -1;
    refused(&shape, &params, "a rate is -1");

    moelink_eplb_transfer *transfer;
    moelink_eplb_transfer_summary summary = MOELINK_EPLB_TRANSFER_SUMMARY_INIT;
    const moelink_eplb_move *moves;
    int32_t map[8];
    params = all, params.new_map = before;
    assert_int_equal(moelink_eplb_transfer_create(&shape, &params, &transfer), MOELINK_OK);
    assert_int_equal(moelink_eplb_transfer_map(transfer, 1, map), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(moelink_last_error(), "steps is 1; the plan has 0"));
    assert_int_equal(moelink_eplb_transfer_map(transfer, 0, map), MOELINK_OK);
    assert_memory_equal(map, before, sizeof map);
    assert_int_equal(moelink_eplb_transfer_map(transfer, 0, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_transfer_map(NULL, 0, map), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_transfer_moves(NULL, &moves), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_transfer_moves(transfer, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_transfer_summarize(NULL, &summary), MOELINK_ERR_INVALID_ARGUMENT);
    summary.struct_size = 0;
    assert_int_equal(moelink_eplb_transfer_summarize(transfer, &summary), MOELINK_ERR_INVALID_ARGUMENT);
    moelink_eplb_transfer_destroy(transfer);
    moelink_eplb_transfer_destroy(NULL);
}

/* The plan does not depend on the number of threads. */
static void test_threads(void **state) {
    (void)state;
    static int32_t before[MOST], after[MOST];
    uint64_t seed = 8;
    moelink_eplb_shape shape = one_thread(16, 48, 64, 8, 2);
    for (int layer = 0; layer < 16; ++layer) {
        random_map(&seed, 48, 64, 10, 30, before + layer * 64);
        random_map(&seed, 48, 64, 10, 30, after + layer * 64);
    }
    moelink_eplb_transfer_params params = maps(before, after, 3);
    params.flags = MOELINK_EPLB_TRANSFER_F_OVERLAP;
    moelink_eplb_transfer *plans[2];
    moelink_eplb_transfer_summary summaries[2] = {MOELINK_EPLB_TRANSFER_SUMMARY_INIT, MOELINK_EPLB_TRANSFER_SUMMARY_INIT};
    const moelink_eplb_move *moves[2];
    for (int i = 0; i < 2; ++i) {
        shape.threads = 1 + 3 * i;
        assert_int_equal(moelink_eplb_transfer_create(&shape, &params, &plans[i]), MOELINK_OK);
        assert_int_equal(moelink_eplb_transfer_summarize(plans[i], &summaries[i]), MOELINK_OK);
        assert_int_equal(moelink_eplb_transfer_moves(plans[i], &moves[i]), MOELINK_OK);
    }
    assert_memory_equal(&summaries[0], &summaries[1], sizeof summaries[0]);
    assert_memory_equal(moves[0], moves[1], sizeof(moelink_eplb_move) * (size_t)summaries[0].move_count);
    moelink_eplb_transfer_destroy(plans[0]);
    moelink_eplb_transfer_destroy(plans[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_small),        cmocka_unit_test(test_all_rings),    cmocka_unit_test(test_least_transfers),
        cmocka_unit_test(test_no_place_left),
        cmocka_unit_test(test_random),           cmocka_unit_test(test_published_matrix), cmocka_unit_test(test_rank_mapping),
        cmocka_unit_test(test_rank_mapping_by_hand), cmocka_unit_test(test_fan_out), cmocka_unit_test(test_exchange),
        cmocka_unit_test(test_steps),            cmocka_unit_test(test_model_sizes),
        cmocka_unit_test(test_refusals),         cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
