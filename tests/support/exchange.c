#include "exchange.h"

#include <stdlib.h>
#include <string.h>

static uint64_t round_up(uint64_t value) {
    return (value + 63) / 64 * 64;
}

exchange_layer exchange_make(rank_context *ctx, int number, int slots, uint64_t scale, int place) {
    exchange_layer layer;
    memset(&layer, 0, sizeof(layer));
    layer.number = number;
    layer.slots = slots;
    layer.scale = scale;
    const uint64_t count = (uint64_t)slots;
    moelink_eplb_tensor *tensors = layer.tensors;
    tensors[0] = (moelink_eplb_tensor){NULL, 0, scale, 96, 0};
    tensors[1] = (moelink_eplb_tensor){NULL, 5 * 40 + 24, 5, 24, 40};
    tensors[2] = (moelink_eplb_tensor){NULL, 0, 1, 7, 0};
    tensors[3] = (moelink_eplb_tensor){NULL, 2, 9, 2, 2 * (count > 0 ? count : 1)};
    const uint64_t bytes[EXCHANGE_TENSORS] = {count * scale * 96, count * 224, count * 7, count * 18};
    uint64_t at[EXCHANGE_TENSORS];
    for (int i = 0; i < EXCHANGE_TENSORS; ++i) {
        at[i] = layer.bytes + 64;
        layer.bytes = at[i] + round_up(bytes[i]);
    }
    layer.bytes += 64;
    layer.host = malloc(layer.bytes);
    RANK_CHECK(ctx, layer.host != NULL);
    if (place == EXCHANGE_MEMORY) {
        moelink_memory_params params = MOELINK_MEMORY_PARAMS_INIT;
        void *mine = NULL;
        uint64_t all[RANKS_MAX];
        RANK_OK(ctx, moelink_group_allgather(ctx->group, &layer.bytes, all, sizeof(layer.bytes)));
        for (int rank = 0; rank < ctx->size; ++rank) params.bytes = all[rank] > params.bytes ? all[rank] : params.bytes;
        RANK_OK(ctx, moelink_memory_create(ctx->group, &params, &layer.symmetric));
        RANK_OK(ctx, moelink_memory_peer(layer.symmetric, ctx->rank, &mine));
        layer.memory = mine;
    } else {
        layer.memory = device_alloc(ctx, layer.bytes);
    }
    for (int i = 0; i < EXCHANGE_TENSORS; ++i) tensors[i].base = layer.memory + at[i];
    return layer;
}

void exchange_free(rank_context *ctx, exchange_layer *layer) {
    free(layer->host);
    if (layer->symmetric != NULL) {
        moelink_memory_destroy(layer->symmetric);
    } else {
        device_free(ctx, layer->memory);
    }
    memset(layer, 0, sizeof(*layer));
}

static unsigned char byte_of(const exchange_layer *layer, int32_t expert, int tensor, uint64_t index) {
    return (unsigned char)random_mix((uint64_t)(expert + 2) * 1000003 + (uint64_t)layer->number, (uint64_t)tensor << 40 | index);
}

/* One slot's bytes in an image of the memory. */
static unsigned char *in_image(const exchange_layer *layer, unsigned char *image, int tensor, int slot, uint64_t row) {
    const moelink_eplb_tensor *t = &layer->tensors[tensor];
    const uint64_t row_stride = t->row_stride != 0 ? t->row_stride : t->row_bytes;
    const uint64_t slot_stride = t->slot_stride != 0 ? t->slot_stride : t->rows * row_stride;
    return image + ((unsigned char *)t->base - layer->memory) + (uint64_t)slot * slot_stride + row * row_stride;
}

static void write_slot(const exchange_layer *layer, unsigned char *image, int slot, int32_t expert) {
    for (int tensor = 0; tensor < EXCHANGE_TENSORS; ++tensor) {
        const moelink_eplb_tensor *t = &layer->tensors[tensor];
        for (uint64_t row = 0; row < t->rows; ++row) {
            unsigned char *at = in_image(layer, image, tensor, slot, row);
            for (uint64_t i = 0; i < t->row_bytes; ++i) at[i] = byte_of(layer, expert, tensor, row * t->row_bytes + i);
        }
    }
}

static int holds(const exchange_layer *layer, unsigned char *image, int slot, int32_t expert) {
    for (int tensor = 0; tensor < EXCHANGE_TENSORS; ++tensor) {
        const moelink_eplb_tensor *t = &layer->tensors[tensor];
        for (uint64_t row = 0; row < t->rows; ++row) {
            const unsigned char *at = in_image(layer, image, tensor, slot, row);
            for (uint64_t i = 0; i < t->row_bytes; ++i) {
                if (at[i] != byte_of(layer, expert, tensor, row * t->row_bytes + i)) return 0;
            }
        }
    }
    return 1;
}

void exchange_fill(rank_context *ctx, exchange_layer *layer, const int32_t *experts) {
    memset(layer->host, EXCHANGE_PADDING, layer->bytes);
    for (int slot = 0; slot < layer->slots; ++slot) write_slot(layer, layer->host, slot, experts[slot]);
    device_copy(ctx, layer->memory, layer->host, layer->bytes);
}

