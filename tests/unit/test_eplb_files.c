/* Plans and traces in files: what was saved is read back, and every damage is refused with its place. */
#include <moelink/eplb.h>

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/moelink-files-XXXXXX";
static char path[128];

static int make_folder(void **state) {
    (void)state;
    if (mkdtemp(folder) == NULL) return -1;
    snprintf(path, sizeof(path), "%s/file", folder);
    return 0;
}

static int drop_folder(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static void write_bytes(const char *bytes, size_t count) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, count, file), count);
    assert_int_equal(fclose(file), 0);
}

static size_t read_bytes(char *bytes, size_t most) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t count = fread(bytes, 1, most, file);
    fclose(file);
    assert_true(count < most);
    bytes[count] = '\0';
    return count;
}

static const int32_t plan[2][6] = {{0, 1, 2, 3, 0, -1}, {3, 3, 2, 1, 0, 0}};

static moelink_eplb_shape plan_shape(void) {
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    shape.layers = 2;
    shape.experts = 4;
    shape.slots = 6;
    shape.ranks = 2;
    shape.nodes = 2;
    shape.groups = 4;
    return shape;
}

static void test_plan(void **state) {
    (void)state;
    moelink_eplb_shape shape = plan_shape(), got = MOELINK_EPLB_SHAPE_INIT;
    int32_t map[12];
    shape.threads = 5;
    assert_int_equal(moelink_eplb_plan_save(path, &shape, &plan[0][0]), MOELINK_OK);
    assert_int_equal(moelink_eplb_plan_load(path, &got, NULL, 0), MOELINK_OK);
    shape.threads = 0; /* not in the file */
    assert_memory_equal(&got, &shape, sizeof(shape));
    assert_int_equal(moelink_eplb_plan_load(path, &got, map, 12), MOELINK_OK);
    assert_memory_equal(map, plan, sizeof(plan));
    char text[1024];
    read_bytes(text, sizeof(text));
    static const char expected[] =
        "moelink-eplb-plan 1\nlayers 2\nexperts 4\nslots 6\nranks 2\nnodes 2\ngroups 4\nmap 0 1 2 3 0 -1\nmap 3 3 2 1 0 0\n"
        "checksum ";
    assert_memory_equal(text, expected, sizeof(expected) - 1);
    assert_int_equal(strlen(text), sizeof(expected) - 1 + 33);

    map[0] = 77;
    assert_int_equal(moelink_eplb_plan_load(path, &got, map, 11), MOELINK_ERR_TOO_SMALL);
    assert_non_null(strstr(moelink_last_error(), "12 elements; capacity is 11"));
    assert_int_equal(map[0], 77);
    assert_int_equal(moelink_eplb_plan_load(path, NULL, map, 12), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_plan_load(NULL, &got, map, 12), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_plan_save(NULL, &shape, &plan[0][0]), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_plan_save(path, &shape, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    int32_t wrong[12];
    memcpy(wrong, plan, sizeof(plan));
    wrong[7] = 4;
    assert_int_equal(moelink_eplb_plan_save(path, &shape, wrong), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(moelink_last_error(), "layer 1, slot 1"));
    assert_int_equal(moelink_eplb_plan_load(path, &got, map, 12), MOELINK_OK); /* the old file is whole */
    assert_memory_equal(map, plan, sizeof(plan));
}

/* What another process of the same number left beside the file is passed over. */
static void test_left_over(void **state) {
    (void)state;
    moelink_eplb_shape shape = plan_shape();
    char part[160];
    for (int number = 0; number < 100; ++number) {
        snprintf(part, sizeof(part), "%s.part-%d-%d", path, (int)getpid(), number);
        FILE *file = fopen(part, "wb");
        assert_non_null(file);
        fclose(file);
    }
    assert_int_equal(moelink_eplb_plan_save(path, &shape, &plan[0][0]), MOELINK_OK);
    for (int number = 0; number < 100; ++number) {
        snprintf(part, sizeof(part), "%s.part-%d-%d", path, (int)getpid(), number);
        assert_int_equal(unlink(part), 0);
    }
    assert_int_equal(moelink_eplb_plan_load(path, &shape, NULL, 0), MOELINK_OK);
}

/* Nothing stays beside a file that could not be written. */
static void test_no_place(void **state) {
    (void)state;
    moelink_eplb_shape shape = plan_shape();
    char none[160];
    snprintf(none, sizeof(none), "%s/none/file", folder);
    assert_int_equal(moelink_eplb_plan_save(none, &shape, &plan[0][0]), MOELINK_ERR_INVALID_STATE);
    assert_non_null(strstr(moelink_last_error(), "No such file"));
    assert_int_equal(moelink_eplb_plan_load(none, &shape, NULL, 0), MOELINK_ERR_INVALID_STATE);
    assert_int_equal(moelink_eplb_plan_save(folder, &shape, &plan[0][0]), MOELINK_ERR_INVALID_STATE);
    assert_non_null(strstr(moelink_last_error(), "rename"));
    unlink(path);
    char sibling[160];
    snprintf(sibling, sizeof(sibling), "%s.part", folder);
    DIR *listing = opendir("/tmp");
    assert_non_null(listing);
    for (struct dirent *entry = readdir(listing); entry != NULL; entry = readdir(listing)) {
        assert_null(strstr(entry->d_name, strrchr(sibling, '/') + 1));
    }
    closedir(listing);
}

static moelink_status load_any(void) {
    moelink_eplb_shape shape = MOELINK_EPLB_SHAPE_INIT;
    moelink_eplb_shape before = shape;
    int32_t map[64] = {55};
    moelink_status status = moelink_eplb_plan_load(path, &shape, map, 64);
    if (status != MOELINK_OK) {
        assert_memory_equal(&shape, &before, sizeof(shape));
        assert_int_equal(map[0], 55);
    }
    return status;
}

/* Replaces the first `from` of a good file by `to` and expects the error at line:column, with the part of a text. */
static void expect_damage(moelink_status (*load)(void), const char *good, const char *from, const char *to, moelink_status status,
                          const char *place, const char *part) {
    char text[2048];
    const char *at = strstr(good, from);
    assert_non_null(at);
    snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - good), good, to, at + strlen(from));
    write_bytes(text, strlen(text));
    assert_int_equal(load(), status);
    char named[160];
    snprintf(named, sizeof(named), "file:%s: ", place);
    if (strstr(moelink_last_error(), named) == NULL || strstr(moelink_last_error(), part) == NULL) {
        fail_msg("\"%s\" has no \"%s\" or no \"%s\"", moelink_last_error(), named, part);
    }
}

