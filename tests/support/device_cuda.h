/* Inside of device.c: the CUDA runtime behind plain C. Each call returns NULL, or the text of CUDA's error. */
#ifndef MOELINK_TESTS_DEVICE_CUDA_H
#define MOELINK_TESTS_DEVICE_CUDA_H

#include "device.h"

int cuda_built(void);
const char *cuda_select(int ordinal);
const char *cuda_alloc(void **out, uint64_t bytes);
const char *cuda_free(void *memory);
const char *cuda_alloc_pinned(void **out, uint64_t bytes);
const char *cuda_free_pinned(void *memory);
const char *cuda_copy(void *to, const void *from, uint64_t bytes);
const char *cuda_copy_async(void *to, const void *from, uint64_t bytes, moelink_stream stream);
const char *cuda_set(void *to, int byte, uint64_t bytes);
const char *cuda_free_bytes(uint64_t *out);
const char *cuda_stream_create(moelink_stream *out);
const char *cuda_stream_destroy(moelink_stream stream);
const char *cuda_sync(moelink_stream stream);
const char *cuda_capture_begin(moelink_stream stream);
const char *cuda_capture_end(moelink_stream stream, device_graph **out);
const char *cuda_replay(device_graph *graph, moelink_stream stream);
const char *cuda_graph_destroy(device_graph *graph);

#endif
