#include "moe_case.h"

#include <stdlib.h>
#include <string.h>

static const int32_t dtypes[] = {MOELINK_DTYPE_F32, MOELINK_DTYPE_F16, MOELINK_DTYPE_BF16};

/* Mostly small, sometimes large, odd ones included. */
static uint64_t any_size(uint64_t *state, uint64_t most) {
    int bits = 1;
    while (most >> bits != 0) ++bits;
    uint64_t size = (random_next(state) & ((1ull << random_range(state, 1, bits)) - 1)) + 1;
    if (random_chance(state, 30)) size = (size + 15) / 16 * 16;
    return size < most ? size : most;
}

void moe_geometry_random(uint64_t seed, int ranks, uint64_t values, moe_geometry *out) {
    static const uint64_t odd_rows[] = {1, 2, 3, 7, 16, 17, 31, 48, 100, 127, 128, 224, 448, 1000};
    uint64_t state = random_mix(seed, 1);
    memset(out, 0, sizeof(*out));
    out->seed = seed;
    out->ranks = ranks;
    out->vectors = random_chance(&state, 40);
    uint64_t hidden = random_chance(&state, 10) ? 7168 : any_size(&state, 7168);
    if (out->vectors) hidden = (hidden + 15) / 16 * 16;
    int quantizes = random_chance(&state, 40);
    if (quantizes) hidden = (hidden + QUANTIZE_BLOCK - 1) / QUANTIZE_BLOCK * QUANTIZE_BLOCK;
    uint64_t most_tokens = values / hidden < 300 ? values / hidden + 1 : 300;
    for (int rank = 0; rank < ranks; ++rank) {
        out->max_tokens[rank] = random_range(&state, 1, (int)most_tokens);
        if (out->max_tokens[rank] > out->capacity) out->capacity = out->max_tokens[rank];
    }
    out->top_k = random_chance(&state, 50) ? random_range(&state, 1, 8) : random_range(&state, 1, 22);
    int most = random_chance(&state, 30) ? 3 : random_chance(&state, 50) ? 40 : 400;
    out->experts = random_range(&state, 1, most) + (random_chance(&state, 70) ? out->top_k + ranks : 0);
    out->payload_count = random_chance(&state, 50) ? random_range(&state, 1, 4) : random_range(&state, 1, MOELINK_MAX_PAYLOADS);
    if (quantizes && out->payload_count < 2) out->payload_count = 2;
    out->row_bytes[0] = hidden * dtype_bytes(dtypes[random_range(&state, 0, 2)]);
    for (int i = 1; i < out->payload_count; ++i) {
        uint64_t odd = odd_rows[random_range(&state, 0, (int)(sizeof(odd_rows) / sizeof(odd_rows[0])) - 1)];
        out->row_bytes[i] = random_chance(&state, 70) ? odd : any_size(&state, 3000);
        if (out->vectors) out->row_bytes[i] = (out->row_bytes[i] + 15) / 16 * 16;
    }
    if (quantizes && out->row_bytes[1] < hidden / QUANTIZE_BLOCK * 4) out->row_bytes[1] = hidden / QUANTIZE_BLOCK * 4;
    if (out->vectors) out->row_bytes[1] = (out->row_bytes[1] + 15) / 16 * 16;
    out->combine_row_bytes = hidden * 4;
    out->slots = random_chance(&state, 60) ? 1 : random_range(&state, 2, 4);
    if (random_chance(&state, 40)) moe_geometry_map(seed, out);
}

void moe_geometry_map(uint64_t seed, moe_geometry *out) {
    uint64_t state = random_mix(seed, 3);
    int idle = random_chance(&state, 30) ? random_range(&state, 0, out->ranks - 1) : -1; /* owns nothing */
    out->mapped = 1;
    for (int expert = 0; expert < out->experts; ++expert) {
        int rank = random_range(&state, 0, out->ranks - 1);
        out->expert_ranks[expert] = random_chance(&state, 15) || rank == idle ? -1 : rank;
    }
}

