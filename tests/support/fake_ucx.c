/* UCX for tests, between processes of one host: reads come by process_vm_readv, some calls of progress after they were begun. A rank's
 * MOELINK_FAKE_UCX, which it may change at any time, says what is to go wrong:
 *   cpu     reads come only when the peer makes progress
 *   slow    the same, and progress takes up to 8 ms
 *   wrong   every read brings one wrong byte
 *   stuck   reads never end
 *   lost    reads fail
 *   unmapped  memory is not registered
 *   device  memory is of another kind
 *   unreachable  no endpoint is made */
#define _GNU_SOURCE 1
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <ucp/api/ucp.h>

#define EXPORT __attribute__((visibility("default")))

struct card {
    int64_t process;
    uint64_t progressed; /* address of the worker's counter there */
};

struct request {
    struct request *next;
    struct card peer;
    uint64_t began; /* peer's counter */
    void *to;
    uint64_t from;
    size_t bytes;
    int waits; /* calls of progress */
    int over, forgotten;
    ucs_status_t status;
};

struct worker {
    volatile uint64_t progressed;
    uint64_t begun; /* reads */
    struct request *requests;
};

struct memory {
    void *base;
    size_t bytes;
};

/* Some releases do this when they are loaded. */
__attribute__((constructor)) static void take_signals(void) {
    signal(SIGFPE, SIG_IGN);
}

static int is_told(const char *what) {
    const char *told = getenv("MOELINK_FAKE_UCX");
    return told != NULL && strcmp(told, what) == 0;
}

static int peek(int64_t process, void *to, uint64_t from, size_t bytes) {
    struct iovec here = {to, bytes}, there = {(void *)(uintptr_t)from, bytes};
    return process_vm_readv((pid_t)process, &here, 1, &there, 1, 0) == (ssize_t)bytes;
}

EXPORT const char *ucp_get_version_string(void) { return "0.0.0"; }
EXPORT const char *ucs_status_string(ucs_status_t status) { return status == UCS_OK ? "Success" : "a fake failure"; }

EXPORT ucs_status_t ucp_config_read(const char *prefix, const char *file, ucp_config_t **config) {
    (void)prefix;
    (void)file;
    *config = malloc(1);
    return UCS_OK;
}
EXPORT void ucp_config_release(ucp_config_t *config) { free(config); }

EXPORT ucs_status_t ucp_init_version(unsigned major, unsigned minor, const ucp_params_t *params, const ucp_config_t *config,
                                     ucp_context_h *context) {
    (void)major;
    (void)minor;
    (void)config;
    if (params->features != UCP_FEATURE_RMA) return UCS_ERR_UNSUPPORTED;
    *context = malloc(1);
    return UCS_OK;
}
EXPORT void ucp_cleanup(ucp_context_h context) { free(context); }
EXPORT ucs_status_t ucp_context_query(ucp_context_h context, ucp_context_attr_t *attributes) {
    (void)context;
    attributes->memory_types = UCS_BIT(UCS_MEMORY_TYPE_HOST);
    return UCS_OK;
}

EXPORT ucs_status_t ucp_worker_create(ucp_context_h context, const ucp_worker_params_t *params, ucp_worker_h *worker) {
    (void)context;
    (void)params;
    *worker = calloc(1, sizeof(struct worker));
    return UCS_OK;
}
EXPORT void ucp_worker_destroy(ucp_worker_h handle) {
    struct worker *worker = (struct worker *)handle;
    while (worker->requests != NULL) {
        struct request *next = worker->requests->next;
        free(worker->requests);
        worker->requests = next;
    }
    free(worker);
}
EXPORT ucs_status_t ucp_worker_get_address(ucp_worker_h worker, ucp_address_t **address, size_t *bytes) {
    const struct card card = {getpid(), (uint64_t)(uintptr_t)&((struct worker *)worker)->progressed};
    *bytes = sizeof(card);
    *address = malloc(sizeof(card));
    memcpy(*address, &card, sizeof(card));
    return UCS_OK;
}
EXPORT void ucp_worker_release_address(ucp_worker_h worker, ucp_address_t *address) {
    (void)worker;
    free(address);
}

static void advance(struct request *request) {
    if (request->over || is_told("stuck") || request->waits-- > 0) return;
    if (is_told("lost")) {
        request->status = UCS_ERR_CONNECTION_RESET;
        request->over = 1;
        return;
    }
    uint64_t progressed = request->began + 1;
    if ((is_told("cpu") || is_told("slow")) && !peek(request->peer.process, &progressed, request->peer.progressed, sizeof(progressed))) progressed = 0;
    if (progressed == request->began) return;
    request->status = peek(request->peer.process, request->to, request->from, request->bytes) ? UCS_OK : UCS_ERR_IO_ERROR;
    if (is_told("wrong")) ((unsigned char *)request->to)[request->bytes / 2] ^= 1;
    request->over = 1;
}