void exchange_check(rank_context *ctx, exchange_layer *layer, const int32_t *experts) {
    device_copy(ctx, layer->host, layer->memory, layer->bytes);
    for (int slot = 0; slot < layer->slots; ++slot) {
        if (!holds(layer, layer->host, slot, experts[slot])) {
            RANK_FAIL(ctx, "slot %d of layer %d does not hold expert %d", slot, layer->number, experts[slot]);
        }
    }
    unsigned char *wanted = malloc(layer->bytes);
    memset(wanted, EXCHANGE_PADDING, layer->bytes);
    for (int slot = 0; slot < layer->slots; ++slot) write_slot(layer, wanted, slot, experts[slot]);
    const int same = memcmp(wanted, layer->host, layer->bytes) == 0;
    free(wanted);
    RANK_CHECK(ctx, same); /* padding too */
}

int exchange_which(rank_context *ctx, exchange_layer *layer, const int32_t *one, const int32_t *other) {
    int second = 0;
    device_copy(ctx, layer->host, layer->memory, layer->bytes);
    for (int slot = 0; slot < layer->slots; ++slot) {
        const int is_other = holds(layer, layer->host, slot, other[slot]);
        if (!is_other && !holds(layer, layer->host, slot, one[slot])) return -2 - slot;
        if (is_other && one[slot] != other[slot]) ++second;
    }
    return second;
}

void exchange_rows(const exchange_layer *layer, int slot, moelink_rows *rows) {
    for (int tensor = 0; tensor < EXCHANGE_TENSORS; ++tensor) {
        const moelink_eplb_tensor *t = &layer->tensors[tensor];
        rows[tensor] = (moelink_rows){in_image(layer, layer->memory, tensor, slot, 0), t->row_bytes, t->row_stride, MOELINK_DTYPE_NONE, 0};
    }
}

uint64_t exchange_expert_bytes(const exchange_layer *layer) {
    uint64_t bytes = 0;
    for (int tensor = 0; tensor < EXCHANGE_TENSORS; ++tensor) bytes += layer->tensors[tensor].rows * layer->tensors[tensor].row_bytes;
    return bytes;
}

uint64_t exchange_staged_bytes(const exchange_layer *layer) {
    uint64_t bytes = 0;
    for (int tensor = 0; tensor < EXCHANGE_TENSORS; ++tensor) {
        bytes += (layer->tensors[tensor].rows * layer->tensors[tensor].row_bytes + 15) / 16 * 16;
    }
    return (bytes + 127) / 128 * 128;
}

void exchange_map(uint64_t seed, int ranks, int slots, int experts, int32_t *map) {
    uint64_t random = seed;
    const int total = ranks * slots;
    for (int i = 0; i < total; ++i) {
        map[i] = i < experts ? i : random_chance(&random, 20) ? -1 : random_range(&random, 0, experts - 1);
    }
    for (int i = total - 1; i > 0; --i) {
        const int other = random_range(&random, 0, i);
        const int32_t kept = map[i];
        map[i] = map[other];
        map[other] = kept;
    }
}

static int slot_of(const int32_t *experts, int slots, int32_t expert) {
    for (int slot = 0; slot < slots; ++slot) {
        if (experts[slot] == expert) return slot;
    }
    return -1;
}

/* The source of an expert for a receiver: its holders take turns. */
static int source_of(const int32_t *from, int ranks, int slots, int32_t expert, int receiver) {
    int holders[RANKS_MAX], count = 0;
    for (int rank = 0; rank < ranks; ++rank) {
        if (slot_of(from + rank * slots, slots, expert) >= 0) holders[count++] = rank;
    }
    return count == 0 ? -1 : holders[receiver % count];
}

int exchange_queue(rank_context *ctx, moelink_eplb_comm *comm, const exchange_layer *layer, const int32_t *from, const int32_t *to) {
    const int slots = layer->slots;
    int receives = 0;
    moelink_rows rows[EXCHANGE_TENSORS];
    for (int receiver = 0; receiver < ctx->size; ++receiver) {
        const int32_t *have = from + receiver * slots, *want = to + receiver * slots;
        for (int slot = 0; slot < slots; ++slot) {
            const int32_t expert = want[slot];
            if (expert < 0 || slot_of(have, slots, expert) >= 0 || slot_of(want, slot, expert) >= 0) continue;
            const int source = source_of(from, ctx->size, slots, expert, receiver);
            if (source == ctx->rank && expert % 2 == 0) {
                RANK_OK(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, receiver, expert));
            } else if (source == ctx->rank) {
                exchange_rows(layer, slot_of(from + source * slots, slots, expert), rows);
                RANK_OK(ctx, moelink_eplb_comm_add_send(comm, rows, EXCHANGE_TENSORS, receiver, expert));
            }
            if (receiver == ctx->rank) {
                exchange_rows(layer, slot, rows);
                RANK_OK(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, source, expert));
                ++receives;
            }
        }
    }
    return receives;
}

