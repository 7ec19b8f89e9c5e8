/* UCX for tests, between processes of one host (fake_reads.h). It knows these words too:
 *   no-ucx       it cannot be initialised
 *   unmapped     memory is not registered
 *   device       memory is of another kind
 *   unreachable  no endpoint is made */
#include "fake_reads.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ucp/api/ucp.h>

struct memory {
    void *base;
    size_t bytes;
};

/* Some releases do this when they are loaded. */
__attribute__((constructor)) static void take_signals(void) {
    signal(SIGFPE, SIG_IGN);
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
    if (fake_is_told("no-ucx")) return UCS_ERR_NO_DEVICE;
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
    *worker = (ucp_worker_h)fake_worker_make();
    return UCS_OK;
}
EXPORT void ucp_worker_destroy(ucp_worker_h worker) { fake_worker_free((struct fake_worker *)worker); }
EXPORT ucs_status_t ucp_worker_get_address(ucp_worker_h worker, ucp_address_t **address, size_t *bytes) {
    const struct fake_card card = fake_worker_card((const struct fake_worker *)worker);
    *bytes = sizeof(card);
    *address = malloc(sizeof(card));
    memcpy(*address, &card, sizeof(card));
    return UCS_OK;
}
EXPORT void ucp_worker_release_address(ucp_worker_h worker, ucp_address_t *address) {
    (void)worker;
    free(address);
}

EXPORT unsigned ucp_worker_progress(ucp_worker_h worker) {
    fake_worker_progress((struct fake_worker *)worker);
    return 0;
}

struct endpoint {
    struct fake_worker *worker;
    struct fake_card peer;
};

EXPORT ucs_status_t ucp_ep_create(ucp_worker_h worker, const ucp_ep_params_t *params, ucp_ep_h *endpoint) {
    static struct endpoint made[64];
    static int count;
    if (fake_is_told("unreachable")) return UCS_ERR_UNREACHABLE;
    struct endpoint *one = &made[count++ % 64]; /* nobody closes endpoints */
    one->worker = (struct fake_worker *)worker;
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
    if (fake_is_told("unmapped")) return UCS_ERR_IO_ERROR;
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
    attributes->mem_type = fake_is_told("device") ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
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
    return fake_read(endpoint->worker, &endpoint->peer, to, from, bytes);
}
EXPORT ucs_status_t ucp_request_check_status(void *request) {
    const enum fake_state state = fake_request_state(request);
    return state == FAKE_UNDER_WAY ? UCS_INPROGRESS : state == FAKE_CAME ? UCS_OK : UCS_ERR_CONNECTION_RESET;
}
EXPORT void ucp_request_free(void *request) { fake_request_forget(request); }
