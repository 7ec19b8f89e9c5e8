#include "exchange.h"

#include "device.h"
#include "values.h"

#include <stdlib.h>
#include <string.h>

enum { BETWEEN = 0x3d };

static unsigned char *row_at(const exchange *layer, unsigned char *memory, int tensor, int slot, uint64_t row) {
    const moelink_eplb_tensor *t = &layer->tensors[tensor];
    uint64_t offset = (uint64_t)((unsigned char *)t->base - layer->memory);
    return memory + offset + (uint64_t)slot * t->slot_stride + row * t->row_stride;
}

void exchange_open(exchange *layer, rank_context *ctx, int slots, uint64_t wide) {
    const moelink_eplb_tensor shapes[EXCHANGE_TENSORS] = {{NULL, 0, 6, 32, 32}, {NULL, 0, 5, 7, 24}, {NULL, 0, 1, wide, wide}, {NULL, 0, 1, 1, 1}};
    memset(layer, 0, sizeof(*layer));
    layer->ctx = ctx;
    layer->slots = slots;
    uint64_t offsets[EXCHANGE_TENSORS];
    for (int t = 0; t < EXCHANGE_TENSORS; ++t) {
        layer->tensors[t] = shapes[t];
        layer->tensors[t].slot_stride = shapes[t].rows * shapes[t].row_stride + (uint64_t)(3 * t);
        offsets[t] = layer->bytes;
        layer->bytes += (layer->tensors[t].slot_stride * (uint64_t)slots + 255) / 256 * 256;
    }
    layer->memory = device_alloc(ctx, layer->bytes);
    layer->image = malloc(layer->bytes);
    for (int t = 0; t < EXCHANGE_TENSORS; ++t) layer->tensors[t].base = layer->memory + offsets[t];
}

void exchange_close(exchange *layer) {
    device_free(layer->ctx, layer->memory);
    free(layer->image);
}

static void imagine(exchange *layer, const int32_t *map) {
    memset(layer->image, BETWEEN, layer->bytes);
    for (int slot = 0; slot < layer->slots; ++slot) {
        int32_t expert = map[layer->ctx->rank * layer->slots + slot];
        for (int t = 0; t < EXCHANGE_TENSORS; ++t) {
            for (uint64_t row = 0; row < layer->tensors[t].rows; ++row) {
                unsigned char *at = row_at(layer, layer->image, t, slot, row);
                uint64_t seed = random_mix(layer->ctx->seed, ((uint64_t)expert * EXCHANGE_TENSORS + (uint64_t)t) * 16 + row);
                if (expert >= 0) random_bytes(seed, at, layer->tensors[t].row_bytes);
                if (expert < 0) memset(at, EXCHANGE_EMPTY, layer->tensors[t].row_bytes);
            }
        }
    }
}

void exchange_write(exchange *layer, const int32_t *map) {
    imagine(layer, map);
    device_copy(layer->ctx, layer->memory, layer->image, layer->bytes);
}

void exchange_check(exchange *layer, const int32_t *map, const char *when) {
    imagine(layer, map);
    unsigned char *got = malloc(layer->bytes);
    device_copy(layer->ctx, got, layer->memory, layer->bytes);
    uint64_t wrong = 0;
    while (wrong < layer->bytes && got[wrong] == layer->image[wrong]) ++wrong;
    unsigned byte = wrong < layer->bytes ? got[wrong] : 0;
    free(got);
    if (wrong < layer->bytes) {
        RANK_FAIL(layer->ctx, "%s: byte %llu of the layer is %#x, not %#x", when, (unsigned long long)wrong, byte, layer->image[wrong]);
    }
}

void exchange_register(exchange *layer, moelink_eplb_comm *comm, int32_t number) {
    RANK_OK(layer->ctx, moelink_eplb_comm_register(comm, number, layer->tensors, EXCHANGE_TENSORS, layer->slots));
}

static void rows_of(exchange *layer, int slot, moelink_rows *rows) {
    for (int t = 0; t < EXCHANGE_TENSORS; ++t) {
        rows[t] = (moelink_rows){row_at(layer, layer->memory, t, slot, 0), layer->tensors[t].row_bytes, layer->tensors[t].row_stride,
                                 MOELINK_DTYPE_NONE, 0};
    }
}

/* First slot of a rank that holds the expert, or -1. */
static int slot_on(const int32_t *map, int slots, int rank, int32_t expert) {
    for (int slot = 0; slot < slots; ++slot) {
        if (map[rank * slots + slot] == expert) return slot;
    }
    return -1;
}

static int source_of(const int32_t *map, int slots, int ranks, int to, int32_t expert) {
    if (slot_on(map, slots, to, expert) >= 0) return to;
    for (int rank = 0; rank < ranks; ++rank) {
        if (slot_on(map, slots, rank, expert) >= 0) return rank;
    }
    return -1;
}

void exchange_queue(exchange *layer, moelink_eplb_comm *comm, int32_t number, const int32_t *from, const int32_t *to) {
    rank_context *ctx = layer->ctx;
    const int slots = layer->slots;
    moelink_rows rows[EXCHANGE_TENSORS];
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, from, ctx->size * slots, number));
    for (int slot = 0; slot < ctx->size * slots; ++slot) {
        if (to[slot] == from[slot] || to[slot] < 0) continue;
        int source = source_of(from, slots, ctx->size, slot / slots, to[slot]);
        if (source == ctx->rank) {
            rows_of(layer, slot_on(from, slots, source, to[slot]), rows);
            RANK_OK(ctx, moelink_eplb_comm_add_send(comm, rows, EXCHANGE_TENSORS, slot / slots, to[slot]));
        }
        if (slot / slots == ctx->rank) {
            rows_of(layer, slot % slots, rows);
            RANK_OK(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, source, to[slot]));
        }
    }
}

void exchange_draw(uint64_t *state, int ranks, int slots, int experts, int32_t *map) {
    /* Experts in turn over the slots put no expert twice on a rank; exchanges that keep it so mix them. */
    for (int i = 0; i < ranks * slots; ++i) map[i] = i % experts;
    for (int i = 0; i < 8 * ranks * slots; ++i) {
        int a = random_range(state, 0, ranks * slots - 1);
        int b = random_range(state, 0, ranks * slots - 1);
        if (a / slots != b / slots && (slot_on(map, slots, a / slots, map[b]) >= 0 || slot_on(map, slots, b / slots, map[a]) >= 0)) continue;
        int32_t kept = map[a];
        map[a] = map[b];
        map[b] = kept;
    }
}
