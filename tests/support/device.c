#define _GNU_SOURCE
#include "device.h"

#include "device_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct probe {
    int done;
    int gpus;
    char reason[512];
};

/* Runs in a child: what it finds is left in shared memory. */
static void look(struct probe *probe) {
    int32_t count = 0;
    moelink_status status = moelink_device_count(&count);
    if (status != MOELINK_OK || count == 0) {
        snprintf(probe->reason, sizeof(probe->reason), "no GPU: %s", moelink_last_error());
        return;
    }
    for (int32_t i = 0; i < count; ++i) {
        moelink_device_info info = MOELINK_DEVICE_INFO_INIT;
        status = moelink_device_describe(i, &info);
        if (status != MOELINK_OK || !info.supported) {
            const char *why = status != MOELINK_OK ? moelink_last_error() : "below 9.0";
            snprintf(probe->reason, sizeof(probe->reason), "GPU %d (%s, compute capability %d) is not supported: %s", i,
                     info.name, info.compute_capability, why);
            return;
        }
    }
    probe->gpus = count;
}

static const struct probe *probe_once(void) {
    static struct probe result;
    if (result.done) return &result;
    result.done = 1;
    if (!cuda_built()) {
        snprintf(result.reason, sizeof(result.reason), "built without CUDA");
        return &result;
    }
    struct probe *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        snprintf(result.reason, sizeof(result.reason), "no shared memory for the probe");
        return &result;
    }
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        look(shared);
        _exit(0);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
        snprintf(shared->reason, sizeof(shared->reason), "the GPU probe ended with wait status 0x%x", (unsigned)status);
        shared->gpus = 0;
    }
    result.gpus = shared->gpus;
    memcpy(result.reason, shared->reason, sizeof(result.reason));
    munmap(shared, sizeof(*shared));
    return &result;
}

int device_gpu_count(void) {
    return probe_once()->gpus;
}

const char *device_skip_reason(int32_t device) {
    if (device != MOELINK_DEVICE_CUDA) return NULL;
    const struct probe *probe = probe_once();
    return probe->gpus > 0 ? NULL : probe->reason;
}

int device_skip_main(int32_t device, int gpus_needed) {
    const char *reason = device_skip_reason(device);
    if (reason == NULL && device_gpu_count() >= gpus_needed) return 0;
    if (reason == NULL && device != MOELINK_DEVICE_CUDA) return 0;
    if (reason != NULL) {
        printf("skipped: %s\n", reason);
    } else {
        printf("skipped: %d GPUs needed, %d found\n", gpus_needed, device_gpu_count());
    }
    return 77;
}

static int on_cuda(const rank_context *ctx) {
    return ctx->device == MOELINK_DEVICE_CUDA;
}

#define CUDA_OR_FAIL(ctx, call)                                                                      \
    do {                                                                                             \
        const char *cuda_error_ = (call);                                                            \
        if (cuda_error_ != NULL) rank_fail((ctx), __FILE__, __LINE__, "%s: %s", #call, cuda_error_); \
    } while (0)

void device_select(rank_context *ctx) {
    if (on_cuda(ctx)) CUDA_OR_FAIL(ctx, cuda_select(ctx->ordinal));
}

void *host_memory(rank_context *ctx, uint64_t bytes) {
    void *memory = malloc(bytes != 0 ? bytes : 1);
    if (memory == NULL) RANK_FAIL(ctx, "no %llu bytes of host memory", (unsigned long long)bytes);
    return memory;
}

void *device_download(rank_context *ctx, const void *from, uint64_t bytes) {
    void *copy = host_memory(ctx, bytes);
    device_copy(ctx, copy, from, bytes);
    return copy;
}

void *device_alloc(rank_context *ctx, uint64_t bytes) {
    void *memory = NULL;
    if (on_cuda(ctx)) {
        CUDA_OR_FAIL(ctx, cuda_alloc(&memory, bytes != 0 ? bytes : 1));
    } else if (posix_memalign(&memory, 256, bytes != 0 ? bytes : 1) != 0) {
        RANK_FAIL(ctx, "no %llu bytes of host memory", (unsigned long long)bytes);
    }
    return memory;
}

void device_free(rank_context *ctx, void *memory) {
    if (memory == NULL) return;
    if (on_cuda(ctx)) {
        CUDA_OR_FAIL(ctx, cuda_free(memory));
    } else {
        free(memory);
    }
}

void device_copy(rank_context *ctx, void *to, const void *from, uint64_t bytes) {
    if (bytes == 0) return;
    if (on_cuda(ctx)) {
        CUDA_OR_FAIL(ctx, cuda_copy(to, from, bytes));
    } else {
        memcpy(to, from, bytes);
    }
}

void device_copy_async(rank_context *ctx, void *to, const void *from, uint64_t bytes, moelink_stream stream) {
    if (bytes == 0) return;
    if (on_cuda(ctx)) {
        CUDA_OR_FAIL(ctx, cuda_copy_async(to, from, bytes, stream));
    } else {
        memcpy(to, from, bytes);
    }
}

void device_set(rank_context *ctx, void *to, int byte, uint64_t bytes) {
    if (bytes == 0) return;
    if (on_cuda(ctx)) {
        CUDA_OR_FAIL(ctx, cuda_set(to, byte, bytes));
    } else {
        memset(to, byte, bytes);
    }
}

void *device_alloc_pinned(rank_context *ctx, uint64_t bytes) {
    void *memory = NULL;
    if (on_cuda(ctx)) {
        CUDA_OR_FAIL(ctx, cuda_alloc_pinned(&memory, bytes != 0 ? bytes : 1));
        return memory;
    }
    return device_alloc(ctx, bytes);
}

void device_free_pinned(rank_context *ctx, void *memory) {
    if (memory == NULL) return;
    if (on_cuda(ctx)) {
        CUDA_OR_FAIL(ctx, cuda_free_pinned(memory));
    } else {
        free(memory);
    }
}

uint64_t device_free_bytes(rank_context *ctx) {
    uint64_t bytes = 0;
    if (on_cuda(ctx)) CUDA_OR_FAIL(ctx, cuda_free_bytes(&bytes));
    return bytes;
}

moelink_stream device_stream_create(rank_context *ctx) {
    moelink_stream stream = NULL;
    if (on_cuda(ctx)) CUDA_OR_FAIL(ctx, cuda_stream_create(&stream));
    return stream;
}

void device_stream_destroy(rank_context *ctx, moelink_stream stream) {
    if (on_cuda(ctx)) CUDA_OR_FAIL(ctx, cuda_stream_destroy(stream));
}

void device_sync(rank_context *ctx, moelink_stream stream) {
    if (on_cuda(ctx)) CUDA_OR_FAIL(ctx, cuda_sync(stream));
}

void device_capture_begin(rank_context *ctx, moelink_stream stream) {
    CUDA_OR_FAIL(ctx, cuda_capture_begin(stream));
}

device_graph *device_capture_end(rank_context *ctx, moelink_stream stream) {
    device_graph *graph = NULL;
    CUDA_OR_FAIL(ctx, cuda_capture_end(stream, &graph));
    return graph;
}

void device_replay(rank_context *ctx, device_graph *graph, moelink_stream stream) {
    CUDA_OR_FAIL(ctx, cuda_replay(graph, stream));
}

void device_graph_destroy(rank_context *ctx, device_graph *graph) {
    if (graph != NULL) CUDA_OR_FAIL(ctx, cuda_graph_destroy(graph));
}