EXPORT unsigned ucp_worker_progress(ucp_worker_h handle) {
    struct worker *worker = (struct worker *)handle;
    if (is_told("slow")) usleep((useconds_t)(((uint64_t)getpid() + worker->progressed) * 7 % 5 * 2000));
    ++worker->progressed;
    for (struct request **at = &worker->requests; *at != NULL;) {
        struct request *request = *at;
        advance(request);
        if (request->over && request->forgotten) {
            *at = request->next;
            free(request);
        } else {
            at = &request->next;
        }
    }
    return 0;
}

struct endpoint {
    struct worker *worker;
    struct card peer;
};

EXPORT ucs_status_t ucp_ep_create(ucp_worker_h worker, const ucp_ep_params_t *params, ucp_ep_h *endpoint) {
    static struct endpoint made[64];
    static int count;
    if (is_told("unreachable")) return UCS_ERR_UNREACHABLE;
    struct endpoint *one = &made[count++ % 64]; /* nobody closes endpoints */
    one->worker = (struct worker *)worker;
    memcpy(&one->peer, params->address, sizeof(one->peer));
    *endpoint = (ucp_ep_h)one;
    return UCS_OK;
}
EXPORT void ucp_ep_print_info(ucp_ep_h endpoint, FILE *file) {
    (void)endpoint;
    fprintf(file, "#\n#   lane[0]:  2:fake/host0 md[1] -> md[1] am\n#   lane[1]:  3:fake/host1 md[1]\n");
}

EXPORT ucs_status_t ucp_mem_map(ucp_context_h context, const ucp_mem_map_params_t *params, ucp_mem_h *memory) {
    (void)context;
    if (is_told("unmapped")) return UCS_ERR_IO_ERROR;
    struct memory *made = malloc(sizeof(*made));
    made->base = params->address;
    made->bytes = params->length;
    *memory = (ucp_mem_h)made;
    return UCS_OK;
}
EXPORT ucs_status_t ucp_mem_unmap(ucp_context_h context, ucp_mem_h memory) {
    (void)context;
    free(memory);
    return UCS_OK;
}
EXPORT ucs_status_t ucp_mem_query(const ucp_mem_h memory, ucp_mem_attr_t *attributes) {
    (void)memory;
    attributes->mem_type = is_told("device") ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
    return UCS_OK;
}
EXPORT ucs_status_t ucp_rkey_pack(ucp_context_h context, ucp_mem_h memory, void **key, size_t *bytes) {
    (void)context;
    *bytes = sizeof(struct memory);
    *key = malloc(*bytes);
    memcpy(*key, memory, *bytes);
    return UCS_OK;
}
EXPORT void ucp_rkey_buffer_release(void *key) { free(key); }
EXPORT ucs_status_t ucp_ep_rkey_unpack(ucp_ep_h endpoint, const void *key, ucp_rkey_h *made) {
    (void)endpoint;
    *made = malloc(sizeof(struct memory));
    memcpy(*made, key, sizeof(struct memory));
    return UCS_OK;
}
EXPORT void ucp_rkey_destroy(ucp_rkey_h key) { free(key); }

EXPORT ucs_status_ptr_t ucp_get_nbx(ucp_ep_h handle, void *to, size_t bytes, uint64_t from, ucp_rkey_h key,
                                    const ucp_request_param_t *param) {
    const struct endpoint *endpoint = (const struct endpoint *)handle;
    const struct memory *memory = (const struct memory *)key;
    const uint64_t offset = from - (uint64_t)(uintptr_t)memory->base;
    (void)param;
    /* What was not registered is not read. */
    if (offset > memory->bytes || bytes > memory->bytes - offset) return (ucs_status_ptr_t)(intptr_t)UCS_ERR_INVALID_ADDR;
    struct request *request = calloc(1, sizeof(*request));
    request->peer = endpoint->peer;
    request->to = to;
    request->from = from;
    request->bytes = bytes;
    request->waits = (int)(++endpoint->worker->begun * 7 % 13); /* not in the order in which they began */
    if (!peek(request->peer.process, &request->began, request->peer.progressed, sizeof(request->began))) request->began = UINT64_MAX - 1;
    request->next = endpoint->worker->requests;
    endpoint->worker->requests = request;
    return request;
}
EXPORT ucs_status_t ucp_request_check_status(void *request) {
    const struct request *one = request;
    return one->over ? one->status : UCS_INPROGRESS;
}
EXPORT void ucp_request_free(void *request) { ((struct request *)request)->forgotten = 1; }
