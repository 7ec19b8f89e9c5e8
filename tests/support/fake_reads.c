#define _GNU_SOURCE 1
#include "fake_reads.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct fake_request {
    struct fake_request *next;
    struct fake_card peer;
    uint64_t began; /* peer's counter */
    void *to;
    uint64_t from;
    size_t bytes;
    int waits; /* calls of progress */
    int forgotten;
    enum fake_state state;
};

int fake_is_told(const char *what) {
    const char *told = getenv("MOELINK_FAKE_NETWORK");
    return told != NULL && strcmp(told, what) == 0;
}

int fake_peek(const struct fake_card *peer, void *to, uint64_t from, size_t bytes) {
    struct iovec here = {to, bytes}, there = {(void *)(uintptr_t)from, bytes};
    return process_vm_readv((pid_t)peer->process, &here, 1, &there, 1, 0) == (ssize_t)bytes;
}

struct fake_worker *fake_worker_make(void) { return calloc(1, sizeof(struct fake_worker)); }

void fake_worker_free(struct fake_worker *worker) {
    while (worker->requests != NULL) {
        struct fake_request *next = worker->requests->next;
        if (worker->requests->state == FAKE_UNDER_WAY) memset(worker->requests->to, 0x5a, worker->requests->bytes);
        free(worker->requests);
        worker->requests = next;
    }
    free(worker);
}

struct fake_card fake_worker_card(const struct fake_worker *worker) {
    const struct fake_card card = {getpid(), (uint64_t)(uintptr_t)&worker->progressed, fake_is_told("deaf")};
    return card;
}

static void advance(struct fake_request *request) {
    if (request->state != FAKE_UNDER_WAY || fake_is_told("stuck") || request->waits-- > 0) return;
    if (fake_is_told("lost")) {
        request->state = FAKE_FAILED;
        return;
    }
    uint64_t progressed = request->began + 1;
    const int asks = request->peer.deaf || fake_is_told("cpu") || fake_is_told("slow") || fake_is_told("deaf");
    if (asks && !fake_peek(&request->peer, &progressed, request->peer.progressed, sizeof(progressed))) progressed = 0;
    if (progressed == request->began) return;
    request->state = fake_peek(&request->peer, request->to, request->from, request->bytes) ? FAKE_CAME : FAKE_FAILED;
    if (fake_is_told("wrong")) ((unsigned char *)request->to)[request->bytes / 2] ^= 1;
}

void fake_worker_progress(struct fake_worker *worker) {
    if (fake_is_told("slow")) usleep((useconds_t)(((uint64_t)getpid() + worker->progressed) * 7 % 5 * 2000));
    ++worker->progressed;
    for (struct fake_request **at = &worker->requests; *at != NULL;) {
        struct fake_request *request = *at;
        advance(request);
        if (request->state != FAKE_UNDER_WAY && request->forgotten) {
            *at = request->next;
            free(request);
        } else {
            at = &request->next;
        }
    }
}

struct fake_request *fake_read(struct fake_worker *worker, const struct fake_card *peer, void *to, uint64_t from, size_t bytes) {
    if (fake_is_told("dies")) raise(SIGKILL);
    struct fake_request *request = calloc(1, sizeof(*request));
    request->peer = *peer;
    request->to = to;
    request->from = from;
    request->bytes = bytes;
    request->waits = (int)(++worker->begun * 7 % 13); /* not in the order in which they began */
    if (!fake_peek(peer, &request->began, peer->progressed, sizeof(request->began))) request->began = UINT64_MAX - 1;
    request->next = worker->requests;
    worker->requests = request;
    return request;
}

enum fake_state fake_request_state(const struct fake_request *request) { return request->state; }

void fake_request_forget(struct fake_request *request) { request->forgotten = 1; }
