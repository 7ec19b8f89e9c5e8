#define _GNU_SOURCE
#include "ranks_report.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct message {
    int32_t rank;
    int32_t kind;
    uint32_t bytes;
    char text[REPORT_TEXT_MAX];
};
enum { MESSAGE_HEAD = 12 };

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

void report_send(int pipe, int rank, int kind, const char *format, va_list args) {
    struct message message;
    message.rank = rank;
    message.kind = kind;
    int length = vsnprintf(message.text, sizeof(message.text), format, args);
    uint32_t most = (uint32_t)sizeof(message.text) - 1u;
    message.bytes = length < 0 ? 0u : (uint32_t)length < most ? (uint32_t)length : most;
    size_t bytes = MESSAGE_HEAD + message.bytes;
    while (write(pipe, &message, bytes) < 0 && errno == EINTR) continue;
}

void report_sendf(int pipe, int rank, int kind, const char *format, ...) {
    va_list args;
    va_start(args, format);
    report_send(pipe, rank, kind, format, args);
    va_end(args);
}

void report_start(struct report *report, const rank_options *options, int deadline_ms) {
    memset(report, 0, sizeof(*report));
    report->options = options;
    report->deadline_ms = deadline_ms;
    report->stream = open_memstream(&report->text, &report->length);
}

void report_setup_failed(struct report *report, const char *why) {
    report->setup_failed = 1;
    fprintf(report->stream, "set-up of the ranks failed: %s\n", why);
}

void report_add_child(struct report *report, pid_t pid) {
    report->child[report->children++].pid = pid;
}

static void take(struct report *report, const struct message *message) {
    if (message->rank < 0 || message->rank >= report->options->size) return;
    struct report_rank *rank = &report->rank[message->rank];
    if (message->kind == REPORT_ENDED) {
        rank->ended = 1;
        return;
    }
    if (message->kind == REPORT_FAILED) rank->failed = 1;
    const char *what = message->kind == REPORT_NOTE ? " notes" : "";
    fprintf(report->stream, "rank %d%s: %.*s\n", message->rank, what, (int)message->bytes, message->text);
}

/* Whole messages out of the bytes that have come; keeps the rest. */
struct inbox {
    char bytes[2 * sizeof(struct message)];
    size_t used;
};

static int read_some(struct report *report, struct inbox *inbox, int pipe) {
    ssize_t got = read(pipe, inbox->bytes + inbox->used, sizeof(inbox->bytes) - inbox->used);
    if (got <= 0) return got < 0 && errno == EINTR;
    inbox->used += (size_t)got;
    for (;;) {
        struct message message;
        if (inbox->used < MESSAGE_HEAD) return 1;
        memcpy(&message, inbox->bytes, MESSAGE_HEAD);
        if (message.bytes > sizeof(message.text)) return 0;
        size_t bytes = MESSAGE_HEAD + message.bytes;
        if (inbox->used < bytes) return 1;
        memcpy(message.text, inbox->bytes + MESSAGE_HEAD, message.bytes);
        take(report, &message);
        memmove(inbox->bytes, inbox->bytes + bytes, inbox->used - bytes);
        inbox->used -= bytes;
    }
}

static int reap(struct report *report) {
    int left = 0;
    for (int i = 0; i < report->children; ++i) {
        struct report_child *child = &report->child[i];
        if (!child->reaped && waitpid(child->pid, &child->status, WNOHANG) == child->pid) child->reaped = 1;
        left += !child->reaped;
    }
    return left;
}

void report_collect(struct report *report, int pipe, uint64_t end_ms) {
    static struct inbox inbox;
    inbox.used = 0;
    int open = 1;
    for (int left = report->children; left > 0; left = reap(report)) {
        struct pollfd poll_fd = {pipe, POLLIN, 0};
        if (!open) poll_fd.fd = -1;
        if (poll(&poll_fd, 1, open ? 20 : 2) > 0) open = read_some(report, &inbox, pipe);
        if (now_ms() < end_ms) continue;
        for (int i = 0; i < report->children; ++i) {
            struct report_child *child = &report->child[i];
            if (child->reaped || child->killed) continue;
            child->killed = 1;
            kill(child->pid, SIGKILL);
        }
    }
    while (open) {
        struct pollfd poll_fd = {pipe, POLLIN, 0};
        open = poll(&poll_fd, 1, 0) > 0 && read_some(report, &inbox, pipe);
    }
}