/* Payloads 0 and 1 become a quantized one and its scales, where the workspace has the room. */
static void choose_quantize(const moe_geometry *geometry, uint64_t *state, moe_round *out) {
    static const int32_t scales[] = {MOELINK_DTYPE_F32, MOELINK_DTYPE_E8M0};
    int32_t dtype = scales[random_range(state, 0, 1)];
    uint64_t scale_bytes = dtype == MOELINK_DTYPE_F32 ? 4 : 1;
    uint64_t blocks = geometry->row_bytes[0] / QUANTIZE_BLOCK;
    if (geometry->row_bytes[1] / scale_bytes < blocks) blocks = geometry->row_bytes[1] / scale_bytes;
    if (out->payload_count < 2 || blocks == 0 || geometry->row_bytes[0] % 16 != 0) return;
    if (random_chance(state, 50)) blocks = any_size(state, blocks);
    out->quantize = dtype;
    out->sent[0] = out->sent[1] = 1;
    out->row_bytes[0] = blocks * QUANTIZE_BLOCK;
    out->row_bytes[1] = blocks * scale_bytes;
    out->scale = 0;
}

void moe_round_random(const moe_geometry *geometry, uint64_t seed, moe_round *out) {
    uint64_t state = random_mix(seed, 2);
    memset(out, 0, sizeof(*out));
    out->seed = seed;
    out->slot = random_range(&state, 0, geometry->slots - 1);
    int quiet = random_chance(&state, 5);
    for (int rank = 0; rank < geometry->ranks; ++rank) {
        int most = geometry->max_tokens[rank];
        int some = random_chance(&state, 30) ? most : random_range(&state, 0, most);
        out->tokens[rank] = quiet || random_chance(&state, 15) ? 0 : some;
    }
    out->ids_style = random_range(&state, 0, MOE_IDS_STYLES - 1);
    out->payload_count = random_chance(&state, 80) ? geometry->payload_count : random_range(&state, 0, geometry->payload_count);
    for (int i = 0; i < out->payload_count; ++i) {
        out->sent[i] = random_chance(&state, 90);
        out->row_bytes[i] = random_chance(&state, 80) ? geometry->row_bytes[i] : any_size(&state, geometry->row_bytes[i]);
        if (geometry->vectors) out->row_bytes[i] = (out->row_bytes[i] + 15) / 16 * 16;
        if (!out->sent[i]) out->row_bytes[i] = 0;
    }
    out->combine = random_chance(&state, 95);
    out->again = random_chance(&state, 25);
    out->dtype = dtypes[random_range(&state, 0, 2)];
    uint64_t most = geometry->combine_row_bytes / 4;
    out->hidden = random_chance(&state, 70) ? most : any_size(&state, most);
    if (geometry->vectors) out->hidden = (out->hidden + 15) / 16 * 16;
    if (random_chance(&state, 30) && out->payload_count > 0 && out->sent[0]) {
        uint64_t size = dtype_bytes(out->dtype);
        out->row_bytes[0] = geometry->row_bytes[0] / size * size;
        if (out->row_bytes[0] > geometry->combine_row_bytes) out->row_bytes[0] = geometry->combine_row_bytes / size * size;
        out->hidden = out->row_bytes[0] / size;
        out->scale = random_range(&state, 1, 3);
        if (out->hidden == 0) {
            out->row_bytes[0] = geometry->row_bytes[0];
            out->hidden = most;
            out->scale = 0;
        }
    }
    if (random_chance(&state, 50)) choose_quantize(geometry, &state, out);
    out->weights = random_chance(&state, 60);
    out->mode = out->weights && random_chance(&state, 40) ? MOELINK_COMBINE_WEIGHTED : MOELINK_COMBINE_SUM;
    static const int32_t marks[] = {-1, -1, INT32_MIN, INT32_MAX, -7};
    out->invalid_id = random_chance(&state, 20) ? geometry->experts : marks[random_range(&state, 0, 4)];
    if (geometry->layouts == 0) return;
    if (random_chance(&state, 20)) out->invalid_id = random_range(&state, 0, geometry->experts - 1); /* may be an id of the receiver's */
    out->layout = random_range(&state, MOELINK_LAYOUT_RANK_MAJOR, MOELINK_LAYOUT_EXPERT_PADDED);
    out->alignment = random_chance(&state, 30) ? geometry->alignment : random_range(&state, 0, geometry->alignment);
    int named_twice = out->ids_style != MOE_IDS_DISTINCT || geometry->experts <= geometry->top_k;
    if (out->layout == MOELINK_LAYOUT_EXPERT_PADDED && named_twice) out->layout = MOELINK_LAYOUT_EXPERT_MAJOR;
    if ((geometry->layouts >> out->layout & 1) == 0) out->layout = MOELINK_LAYOUT_RANK_MAJOR;
}

