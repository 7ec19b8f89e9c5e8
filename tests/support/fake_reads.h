/* Reads between processes of one host, by process_vm_readv, some calls of progress after they were begun: what the networks for tests
 * (fake_ucx.c, fake_nixl.c) have in common. A rank's MOELINK_FAKE_NETWORK, which it may change at any time, says what is to go wrong:
 *   cpu     reads come only when the peer makes progress
 *   slow    the same, and progress takes up to 8 ms
 *   deaf    those from and to a rank that was told so when its network was made come as with cpu
 *   wrong   every read brings one wrong byte
 *   stuck   reads never end
 *   lost    reads fail
 *   dies    the process is killed when it begins to read
 * The networks know more words. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EXPORT __attribute__((visibility("default")))

/* Where a worker's counter of progress is. */
struct fake_card {
    int64_t process;
    uint64_t progressed;
    int64_t deaf;
};

struct fake_request;

struct fake_worker {
    volatile uint64_t progressed;
    uint64_t begun; /* reads */
    struct fake_request *requests;
};

enum fake_state { FAKE_UNDER_WAY, FAKE_CAME, FAKE_FAILED };

int fake_is_told(const char *what);
/* Bytes of the process that the card is of. */
int fake_peek(const struct fake_card *peer, void *to, uint64_t from, size_t bytes);
struct fake_worker *fake_worker_make(void);
/* What is under way lands until then, whatever that is. */
void fake_worker_free(struct fake_worker *worker);
struct fake_card fake_worker_card(const struct fake_worker *worker);
void fake_worker_progress(struct fake_worker *worker);
struct fake_request *fake_read(struct fake_worker *worker, const struct fake_card *peer, void *to, uint64_t from, size_t bytes);
enum fake_state fake_request_state(const struct fake_request *request);
/* Freed once it is over. */
void fake_request_forget(struct fake_request *request);

#ifdef __cplusplus
}
#endif
