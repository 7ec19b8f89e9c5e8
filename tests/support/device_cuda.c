#include "device_cuda.h"

#include <cuda_runtime_api.h>

#include <stdlib.h>

struct device_graph {
    cudaGraphExec_t exec;
};

static const char *text(cudaError_t error) {
    return error == cudaSuccess ? NULL : cudaGetErrorString(error);
}

int cuda_built(void) {
    return 1;
}

const char *cuda_select(int ordinal) {
    return text(cudaSetDevice(ordinal));
}

const char *cuda_alloc(void **out, uint64_t bytes) {
    return text(cudaMalloc(out, bytes));
}

const char *cuda_free(void *memory) {
    return text(cudaFree(memory));
}

const char *cuda_alloc_pinned(void **out, uint64_t bytes) {
    return text(cudaHostAlloc(out, bytes, cudaHostAllocDefault));
}

const char *cuda_free_pinned(void *memory) {
    return text(cudaFreeHost(memory));
}

/* Copies and fills go over a non-blocking stream of their own: the legacy stream would order itself with every other one, which
 * hides missing order in what is tested. The thread then waits for that stream alone. */
static const char *own_stream(cudaStream_t *out) {
    static __thread cudaStream_t stream;
    static __thread int ordinal = -1;
    int current = -1;
    const char *error = text(cudaGetDevice(&current));
    if (error == NULL && (stream == NULL || ordinal != current)) {
        ordinal = current;
        error = text(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
    *out = stream;
    return error;
}

const char *cuda_copy(void *to, const void *from, uint64_t bytes) {
    cudaStream_t stream = NULL;
    const char *error = own_stream(&stream);
    if (error == NULL) error = text(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
    return error != NULL ? error : text(cudaStreamSynchronize(stream));
}

const char *cuda_copy_async(void *to, const void *from, uint64_t bytes, moelink_stream stream) {
    return text(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
}

const char *cuda_set(void *to, int byte, uint64_t bytes) {
    cudaStream_t stream = NULL;
    const char *error = own_stream(&stream);
    if (error == NULL) error = text(cudaMemsetAsync(to, byte, bytes, stream));
    return error != NULL ? error : text(cudaStreamSynchronize(stream));
}

const char *cuda_free_bytes(uint64_t *out) {
    size_t left = 0, all = 0;
    const char *error = text(cudaMemGetInfo(&left, &all));
    *out = left;
    return error;
}

const char *cuda_stream_create(moelink_stream *out) {
    return text(cudaStreamCreateWithFlags(out, cudaStreamNonBlocking));
}

const char *cuda_stream_destroy(moelink_stream stream) {
    return text(cudaStreamDestroy(stream));
}

const char *cuda_sync(moelink_stream stream) {
    return text(cudaStreamSynchronize(stream));
}

const char *cuda_capture_begin(moelink_stream stream) {
    return text(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
}

const char *cuda_capture_end(moelink_stream stream, device_graph **out) {
    cudaGraph_t graph = NULL;
    const char *error = text(cudaStreamEndCapture(stream, &graph));
    if (error != NULL) return error;
    device_graph *result = malloc(sizeof(*result));
    if (result == NULL) return "out of host memory";
    error = text(cudaGraphInstantiate(&result->exec, graph, 0));
    cudaGraphDestroy(graph);
    if (error != NULL) {
        free(result);
        return error;
    }
    *out = result;
    return NULL;
}

const char *cuda_replay(device_graph *graph, moelink_stream stream) {
    return text(cudaGraphLaunch(graph->exec, stream));
}

const char *cuda_graph_destroy(device_graph *graph) {
    const char *error = text(cudaGraphExecDestroy(graph->exec));
    free(graph);
    return error;
}