void report_reap_server(struct report *report, pid_t pid, int deadline_ms) {
    uint64_t end = now_ms() + (uint64_t)ranks_scaled_ms(deadline_ms);
    int status = 0, killed = 0;
    while (waitpid(pid, &status, WNOHANG) != pid) {
        if (now_ms() > end && !killed) {
            killed = 1;
            kill(pid, SIGKILL);
        }
        poll(NULL, 0, 1);
    }
    if (killed) {
        report->lost = 1;
        fprintf(report->stream, "the rendezvous server hung in moelink_rendezvous_destroy\n");
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        report->lost = 1;
        fprintf(report->stream, "the rendezvous server ended with wait status 0x%x\n", (unsigned)status);
    }
}

static int must_die(const rank_options *options, int rank) {
    for (int i = 0; i < options->dying_count; ++i) {
        if (options->dying[i] == rank) return 1;
    }
    return 0;
}

static void tell_process(struct report *report, int index) {
    const struct report_child *child = &report->child[index];
    struct report_rank *rank = &report->rank[index];
    int dying = must_die(report->options, index);
    if (child->killed) {
        rank->failed = 1;
        fprintf(report->stream, "rank %d hung: killed after %d ms\n", index, report->deadline_ms);
    } else if (WIFSIGNALED(child->status)) {
        if (!dying) {
            rank->failed = 1;
            int number = WTERMSIG(child->status);
            fprintf(report->stream, "rank %d died by signal %d (%s)\n", index, number, strsignal(number));
        }
    } else if (dying) {
        rank->failed = 1;
        fprintf(report->stream, "rank %d should have died by a signal but exited with %d\n", index, WEXITSTATUS(child->status));
    } else if (!rank->ended || WEXITSTATUS(child->status) != 0) {
        if (!rank->failed) fprintf(report->stream, "rank %d exited with %d\n", index, WEXITSTATUS(child->status));
        rank->failed = 1;
    }
}

static void tell_threads(struct report *report) {
    const struct report_child *child = &report->child[0];
    if (child->killed || WIFSIGNALED(child->status)) {
        for (int rank = 0; rank < report->options->size; ++rank) {
            if (report->rank[rank].ended) continue;
            report->rank[rank].failed = 1;
            if (child->killed) {
                fprintf(report->stream, "rank %d (a thread) hung: its process was killed after %d ms\n", rank,
                        report->deadline_ms);
            } else {
                int number = WTERMSIG(child->status);
                fprintf(report->stream, "rank %d (a thread) had not ended when its process died by signal %d (%s)\n", rank,
                        number, strsignal(number));
            }
        }
        report->lost = 1;
    } else if (WEXITSTATUS(child->status) != 0) {
        report->lost = 1;
        fprintf(report->stream, "the process of the threads exited with %d\n", WEXITSTATUS(child->status));
    }
}

int report_finish(struct report *report) {
    const rank_options *options = report->options;
    if (!report->setup_failed) {
        if (options->threads) tell_threads(report);
        for (int i = 0; !options->threads && i < report->children; ++i) tell_process(report, i);
    }
    int failed = 0;
    for (int rank = 0; rank < options->size; ++rank) failed += report->rank[rank].failed;
    if (report->setup_failed) failed = options->size;
    if (failed == 0 && report->lost) failed = 1;
    fclose(report->stream);
    if (options->report != NULL && options->report_bytes > 0) {
        snprintf(options->report, options->report_bytes, "%s", report->text);
    } else if (failed != 0) {
        const char *name = options->name != NULL ? options->name : "ranks";
        const char *mode = options->threads ? "threads" : "processes";
        const char *device = options->device == MOELINK_DEVICE_CUDA ? "cuda" : "host";
        fprintf(stderr, "%s: %d of %d ranks failed (%s, %s, seed %llu)\n%s", name, failed, options->size, mode, device,
                (unsigned long long)options->seed, report->text);
        fflush(stderr);
    }
    free(report->text);
    return failed;
}