void exchange_settle(rank_context *ctx, exchange_layer *layer, const int32_t *from, const int32_t *to, const unsigned char *before) {
    const int slots = layer->slots;
    const int32_t *have = from + ctx->rank * slots, *want = to + ctx->rank * slots;
    unsigned char *image = exchange_copy(ctx, layer);
    unsigned char *old = malloc(layer->bytes);
    memcpy(old, before, layer->bytes);
    for (int slot = 0; slot < slots; ++slot) {
        const int32_t expert = want[slot];
        if (expert < 0 || expert == have[slot]) continue;
        const int own = slot_of(have, slots, expert), first = slot_of(want, slots, expert);
        if (own < 0 && first == slot) continue; /* received */
        unsigned char *source = own >= 0 ? old : image;
        for (int tensor = 0; tensor < EXCHANGE_TENSORS; ++tensor) {
            for (uint64_t row = 0; row < layer->tensors[tensor].rows; ++row) {
                memcpy(in_image(layer, image, tensor, slot, row), in_image(layer, source, tensor, own >= 0 ? own : first, row),
                       layer->tensors[tensor].row_bytes);
            }
        }
    }
    device_copy(ctx, layer->memory, image, layer->bytes);
    free(image);
    free(old);
}

unsigned char *exchange_copy(rank_context *ctx, const exchange_layer *layer) {
    unsigned char *copy = malloc(layer->bytes);
    device_copy(ctx, copy, layer->memory, layer->bytes);
    return copy;
}

void exchange_run(rank_context *ctx, moelink_eplb_comm *comm, exchange_layer *layer, const int32_t *from, const int32_t *to) {
    const int slots = layer->slots;
    int32_t after[EXCHANGE_MAX_SLOTS];
    unsigned char *before = exchange_copy(ctx, layer);
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, from, (int64_t)ctx->size * slots, layer->number));
    exchange_queue(ctx, comm, layer, from, to);
    RANK_OK(ctx, moelink_eplb_comm_execute(comm));
    exchange_settle(ctx, layer, from, to, before);
    free(before);
    for (int slot = 0; slot < slots; ++slot) {
        const int32_t wanted = to[ctx->rank * slots + slot];
        after[slot] = wanted >= 0 ? wanted : from[ctx->rank * slots + slot]; /* nobody writes into a slot that is to be empty */
    }
    exchange_check(ctx, layer, after);
}

void exchange_direct(rank_context *ctx, moelink_eplb_comm *comm, exchange_layer *layer, exchange_layer *landing) {
    int32_t map[EXCHANGE_MAX_SLOTS], empty[EXCHANGE_MAX_SLOTS];
    moelink_rows rows[EXCHANGE_TENSORS];
    for (int rank = 0; rank < ctx->size; ++rank) {
        map[rank] = 10 + rank;
        empty[rank] = -1;
    }
    exchange_fill(ctx, layer, map + ctx->rank);
    exchange_fill(ctx, landing, empty);
    RANK_OK(ctx, moelink_eplb_comm_set_transfer_context(comm, map, ctx->size, layer->number));
    for (int rank = 0; rank < ctx->size; ++rank) {
        RANK_OK(ctx, moelink_eplb_comm_add_send(comm, NULL, 0, rank, 10 + ctx->rank));
        exchange_rows(landing, rank, rows);
        RANK_OK(ctx, moelink_eplb_comm_add_recv(comm, rows, EXCHANGE_TENSORS, rank, 10 + rank));
    }
    RANK_OK(ctx, moelink_eplb_comm_execute(comm));
    exchange_check(ctx, landing, map);
    exchange_check(ctx, layer, map + ctx->rank);
}

moelink_eplb_comm *exchange_comm(rank_context *ctx, int32_t kind, int experts, uint32_t flags) {
    moelink_eplb_comm *comm = NULL;
    moelink_eplb_comm_params params = MOELINK_EPLB_COMM_PARAMS_INIT;
    params.staging_experts = experts;
    params.flags = flags;
    params.chunk_bytes = 4096;
    RANK_OK(ctx, moelink_eplb_comm_create(ctx->group, kind, &comm));
    RANK_OK(ctx, moelink_eplb_comm_init(comm, &params));
    return comm;
}

void exchange_register(rank_context *ctx, moelink_eplb_comm *comm, const exchange_layer *layer) {
    RANK_OK(ctx, moelink_eplb_comm_register(comm, layer->number, layer->tensors, EXCHANGE_TENSORS, layer->slots));
}

int32_t exchange_state(rank_context *ctx, const moelink_eplb_comm *comm) {
    moelink_eplb_comm_info info = MOELINK_EPLB_COMM_INFO_INIT;
    RANK_OK(ctx, moelink_eplb_comm_describe(comm, &info, NULL, 0));
    return info.state;
}

void exchange_two_maps(int ranks, int slots, int32_t *from, int32_t *to) {
    const int total = ranks * slots;
    for (int i = 0; i < total; ++i) from[i] = i;
    for (int i = 0; i < total; ++i) to[i] = from[(i + slots) % total];
}
