/* What a process holds, for tests that nothing is left behind. */
#ifndef MOELINK_TESTS_LEFTOVERS_H
#define MOELINK_TESTS_LEFTOVERS_H

#ifdef __cplusplus
extern "C" {
#endif

/* Entries of a folder such as /proc/self/fd, "." and ".." among them; 0 when it cannot be read. */
int count_entries(const char *path);
/* The same once there are no more than `most`, or after 2 s: closed sockets leave with their peers' last words. */
int settled_entries(const char *path, int most);
/* Resident memory [KiB]. */
long resident_kib(void);

#ifdef __cplusplus
}
#endif
#endif
