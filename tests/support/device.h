/* What a test needs of a device: memory, copies, streams and graphs, on the host device and on CUDA. Functions that take a rank
 * fail that rank when the device refuses. Tests without CUDA in the build link the same names. */
#ifndef MOELINK_TESTS_DEVICE_H
#define MOELINK_TESTS_DEVICE_H

#include "ranks.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Usable GPUs, found in a forked child so that this process never holds a CUDA context. 0 without CUDA in the build. */
int device_gpu_count(void);

/* NULL when tests can run on the device; else why not. */
const char *device_skip_reason(int32_t device);

/* For main of a GPU program: 0 to go on; 77, with the reason printed, to skip. */
int device_skip_main(int32_t device, int gpus_needed);

/* Makes the rank's GPU current on the calling thread; the runner has done so already for a rank's own thread. */
void device_select(rank_context *ctx);

/* malloc, also of 0 bytes; the rank fails when there is no memory. To be freed by free, like what device_download gives: a copy on the
 * host of device memory. */
void *host_memory(rank_context *ctx, uint64_t bytes);
void *device_download(rank_context *ctx, const void *from, uint64_t bytes);

void *device_alloc(rank_context *ctx, uint64_t bytes);
void device_free(rank_context *ctx, void *memory);
/* Any direction between host and device; done on return. */
void device_copy(rank_context *ctx, void *to, const void *from, uint64_t bytes);
/* Stream-ordered; host memory must be from device_alloc_pinned. */
void device_copy_async(rank_context *ctx, void *to, const void *from, uint64_t bytes, moelink_stream stream);
void device_set(rank_context *ctx, void *to, int byte, uint64_t bytes);
void *device_alloc_pinned(rank_context *ctx, uint64_t bytes);
void device_free_pinned(rank_context *ctx, void *memory);
/* Free memory of the rank's GPU [bytes]; 0 on the host device. */
uint64_t device_free_bytes(rank_context *ctx);

moelink_stream device_stream_create(rank_context *ctx);
void device_stream_destroy(rank_context *ctx, moelink_stream stream);
void device_sync(rank_context *ctx, moelink_stream stream);

/* CUDA graphs; only on CUDA. */
typedef struct device_graph device_graph;
void device_capture_begin(rank_context *ctx, moelink_stream stream);
device_graph *device_capture_end(rank_context *ctx, moelink_stream stream);
void device_replay(rank_context *ctx, device_graph *graph, moelink_stream stream);
void device_graph_destroy(rank_context *ctx, device_graph *graph);

/* Device memory between canaries, poisoned inside. */
typedef struct guarded {
    unsigned char *base;
    unsigned char *data;
    uint64_t bytes;
} guarded;

enum { GUARDED_CANARY_BYTES = 256, GUARDED_POISON = 0xA5 };

/* data is `shift` bytes past a 256-byte boundary. 0 bytes is fine: data is then an address that nothing may touch. */
guarded guarded_make(rank_context *ctx, uint64_t bytes, unsigned shift);
void guarded_poison(rank_context *ctx, guarded *buffer);
/* Fails the rank, naming the buffer and the offset, when a canary was overwritten. */
void guarded_check(rank_context *ctx, const guarded *buffer, const char *name);
void guarded_free(rank_context *ctx, guarded *buffer);

#ifdef __cplusplus
}
#endif
#endif