static void test_damaged_plans(void **state) {
    (void)state;
    moelink_eplb_shape shape = plan_shape();
    assert_int_equal(moelink_eplb_plan_save(path, &shape, &plan[0][0]), MOELINK_OK);
    char good[1024];
    size_t size = read_bytes(good, sizeof(good));
    const moelink_status bad = MOELINK_ERR_INVALID_ARGUMENT;
    expect_damage(load_any, good, "plan 1", "plan 2", MOELINK_ERR_UNSUPPORTED, "1:1", "version 2; this library reads up to 1");
    expect_damage(load_any, good, "plan 1", "plan 0", bad, "1:19", "0 is no version");
    expect_damage(load_any, good, "moelink-eplb-plan", "moelink-eplb-plot", bad, "1:1", "\"moelink-eplb-plot\" where");
    expect_damage(load_any, good, "layers 2", "layers 2 3", bad, "2:10", "\"3\" where the line should end");
    expect_damage(load_any, good, "layers 2", "layers 4097", bad, "2:8", "4097 is no layers; it must be in 1 .. 4096");
    expect_damage(load_any, good, "experts 4", "experts four", bad, "3:9", "\"four\" is no experts");
    expect_damage(load_any, good, "experts 4", "experts ", bad, "3:9", "the line ends where experts should stand");
    expect_damage(load_any, good, "slots 6", "slots 99999999999999999999", bad, "4:7", "99999999999999999999 is no slots");
    expect_damage(load_any, good, "ranks 2", "ranks 4", bad, "5:7", "4 ranks do not divide 6");
    expect_damage(load_any, good, "nodes 2", "groups 2", bad, "6:1", "\"groups\" where \"nodes\"");
    expect_damage(load_any, good, "0 -1\nmap", "0 -1 1\nmap", bad, "8:18", "\"1\" where the line should end");
    expect_damage(load_any, good, "0 -1\nmap", "0\nmap", bad, "8:15", "ends where expert");
    expect_damage(load_any, good, "2 3 0 -1", "2 4 0 -1", bad, "8:11", "4 is no expert; it must be in -1 .. 3");
    expect_damage(load_any, good, "map 3 3 2", "map 3 2 3", bad, "10:10", "changed or damaged");
    expect_damage(load_any, good, "map 3 3 2 1 0 0\n", "", bad, "9:1", "\"checksum\" where \"map\"");
    expect_damage(load_any, good, "\nchecksum ", "\nchecksum x", bad, "10:10", "the checksum is \"x");
    static const char *const ends[] = {"1:1", "2:1", "3:1"};
    size_t lines = 0;
    for (size_t cut = 0; cut < size; ++cut) { /* wherever the file is cut off */
        write_bytes(good, cut);
        if (cut + 1 == size) continue; /* only the last line's end is missing */
        assert_int_equal(load_any(), bad);
        if (lines < 3 && (cut == 0 || good[cut - 1] == '\n')) assert_non_null(strstr(moelink_last_error(), ends[lines++]));
    }
    for (size_t at = 0; at < size; ++at) { /* whichever bit is turned */
        if (at + 1 == size) continue;
        good[at] ^= 4;
        write_bytes(good, size);
        assert_int_not_equal(load_any(), MOELINK_OK);
        good[at] ^= 4;
    }
    strcat(good, "more\n");
    write_bytes(good, strlen(good));
    assert_int_equal(load_any(), bad);
    assert_non_null(strstr(moelink_last_error(), "file:11:1: \"more\" behind the checksum"));
}

