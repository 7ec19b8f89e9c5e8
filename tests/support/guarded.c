#include "device.h"

#include <stdlib.h>
#include <string.h>

enum { CANARY = 0xC3 };

guarded guarded_make(rank_context *ctx, uint64_t bytes, unsigned shift) {
    guarded buffer;
    buffer.bytes = bytes;
    uint64_t before = GUARDED_CANARY_BYTES + shift;
    uint64_t all = before + bytes + GUARDED_CANARY_BYTES;
    buffer.base = device_alloc(ctx, all);
    buffer.data = buffer.base + before;
    device_set(ctx, buffer.base, CANARY, all);
    guarded_poison(ctx, &buffer);
    return buffer;
}

void guarded_poison(rank_context *ctx, guarded *buffer) {
    device_set(ctx, buffer->data, GUARDED_POISON, buffer->bytes);
}

static void check_canary(rank_context *ctx, const unsigned char *at, uint64_t bytes, const unsigned char *data,
                         const char *name) {
    unsigned char *copy = malloc(bytes);
    if (copy == NULL) RANK_FAIL(ctx, "out of memory");
    device_copy(ctx, copy, at, bytes);
    uint64_t bad = 0;
    while (bad < bytes && copy[bad] == CANARY) ++bad;
    unsigned found = bad < bytes ? copy[bad] : 0;
    free(copy);
    if (bad < bytes) {
        long long offset = (long long)(at + bad - data);
        RANK_FAIL(ctx, "%s: canary overwritten at offset %lld of the buffer (0x%02x)", name, offset, found);
    }
}

void guarded_check(rank_context *ctx, const guarded *buffer, const char *name) {
    if (buffer->base == NULL) return;
    check_canary(ctx, buffer->base, (uint64_t)(buffer->data - buffer->base), buffer->data, name);
    check_canary(ctx, buffer->data + buffer->bytes, GUARDED_CANARY_BYTES, buffer->data, name);
}

void guarded_free(rank_context *ctx, guarded *buffer) {
    device_free(ctx, buffer->base);
    memset(buffer, 0, sizeof(*buffer));
}