void moe_round_plain(uint64_t seed, int ranks, int tokens, uint64_t hidden, int32_t dtype, moe_round *out) {
    memset(out, 0, sizeof(*out));
    out->seed = seed;
    for (int rank = 0; rank < ranks; ++rank) out->tokens[rank] = tokens;
    out->payload_count = 1;
    out->row_bytes[0] = hidden * dtype_bytes(dtype);
    out->sent[0] = 1;
    out->combine = 1;
    out->hidden = hidden;
    out->dtype = dtype;
    out->weights = 1;
    out->invalid_id = -1;
    out->scale = 1;
    out->plain = 1;
}

void moe_geometry_plain(int ranks, int tokens, int top_k, int experts, uint64_t hidden, int32_t dtype, moe_geometry *out) {
    memset(out, 0, sizeof(*out));
    out->ranks = ranks;
    for (int rank = 0; rank < ranks; ++rank) out->max_tokens[rank] = tokens;
    out->capacity = tokens;
    out->experts = experts;
    out->top_k = top_k;
    out->payload_count = 1;
    out->row_bytes[0] = hidden * dtype_bytes(dtype);
    out->combine_row_bytes = hidden * dtype_bytes(dtype);
    out->slots = 1;
}

moelink_manager_config moe_config(const moe_geometry *geometry, int rank) {
    moelink_manager_config config = MOELINK_MANAGER_CONFIG_INIT;
    config.max_tokens = geometry->max_tokens[rank];
    config.top_k = geometry->top_k;
    config.num_experts = geometry->experts;
    config.payload_count = geometry->payload_count;
    config.payload_row_bytes = geometry->row_bytes;
    config.combine_row_bytes = geometry->combine_row_bytes;
    config.slots = geometry->slots;
    config.flags = geometry->flags;
    if (geometry->mapped) config.expert_ranks = geometry->expert_ranks;
    config.layouts = geometry->layouts;
    config.alignment = geometry->alignment;
    config.layout_rows = geometry->layout_rows;
    return config;
}

int32_t moe_ids_dtype(const moe_round *round, int rank) {
    return random_mix(round->seed, 300 + (uint64_t)rank) % 2 == 0 ? MOELINK_DTYPE_I32 : MOELINK_DTYPE_I64;
}

static void token_ids(const moe_geometry *geometry, const moe_round *round, int wide, uint64_t *state, int64_t *ids) {
    int experts = geometry->experts, top_k = geometry->top_k;
    int64_t first = (int64_t)(random_next(state) % (uint64_t)experts);
    for (int k = 0; k < top_k; ++k) {
        int64_t any = (int64_t)(random_next(state) % (uint64_t)experts);
        ids[k] = any;
        if (round->ids_style == MOE_IDS_DISTINCT) { /* where there are enough experts: a stride that visits all of them */
            ids[k] = experts > top_k ? (first + k * (experts / top_k)) % experts : any;
        } else if (round->ids_style == MOE_IDS_MASKED) {
            if (random_chance(state, 50)) ids[k] = -1;
        } else if (round->ids_style == MOE_IDS_WILD) {
            static const int64_t wild[] = {-1, -2, INT32_MIN, INT32_MAX};
            if (random_chance(state, 30)) ids[k] = random_chance(state, 40) ? experts + k : wild[random_range(state, 0, 3)];
            if (wide && random_chance(state, 20)) ids[k] = any + ((int64_t)1 << 32); /* valid if its upper half were lost */
        } else if (round->ids_style == MOE_IDS_ONE_RANK) {
            ids[k] = (int64_t)(round->seed % (uint64_t)experts);
        }
    }
}

void moe_ids(const moe_geometry *geometry, const moe_round *round, int rank, int64_t *ids) {
    uint64_t state = random_mix(round->seed, 100 + (uint64_t)rank);
    int wide = moe_ids_dtype(round, rank) == MOELINK_DTYPE_I64;
    for (int token = 0; token < round->tokens[rank]; ++token) {
        token_ids(geometry, round, wide, &state, ids + (int64_t)token * geometry->top_k);
    }
    if (round->ids_style != MOE_IDS_MASKED) return;
    for (int token = 0; token < round->tokens[rank]; token += 3) { /* padding rows */
        for (int k = 0; k < geometry->top_k; ++k) ids[(int64_t)token * geometry->top_k + k] = -1;
    }
}