static moelink_status load_trace(void) {
    moelink_eplb_trace *trace = NULL;
    moelink_status status = moelink_eplb_trace_load(path, &trace);
    assert_true((status == MOELINK_OK) == (trace != NULL));
    moelink_eplb_trace_destroy(trace);
    return status;
}

static const double steps[3][6] = {{0, 1, 2.5, 1e300, 9007199254740993.0, 3}, {0.1, 0.2, 1.0 / 3, 5e-324, 0, 1}, {0, 0, 0, 0, 0, 0}};
static const char *const names[3] = {"a topic, with 100 % of everything", "", "third"};

static void make_trace(moelink_eplb_trace **out) {
    assert_int_equal(moelink_eplb_trace_create(2, 3, out), MOELINK_OK);
    for (int step = 0; step < 3; ++step) assert_int_equal(moelink_eplb_trace_append(*out, names[step], steps[step]), MOELINK_OK);
}

static void check_trace(const moelink_eplb_trace *trace) {
    int32_t count = 0, layers = 0, experts = 0;
    assert_int_equal(moelink_eplb_trace_sizes(trace, &count, &layers, &experts), MOELINK_OK);
    assert_int_equal(count, 3);
    assert_int_equal(layers, 2);
    assert_int_equal(experts, 3);
    for (int step = 0; step < 3; ++step) {
        const char *name = NULL;
        const double *load = NULL;
        assert_int_equal(moelink_eplb_trace_step(trace, step, &name, &load), MOELINK_OK);
        assert_string_equal(name, names[step]);
        assert_memory_equal(load, steps[step], sizeof(steps[step]));
    }
}

