#include "eplb_case.h"

#include "values.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

moelink_eplb_shape eplb_shape(int32_t layers, int32_t experts, int32_t slots, int32_t ranks, int32_t nodes, int32_t groups) {
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.layers = layers;
    shape.experts = experts;
    shape.slots = slots;
    shape.ranks = ranks;
    shape.nodes = nodes;
    shape.groups = groups;
    return shape;
}

static double uniform(uint64_t *state) {
    return ((double)(random_next(state) >> 11) + 0.5) / 9007199254740992.0;
}

double random_normal(uint64_t *state) {
    double radius = sqrt(-2 * log(uniform(state)));
    return radius * cos(6.283185307179586 * uniform(state));
}

void random_loads(uint64_t *state, double sigma, int distinct, double *load, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        for (int again = 1; again;) {
            load[i] = floor(fmin(1000 * exp(sigma * random_normal(state)), 1048575.0));
            again = 0;
            for (int64_t j = 0; distinct && j < i; ++j) again |= load[j] == load[i];
        }
    }
}

void drift_loads(uint64_t *state, double sigma, const double *from, double *to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] * exp(sigma * random_normal(state));
}

void slow_replicate(const float *load, int experts, int slots, int32_t *phy2log, int32_t *replica, int32_t *counts) {
    for (int e = 0; e < experts; ++e) {
        phy2log[e] = e;
        replica[e] = 0;
        counts[e] = 1;
    }
    for (int slot = experts; slot < slots; ++slot) {
        int most = 0;
        for (int e = 1; e < experts; ++e) {
            if (load[e] / (float)counts[e] > load[most] / (float)counts[most]) most = e;
        }
        phy2log[slot] = most;
        replica[slot] = counts[most]++;
    }
}

void slow_pack(const float *load, int items, int packs, int32_t *pack, int32_t *place) {
    float *sum = calloc((size_t)packs, sizeof *sum);
    int32_t *filled = calloc((size_t)packs, sizeof *filled);
    for (int i = 0; i < items; ++i) pack[i] = -1;
    for (int turn = 0; turn < items; ++turn) {
        int item = -1;
        for (int i = 0; i < items; ++i) {
            if (pack[i] < 0 && (item < 0 || (items != packs && load[i] > load[item]))) item = i;
        }
        int best = -1;
        for (int p = 0; p < packs; ++p) {
            if (filled[p] == items / packs) continue;
            if (best < 0 || (items != packs && sum[p] < sum[best])) best = p;
        }
        pack[item] = best;
        place[item] = filled[best]++;
        sum[best] += load[item];
    }
    free(sum);
    free(filled);
}

void slow_rebalance(const moelink_eplb_shape *shape, const double *load, int32_t *phy2log, int32_t *log2phy, int32_t width,
                    int32_t *counts) {
    int nodes = shape->groups % shape->nodes == 0 ? shape->nodes : 1;
    int groups = shape->groups % shape->nodes == 0 ? shape->groups : 1;
    int size = shape->experts / groups;
    int node_experts = shape->experts / nodes;
    int node_slots = shape->slots / nodes;
    int rank_slots = shape->slots / shape->ranks;
    float group_load[64] = {0};
    int32_t group_node[64], group_place[64];
    if (groups > 64) abort();
    for (int e = 0; e < shape->experts; ++e) group_load[e / size] += (float)load[e];
    slow_pack(group_load, groups, nodes, group_node, group_place);

    int32_t *members = malloc(sizeof *members * (size_t)shape->experts);
    for (int g = 0; g < groups; ++g) {
        int start = group_node[g] * node_experts + group_place[g] * size;
        for (int i = 0; i < size; ++i) members[start + i] = g * size + i;
    }
    float *mine = malloc(sizeof *mine * (size_t)shape->slots);
    float *share = malloc(sizeof *share * (size_t)shape->slots);
    int32_t *ints = malloc(sizeof *ints * (size_t)shape->slots * 5);
    int32_t *of = ints, *replica = of + shape->slots, *rank = replica + shape->slots, *place = rank + shape->slots,
            *copies = place + shape->slots;
    for (int i = 0; i < shape->experts * width; ++i) log2phy[i] = -1;
    for (int node = 0; node < nodes; ++node) {
        for (int i = 0; i < node_experts; ++i) mine[i] = (float)load[members[node * node_experts + i]];
        slow_replicate(mine, node_experts, node_slots, of, replica, copies);
        for (int i = 0; i < node_slots; ++i) share[i] = mine[of[i]] / (float)copies[of[i]];
        slow_pack(share, node_slots, shape->ranks / nodes, rank, place);
        for (int i = 0; i < node_slots; ++i) {
            int32_t expert = members[node * node_experts + of[i]];
            int32_t slot = node * node_slots + rank[i] * rank_slots + place[i];
            phy2log[slot] = expert;
            log2phy[expert * width + replica[i]] = slot;
            counts[expert] = copies[of[i]];
        }
    }
    free(members);
    free(mine);
    free(share);
    free(ints);
}