void moe_weights(const moe_geometry *geometry, const moe_round *round, int rank, float *weights) {
    uint64_t state = random_mix(round->seed, 2000 + (uint64_t)rank);
    for (int64_t i = 0; i < (int64_t)round->tokens[rank] * geometry->top_k; ++i) {
        weights[i] = (float)random_range(&state, -100, 1000) / 777.0f;
    }
}

static uint64_t row_seed(const moe_round *round, int rank, int token, int payload) {
    return random_mix(random_mix(round->seed + round->rows_seed, 5000 + (uint64_t)payload), (uint64_t)rank << 32 | (uint64_t)token);
}

/* Values before they are quantized: of any bits, or as rows have them, some zero, denormal, infinite or NaN; or a block of zeros. */
static void input_block(const moe_round *round, int rank, int token, uint64_t block, uint16_t *values) {
    static const uint16_t odd[] = {0x8000, 0x0001, 0x807f, 0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f7f, 0x0080};
    uint64_t seed = random_mix(row_seed(round, rank, token, 0), block), state = seed;
    int style = random_range(&state, 0, 9);
    if (style == 0) {
        random_bytes(seed, values, QUANTIZE_BLOCK * 2);
    } else if (style == 1) {
        memset(values, 0, QUANTIZE_BLOCK * 2);
    } else {
        random_values(seed, values, MOELINK_DTYPE_BF16, QUANTIZE_BLOCK);
    }
    if (style < 4) values[random_range(&state, 0, QUANTIZE_BLOCK - 1)] = odd[random_range(&state, 0, 8)];
}

void moe_input_row(const moe_round *round, int rank, int token, int payload, void *row) {
    if (!round->quantize || payload != 0) {
        moe_payload_row(round, rank, token, payload, row);
        return;
    }
    for (uint64_t block = 0; block < round->row_bytes[0] / QUANTIZE_BLOCK; ++block) {
        uint16_t values[QUANTIZE_BLOCK];
        input_block(round, rank, token, block, values);
        memcpy((unsigned char *)row + block * sizeof(values), values, sizeof(values));
    }
}

uint64_t moe_input_bytes(const moe_round *round, int payload) {
    return round->quantize && payload == 0 ? round->row_bytes[0] * 2 : round->row_bytes[payload];
}

static void quantized_row(const moe_round *round, int rank, int token, int payload, unsigned char *row) {
    uint64_t scale_bytes = round->quantize == MOELINK_DTYPE_F32 ? 4 : 1;
    for (uint64_t block = 0; block < round->row_bytes[0] / QUANTIZE_BLOCK; ++block) {
        uint16_t values[QUANTIZE_BLOCK];
        uint8_t bytes[QUANTIZE_BLOCK], scale[4];
        input_block(round, rank, token, block, values);
        value_quantize_block(values, round->quantize == MOELINK_DTYPE_E8M0, bytes, scale);
        if (payload == 0) {
            memcpy(row + block * QUANTIZE_BLOCK, bytes, sizeof(bytes));
        } else {
            memcpy(row + block * scale_bytes, scale, scale_bytes);
        }
    }
}

void moe_payload_row(const moe_round *round, int rank, int token, int payload, void *row) {
    uint64_t seed = row_seed(round, rank, token, payload);
    if (payload == 0 && round->scale != 0) {
        random_values(seed, row, round->dtype, round->hidden);
    } else if (round->quantize && payload <= 1) {
        quantized_row(round, rank, token, payload, row);
    } else {
        random_bytes(seed, row, round->row_bytes[payload]);
    }
}

void moe_expert_row(const moe_round *round, int source, int token, int rank, void *row) {
    if (round->scale == 0) {
        uint64_t seed = random_mix(random_mix(round->seed + round->rows_seed, 9000 + (uint64_t)rank), (uint64_t)source << 32 | (uint64_t)token);
        random_values(seed, row, round->dtype, round->hidden);
        return;
    }
    moe_payload_row(round, source, token, 0, row);
    if (round->scale == 1) return;
    for (uint64_t i = 0; i < round->hidden; ++i) {
        value_store(row, round->dtype, i, value_load(row, round->dtype, i) * (float)round->scale);
    }
}