static void test_trace(void **state) {
    (void)state;
    moelink_eplb_trace *trace = NULL, *again = NULL;
    make_trace(&trace);
    check_trace(trace);
    double bad[6] = {0, 0, 0, 0, -1, 0};
    assert_int_equal(moelink_eplb_trace_append(trace, "bad", bad), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(moelink_last_error(), "layer 1, expert 1 is -1"));
    bad[4] = 1.0 / bad[0];
    assert_int_equal(moelink_eplb_trace_append(trace, "bad", bad), MOELINK_ERR_INVALID_ARGUMENT);
    bad[4] -= bad[4];
    assert_int_equal(moelink_eplb_trace_append(trace, "bad", bad), MOELINK_ERR_INVALID_ARGUMENT);
    bad[4] = 0;
    assert_int_equal(moelink_eplb_trace_append(trace, "two\nlines", bad), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_trace_append(trace, NULL, bad), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_trace_append(trace, "none", NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_trace_step(trace, 3, NULL, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_trace_step(trace, -1, NULL, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_trace_create(0, 3, &again), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_trace_create(1, 65537, &again), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_trace_create(1, 3, NULL), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_eplb_trace_save(trace, path), MOELINK_OK);
    assert_int_equal(moelink_eplb_trace_load(path, &again), MOELINK_OK);
    check_trace(again);
    moelink_eplb_trace_destroy(again);
    char good[2048];
    read_bytes(good, sizeof(good));
    const moelink_status refused = MOELINK_ERR_INVALID_ARGUMENT;
    expect_damage(load_trace, good, "trace 1", "trace 7", MOELINK_ERR_UNSUPPORTED, "1:1", "version 7");
    expect_damage(load_trace, good, "load 0 1", "load 0 -1", refused, "5:8", "\"-1\" is no load");
    expect_damage(load_trace, good, "load 0 1", "load 0 nan", refused, "5:8", "\"nan\" is no load");
    expect_damage(load_trace, good, "load 0 1", "load 0 1e999", refused, "5:8", "\"1e999\" is no load");
    expect_damage(load_trace, good, "load 0 1", "load  1", refused, "5:6", "a load is missing");
    expect_damage(load_trace, good, "step third", "stop third", refused, "10:1", "\"stop\" where \"checksum\"");
    expect_damage(load_trace, good, "third", "fourth", refused, "13:10", "changed or damaged");
    expect_damage(load_trace, good, "third", "th\x01rd", refused, "10:6", "control characters");
    moelink_eplb_trace_destroy(trace);

    assert_int_equal(moelink_eplb_trace_create(2, 3, &trace), MOELINK_OK); /* no step */
    assert_int_equal(moelink_eplb_trace_save(trace, path), MOELINK_OK);
    moelink_eplb_trace_destroy(trace);
    assert_int_equal(load_trace(), MOELINK_OK);
}

static void test_commas(void **state) {
    (void)state;
    static const char good[] = "first,1,2,0.5\r\n\nsecond topic ,0,1e3,7";
    write_bytes(good, sizeof(good) - 1);
    moelink_eplb_trace *trace = NULL;
    assert_int_equal(moelink_eplb_trace_load(path, &trace), MOELINK_OK);
    int32_t count = 0, layers = 0, experts = 0;
    const char *name = NULL;
    const double *load = NULL;
    assert_int_equal(moelink_eplb_trace_sizes(trace, &count, &layers, &experts), MOELINK_OK);
    assert_int_equal(count, 2);
    assert_int_equal(layers, 1);
    assert_int_equal(experts, 3);
    assert_int_equal(moelink_eplb_trace_step(trace, 1, &name, &load), MOELINK_OK);
    assert_string_equal(name, "second topic");
    assert_true(load[0] == 0 && load[1] == 1000 && load[2] == 7);
    assert_int_equal(moelink_eplb_trace_append(trace, name, load), MOELINK_OK); /* a name as any other */
    moelink_eplb_trace_destroy(trace);
    const moelink_status refused = MOELINK_ERR_INVALID_ARGUMENT;
    expect_damage(load_trace, good, "first,1,2", "first,1,two", refused, "1:9", "\"two\" is no load");
    expect_damage(load_trace, good, "0.5", "-0.5", refused, "1:11", "\"-0.5\" is no load");
    expect_damage(load_trace, good, "1e3,7", "1e3,", refused, "3:21", "a load is missing");
    expect_damage(load_trace, good, "1e3,7", "1e3", refused, "3:20", "2 loads, and the first line has 3");
    expect_damage(load_trace, good, "1e3", "inf", refused, "3:17", "\"inf\" is no load");
    expect_damage(load_trace, good, "first,1,2,0.5", "first", refused, "1:1", "a line is NAME,LOAD");
    write_bytes("\n\n", 2);
    assert_int_equal(load_trace(), refused);
    write_bytes("", 0);
    assert_int_equal(load_trace(), refused);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan), cmocka_unit_test(test_left_over), cmocka_unit_test(test_no_place), cmocka_unit_test(test_damaged_plans),
        cmocka_unit_test(test_trace), cmocka_unit_test(test_commas),
    };
    return cmocka_run_group_tests(tests, make_folder, drop_folder);
}
