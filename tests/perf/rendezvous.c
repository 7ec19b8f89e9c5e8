/* Times how long N ranks on this host (processes) take to become a group, from the first fork to the last rank's return from
 * moelink_group_create.
 *
 *   perf_rendezvous [RANKS [ROUNDS]]      default: 256 ranks, 3 rounds
 *
 * Prints one line a round and the median; fails only when a rank does. */
#include <moelink/group.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { barriers = 10 };

struct times {
    double connected; /* [s] */
    double barrier;   /* [s] one barrier, mean */
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, moelink_last_error());
    return 1;
}

static int be_rank(const moelink_unique_id *id, int rank, int size, struct times *times) {
    moelink_group_params params = MOELINK_GROUP_PARAMS_INIT;
    params.rank = rank;
    params.size = size;
    params.device = MOELINK_DEVICE_HOST;
    params.timeout_ns = 60000000000u;
    moelink_group *group = NULL;
    if (moelink_group_create(id, &params, &group) != MOELINK_OK) return failed("create");
    times->connected = now();
    int bad = 0;
    if (moelink_group_barrier(group) != MOELINK_OK) bad = failed("barrier");
    double start = now();
    for (int i = 0; i < barriers && !bad; ++i) {
        if (moelink_group_barrier(group) != MOELINK_OK) bad = failed("barrier");
    }
    times->barrier = (now() - start) / barriers;
    if (!bad && moelink_group_finalize(group) != MOELINK_OK) bad = failed("finalize");
    moelink_group_destroy(group);
    return bad;
}

/* The server lives in a process of its own, as a launcher would have it: a process that forks ranks must have one thread. */
static int serve(int size, int to_parent, int until) {
    moelink_unique_id id;
    moelink_rendezvous *rendezvous = NULL;
    if (moelink_rendezvous_create(NULL, size, &rendezvous, &id) != MOELINK_OK) return failed("rendezvous");
    if (write(to_parent, &id, sizeof id) != (ssize_t)sizeof id) return 1;
    char end;
    while (read(until, &end, 1) > 0) {
    }
    moelink_rendezvous_destroy(rendezvous);
    return 0;
}

static int run(int size, struct times *times, double *connected, double *barrier) {
    int ids[2];
    int ends[2];
    if (pipe(ids) != 0 || pipe(ends) != 0) return 1;
    pid_t server = fork();
    if (server == 0) {
        close(ids[0]);
        close(ends[1]);
        _exit(serve(size, ids[1], ends[0]));
    }
    close(ids[1]);
    close(ends[0]);
    moelink_unique_id id;
    int bad = read(ids[0], &id, sizeof id) != (ssize_t)sizeof id;
    close(ids[0]);

    double start = now();
    int started = 0;
    for (; !bad && started < size; ++started) {
        pid_t child = fork();
        if (child == 0) {
            close(ends[1]);
            _exit(be_rank(&id, started, size, &times[started]));
        }
        if (child < 0) bad = 1;
    }
    int running = started;
    while (running > 0) {
        int status = 0;
        pid_t child = wait(&status);
        if (child < 0) break;
        if (child != server) --running;
        if (status != 0) bad = 1;
    }
    close(ends[1]);
    waitpid(server, NULL, 0);
    *connected = 0;
    *barrier = 0;
    for (int i = 0; i < started; ++i) {
        if (times[i].connected - start > *connected) *connected = times[i].connected - start;
        if (times[i].barrier > *barrier) *barrier = times[i].barrier;
    }
    return bad;
}

static int smaller_first(const void *a, const void *b) {
    double left = *(const double *)a;
    double right = *(const double *)b;
    return left < right ? -1 : left > right;
}

int main(int count, char **words) {
    int size = count > 1 ? atoi(words[1]) : 256;
    int rounds = count > 2 ? atoi(words[2]) : 3;
    if (size < 1 || size > MOELINK_GROUP_MAX_RANKS || rounds < 1 || rounds > 100) {
        fprintf(stderr, "usage: %s [RANKS (1 .. %d) [ROUNDS (1 .. 100)]]\n", words[0], (int)MOELINK_GROUP_MAX_RANKS);
        return 2;
    }
    size_t bytes = sizeof(struct times) * (size_t)size;
    struct times *times = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (times == MAP_FAILED) return 1;
    double seconds[100];
    for (int i = 0; i < rounds; ++i) {
        double barrier = 0;
        if (run(size, times, &seconds[i], &barrier) != 0) {
            fprintf(stderr, "round %d failed\n", i);
            return 1;
        }
        printf("%d ranks connected in %.3f s; one barrier %.0f us\n", size, seconds[i], barrier * 1e6);
        fflush(stdout);
    }
    qsort(seconds, (size_t)rounds, sizeof seconds[0], smaller_first);
    printf("median of %d rounds: %.3f s\n", rounds, seconds[rounds / 2]);
    return 0;
}