double slow_time(const moelink_eplb_shape *shape, const double *load, const int32_t *phy2log, const double *speed, const uint8_t *active) {
    int rank_slots = shape->slots / shape->ranks;
    double *time = calloc((size_t)shape->ranks, sizeof *time);
    double most = 0;
    for (int e = 0; e < shape->experts && most >= 0; ++e) {
        int copies = 0;
        for (int s = 0; s < shape->slots; ++s) copies += phy2log[s] == e && (active == NULL || active[s / rank_slots]);
        if (copies == 0 && load[e] > 0) most = -1;
        for (int s = 0; s < shape->slots; ++s) {
            int rank = s / rank_slots;
            if (phy2log[s] == e && (active == NULL || active[rank])) time[rank] += load[e] / copies / (speed == NULL ? 1 : speed[rank]);
        }
    }
    for (int r = 0; r < shape->ranks && most >= 0; ++r) most = fmax(most, time[r]);
    free(time);
    return most;
}

static int has(const int32_t *map, int rank_slots, int rank, int32_t expert) {
    for (int i = 0; i < rank_slots; ++i) {
        if (map[rank * rank_slots + i] == expert) return 1;
    }
    return 0;
}

int64_t slow_copies(const moelink_eplb_shape *shape, const int32_t *before, const int32_t *after, const uint8_t *active) {
    int rank_slots = shape->slots / shape->ranks;
    int64_t copies = 0;
    for (int32_t e = 0; e < shape->experts; ++e) {
        int known = 0;
        for (int r = 0; r < shape->ranks; ++r) known |= (active == NULL || active[r]) && has(before, rank_slots, r, e);
        for (int r = 0; r < shape->ranks && known; ++r) {
            copies += (active == NULL || active[r]) && has(after, rank_slots, r, e) && !has(before, rank_slots, r, e);
        }
    }
    return copies;
}

static void broken(const char *what, int layer, int slot, int value) {
    fprintf(stderr, "layer %d, slot %d, value %d: %s\n", layer, slot, value, what);
    abort();
}

void expect_valid_map(const moelink_eplb_shape *shape, const int32_t *phy2log, const uint8_t *active) {
    int rank_slots = shape->slots / shape->ranks;
    int32_t *seen = malloc(sizeof *seen * (size_t)shape->experts); /* the rank, of all layers, that had the expert last; -1: none */
    for (int layer = 0; layer < shape->layers; ++layer) {
        const int32_t *map = phy2log + (int64_t)layer * shape->slots;
        for (int e = 0; e < shape->experts; ++e) seen[e] = -1;
        for (int s = 0; s < shape->slots; ++s) {
            int rank = s / rank_slots;
            if (map[s] < -1 || map[s] >= shape->experts) broken("no expert", layer, s, map[s]);
            if (map[s] < 0) continue;
            if (active != NULL && !active[rank]) broken("on a rank that is not active", layer, s, map[s]);
            if (seen[map[s]] == rank) broken("twice on its rank", layer, s, map[s]);
            seen[map[s]] = rank;
        }
        for (int e = 0; e < shape->experts; ++e) {
            if (seen[e] < 0) broken("an expert has no slot", layer, -1, e);
        }
    }
    free(seen);
}

int real_loads(int topic, double *load, char *name) {
    char path[1024];
    const char *folder = getenv("MOELINK_TEST_DATA");
    snprintf(path, sizeof path, "%s/expert_load.csv", folder == NULL ? "tests/data" : folder);
    FILE *file = fopen(path, "r");
    if (file == NULL) return 0;
    char line[8192];
    int row = -1;
    while (row < topic && fgets(line, sizeof line, file) != NULL) ++row;
    fclose(file);
    if (row < topic) return 0;
    char *rest = line;
    const char *word = strtok_r(line, ",", &rest);
    if (name != NULL) snprintf(name, 32, "%s", word);
    for (int i = 0; i < 384; ++i) {
        word = strtok_r(NULL, ",", &rest);
        if (word == NULL) return 0;
        load[i] = atof(word);
    }
    return 1;
}
