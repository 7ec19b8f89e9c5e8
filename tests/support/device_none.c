/* Stands in for device_cuda.c in a build without CUDA. */
#include "device_cuda.h"

#include <stddef.h>

static const char no_cuda[] = "built without CUDA";

int cuda_built(void) {
    return 0;
}

const char *cuda_select(int ordinal) {
    (void)ordinal;
    return no_cuda;
}

const char *cuda_alloc(void **out, uint64_t bytes) {
    (void)out;
    (void)bytes;
    return no_cuda;
}

const char *cuda_free(void *memory) {
    (void)memory;
    return no_cuda;
}

const char *cuda_alloc_pinned(void **out, uint64_t bytes) {
    (void)out;
    (void)bytes;
    return no_cuda;
}

const char *cuda_free_pinned(void *memory) {
    (void)memory;
    return no_cuda;
}

const char *cuda_copy(void *to, const void *from, uint64_t bytes) {
    (void)to;
    (void)from;
    (void)bytes;
    return no_cuda;
}

const char *cuda_copy_async(void *to, const void *from, uint64_t bytes, moelink_stream stream) {
    (void)to;
    (void)from;
    (void)bytes;
    (void)stream;
    return no_cuda;
}

const char *cuda_set(void *to, int byte, uint64_t bytes) {
    (void)to;
    (void)byte;
    (void)bytes;
    return no_cuda;
}

const char *cuda_free_bytes(uint64_t *out) {
    (void)out;
    return no_cuda;
}

const char *cuda_stream_create(moelink_stream *out) {
    (void)out;
    return no_cuda;
}

const char *cuda_stream_destroy(moelink_stream stream) {
    (void)stream;
    return no_cuda;
}

const char *cuda_sync(moelink_stream stream) {
    (void)stream;
    return no_cuda;
}

const char *cuda_capture_begin(moelink_stream stream) {
    (void)stream;
    return no_cuda;
}

const char *cuda_capture_end(moelink_stream stream, device_graph **out) {
    (void)stream;
    (void)out;
    return no_cuda;
}

const char *cuda_replay(device_graph *graph, moelink_stream stream) {
    (void)graph;
    (void)stream;
    return no_cuda;
}

const char *cuda_graph_destroy(device_graph *graph) {
    (void)graph;
    return no_cuda;
}
