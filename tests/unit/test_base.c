/* Statuses, last error, log and version. */
#include <moelink/moelink.h>

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const struct {
    moelink_status status;
    const char *name;
} statuses[] = {
    {MOELINK_OK, "MOELINK_OK"},
    {MOELINK_IN_PROGRESS, "MOELINK_IN_PROGRESS"},
    {MOELINK_NOT_READY, "MOELINK_NOT_READY"},
    {MOELINK_ERR_INVALID_ARGUMENT, "MOELINK_ERR_INVALID_ARGUMENT"},
    {MOELINK_ERR_INVALID_STATE, "MOELINK_ERR_INVALID_STATE"},
    {MOELINK_ERR_UNSUPPORTED, "MOELINK_ERR_UNSUPPORTED"},
    {MOELINK_ERR_OUT_OF_MEMORY, "MOELINK_ERR_OUT_OF_MEMORY"},
    {MOELINK_ERR_TOO_SMALL, "MOELINK_ERR_TOO_SMALL"},
    {MOELINK_ERR_MISMATCH, "MOELINK_ERR_MISMATCH"},
    {MOELINK_ERR_NO_DRIVER, "MOELINK_ERR_NO_DRIVER"},
    {MOELINK_ERR_STALE, "MOELINK_ERR_STALE"},
    {MOELINK_ERR_INTERNAL, "MOELINK_ERR_INTERNAL"},
    {MOELINK_ERR_TIMEOUT, "MOELINK_ERR_TIMEOUT"},
    {MOELINK_ERR_PEER_EXITED, "MOELINK_ERR_PEER_EXITED"},
    {MOELINK_ERR_PEER_UNREACHABLE, "MOELINK_ERR_PEER_UNREACHABLE"},
    {MOELINK_ERR_ABORTED, "MOELINK_ERR_ABORTED"},
    {MOELINK_ERR_AUTHENTICATION, "MOELINK_ERR_AUTHENTICATION"},
    {MOELINK_ERR_PROTOCOL, "MOELINK_ERR_PROTOCOL"},
    {MOELINK_ERR_DEVICE, "MOELINK_ERR_DEVICE"},
};
enum { STATUSES = sizeof(statuses) / sizeof(statuses[0]) };

static void test_status_names(void **state) {
    (void)state;
    for (int i = 0; i < STATUSES; ++i) {
        assert_string_equal(moelink_status_name(statuses[i].status), statuses[i].name);
        const char *text = moelink_status_string(statuses[i].status);
        assert_true(strlen(text) > 3);
        assert_null(strstr(text, "unknown"));
        for (int other = 0; other < i; ++other) assert_string_not_equal(text, moelink_status_string(statuses[other].status));
    }
}

/* A newer library's status still tells, by its range, what is broken. */
static void test_unknown_statuses(void **state) {
    (void)state;
    static const struct {
        moelink_status status;
        const char *part;
    } unknown[] = {
        {3, "not an error"},         {INT32_MAX, "not an error"},    {-10, "nothing was changed"}, {-99, "nothing was changed"},
        {-101, "the round is lost"}, {-119, "the round is lost"},    {-123, "the group is over"},  {-199, "the group is over"},
        {-201, "context is lost"},   {INT32_MIN, "context is lost"},
    };
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); ++i) {
        assert_string_equal(moelink_status_name(unknown[i].status), "MOELINK_UNKNOWN_STATUS");
        assert_non_null(strstr(moelink_status_string(unknown[i].status), unknown[i].part));
    }
}

static void *fail_on_thread(void *unused) {
    (void)unused;
    assert_string_equal(moelink_last_error(), "");
    assert_int_equal(moelink_log_set_level(-77), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(moelink_last_error(), "-77"));
    return NULL;
}

static void test_last_error_is_of_the_thread(void **state) {
    (void)state;
    assert_int_equal(moelink_log_set_level(99), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(moelink_last_error(), "moelink_log_set_level"));
    assert_non_null(strstr(moelink_last_error(), "99"));
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, fail_on_thread, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_non_null(strstr(moelink_last_error(), "99"));
    assert_null(strstr(moelink_last_error(), "-77"));
}

/* Exit handlers, and the destructors of thread-specific data, run when the thread's own objects are gone. */
static void fail_late(void *unused) {
    (void)unused;
    for (int i = 0; i < 2; ++i) {
        if (moelink_group_barrier(NULL) != MOELINK_ERR_INVALID_ARGUMENT || moelink_last_error() == NULL) _exit(2);
        if (strlen(moelink_last_error()) > 1000 || strlen(moelink_group_error(NULL)) > 1000) _exit(3);
    }
}

static void fail_at_exit(void) {
    fail_late(NULL);
}

static void *fail_before_the_end(void *key) {
    moelink_group_barrier(NULL);
    pthread_setspecific(*(pthread_key_t *)key, key);
    return NULL;
}

static void test_calls_at_exit(void **state) {
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        pthread_key_t key;
        pthread_t thread;
        alarm(60);
        moelink_group_barrier(NULL);
        if (atexit(fail_at_exit) != 0 || pthread_key_create(&key, fail_late) != 0) _exit(4);
        if (pthread_create(&thread, NULL, fail_before_the_end, &key) != 0 || pthread_join(thread, NULL) != 0) _exit(5);
        exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static int calls;
static int last_level;
static char last_text[512];

static void on_log(void *user, int32_t level, const char *text) {
    assert_ptr_equal(user, &calls);
    ++calls;
    last_level = level;
    snprintf(last_text, sizeof(last_text), "%s", text);
}

/* A failing call logs at INFO. */
static void test_log_callback_and_levels(void **state) {
    (void)state;
    int32_t before = moelink_log_level_of();
    moelink_log_set_callback(on_log, &calls);
    assert_int_equal(moelink_log_set_level(MOELINK_LOG_INFO), MOELINK_OK);
    assert_int_equal(moelink_log_level_of(), MOELINK_LOG_INFO);
    calls = 0;
    assert_int_equal(moelink_device_describe(-5, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_true(calls >= 1);
    assert_true(last_level >= MOELINK_LOG_ERROR && last_level <= MOELINK_LOG_INFO);
    assert_null(strchr(last_text, '\n'));
    calls = 0;
    assert_int_equal(moelink_log_set_level(MOELINK_LOG_OFF), MOELINK_OK);
    assert_int_equal(moelink_device_describe(-5, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(calls, 0);
    for (int32_t level = MOELINK_LOG_OFF; level <= MOELINK_LOG_TRACE; ++level) {
        assert_int_equal(moelink_log_set_level(level), MOELINK_OK);
        assert_int_equal(moelink_log_level_of(), level);
    }
    assert_int_equal(moelink_log_set_level(MOELINK_LOG_TRACE + 1), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_log_set_level(-1), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_log_level_of(), MOELINK_LOG_TRACE);
    moelink_log_set_callback(NULL, NULL);
    assert_int_equal(moelink_log_set_level(before), MOELINK_OK);
}

/* The level at start comes from the environment: seen by running this program again. */
static int level_with(const char *text) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (text != NULL) {
            setenv("MOELINK_LOG_LEVEL", text, 1);
        } else {
            unsetenv("MOELINK_LOG_LEVEL");
        }
        dup2(ends[1], STDOUT_FILENO);
        close(STDERR_FILENO);
        execl("/proc/self/exe", "test_base", "--print-level", (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    char answer[16] = "";
    ssize_t got = read(ends[0], answer, sizeof(answer) - 1);
    close(ends[0]);
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_true(got > 0);
    return atoi(answer);
}

static void test_log_level_from_environment(void **state) {
    (void)state;
    static const char *const names[] = {"off", "error", "warn", "info", "debug", "trace"};
    for (int i = 0; i < 6; ++i) {
        char number[2] = {(char)('0' + i), '\0'};
        assert_int_equal(level_with(names[i]), i);
        assert_int_equal(level_with(number), i);
    }
    assert_int_equal(level_with(NULL), MOELINK_LOG_WARN);
    assert_int_equal(level_with(""), MOELINK_LOG_WARN);
    assert_int_equal(level_with("loud"), MOELINK_LOG_WARN);
    assert_int_equal(level_with("6"), MOELINK_LOG_WARN);
}

static void test_version(void **state) {
    (void)state;
    assert_int_equal(MOELINK_VERSION, MOELINK_VERSION_MAJOR * 10000 + MOELINK_VERSION_MINOR * 100 + MOELINK_VERSION_PATCH);
    assert_int_equal(moelink_version(), MOELINK_VERSION);
    char start[32];
    snprintf(start, sizeof(start), "%d.%d.%d", MOELINK_VERSION_MAJOR, MOELINK_VERSION_MINOR, MOELINK_VERSION_PATCH);
    assert_int_equal(strncmp(moelink_version_string(), start, strlen(start)), 0);
}

int main(int count, char **words) {
    if (count == 2 && strcmp(words[1], "--print-level") == 0) {
        printf("%d\n", (int)moelink_log_level_of());
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_names),
        cmocka_unit_test(test_unknown_statuses),
        cmocka_unit_test(test_last_error_is_of_the_thread),
        cmocka_unit_test(test_calls_at_exit),
        cmocka_unit_test(test_log_callback_and_levels),
        cmocka_unit_test(test_log_level_from_environment),
        cmocka_unit_test(test_version),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
