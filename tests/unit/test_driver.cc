/* The tables of libraries that are looked up at run time, and include/moelink/device.h, over the fake driver. */
#include "fake_driver.hpp"

#include "driver/cuda.hpp"
#include "driver/device.hpp"
#include "driver/nccl.hpp"
#include "driver/nvml.hpp"

#include <moelink/moelink.h>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

extern "C" {
#include <cmocka.h>
}

using namespace moelink;

namespace {

moelink_status thrown(CUresult result, std::string *text) {
    try {
        check(result, "cuSomething");
    } catch (const Error &error) {
        *text = error.text();
        return error.status();
    }
    return MOELINK_OK;
}

void test_check_maps_results(void **) {
    fake::install();
    std::string text;
    assert_int_equal(thrown(CUDA_SUCCESS, &text), MOELINK_OK);
    assert_int_equal(thrown(CUDA_ERROR_OUT_OF_MEMORY, &text), MOELINK_ERR_OUT_OF_MEMORY);
    assert_string_equal(text.c_str(), "cuSomething: CUDA_ERROR_OUT_OF_MEMORY (as the test wants it)");
    assert_int_equal(thrown(CUDA_ERROR_NOT_PERMITTED, &text), MOELINK_ERR_UNSUPPORTED);
    assert_int_equal(thrown(CUDA_ERROR_NOT_SUPPORTED, &text), MOELINK_ERR_UNSUPPORTED);
    assert_int_equal(thrown(CUDA_ERROR_ILLEGAL_ADDRESS, &text), MOELINK_ERR_DEVICE);
    assert_int_equal(thrown(CUDA_ERROR_LAUNCH_FAILED, &text), MOELINK_ERR_DEVICE);
    assert_int_equal(thrown(CUDA_ERROR_INVALID_VALUE, &text), MOELINK_ERR_INTERNAL);
    fake::uninstall();
}

CUcontext current() {
    CUcontext context = nullptr;
    cuda().ctx_current(&context);
    return context;
}

void test_context_guard_restores(void **) {
    fake::install();
    assert_null(current());
    assert_int_equal(cuda_current_ordinal(), 0);
    {
        ContextGuard outer(1);
        CUcontext first = current();
        assert_non_null(first);
        assert_int_equal(cuda_current_ordinal(), 1);
        {
            ContextGuard inner(3);
            assert_int_equal(cuda_current_ordinal(), 3);
        }
        assert_ptr_equal(current(), first);
    }
    assert_null(current());
    assert_true(fake::outstanding().none());
    fake::uninstall();
}

void test_context_guard_fails_clean(void **) {
    for (const char *function : {"device", "primary_retain", "ctx_push"}) {
        fake::install();
        fake::fail_call(0, function, 1, CUDA_ERROR_OUT_OF_MEMORY);
        moelink_status status = MOELINK_OK;
        try {
            ContextGuard guard(0);
        } catch (const Error &error) {
            status = error.status();
        }
        assert_int_equal(status, MOELINK_ERR_OUT_OF_MEMORY);
        assert_true(fake::outstanding().none());
        fake::uninstall();
    }
}

void test_devices(void **) {
    fake::install(fake::Machine{.devices = 3});
    int32_t count = -1;
    assert_int_equal(moelink_device_count(&count), MOELINK_OK);
    assert_int_equal(count, 3);
    assert_int_equal(cuda_device_count_usable(), 3);

    moelink_device_info info = MOELINK_DEVICE_INFO_INIT;
    assert_int_equal(moelink_device_describe(2, &info), MOELINK_OK);
    assert_int_equal(info.ordinal, 2);
    assert_string_equal(info.name, "Fake");
    assert_string_equal(info.uuid, "GPU-20212223-2425-2627-2829-2a2b2c2d2e2f");
    assert_string_equal(info.pci_bus_id, "0000:02:00.0");
    assert_int_equal(info.compute_capability, 90);
    assert_int_equal(info.supported, 1);
    assert_int_equal(info.fabric_attribute, 1);
    assert_int_equal(info.posix_fd_attribute, 1);
    assert_true(info.memory_bytes == uint64_t{80} << 30);

    for (int32_t wrong : {-1, 3}) {
        moelink_device_info untouched = MOELINK_DEVICE_INFO_INIT;
        assert_int_equal(moelink_device_describe(wrong, &untouched), MOELINK_ERR_INVALID_ARGUMENT);
        assert_non_null(std::strstr(moelink_last_error(), "this process sees 3 CUDA devices"));
        assert_int_equal(untouched.ordinal, -1);
    }
    int32_t reaches = -1;
    assert_int_equal(moelink_device_peer(0, 2, &reaches), MOELINK_OK);
    assert_int_equal(reaches, 1);
    assert_int_equal(moelink_device_peer(0, 3, &reaches), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(std::strstr(moelink_last_error(), "peer is 3"));
    assert_int_equal(moelink_device_peer(0, 1, nullptr), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_device_count(nullptr), MOELINK_ERR_INVALID_ARGUMENT);
    fake::uninstall();

    fake::install(fake::Machine{.devices = 2, .peers = false});
    assert_int_equal(moelink_device_peer(0, 1, &reaches), MOELINK_OK);
    assert_int_equal(reaches, 0);
    assert_int_equal(moelink_device_peer(1, 1, &reaches), MOELINK_OK);
    assert_int_equal(reaches, 1);
    fake::uninstall();
}

void test_old_devices_are_not_usable(void **) {
    fake::install(fake::Machine{.devices = 2, .capability = 80});
    int32_t count = -1;
    assert_int_equal(moelink_device_count(&count), MOELINK_OK);
    assert_int_equal(count, 2);
    assert_int_equal(cuda_device_count_usable(), 0);
    moelink_device_info info = MOELINK_DEVICE_INFO_INIT;
    assert_int_equal(moelink_device_describe(0, &info), MOELINK_OK);
    assert_int_equal(info.supported, 0);
    fake::uninstall();
}

void test_device_errors_come_through(void **) {
    for (const char *function : {"device_count", "device", "device_name", "device_uuid", "device_memory", "device_pci_bus_id"}) {
        fake::install();
        fake::fail_call(0, function, 1, CUDA_ERROR_UNKNOWN);
        moelink_device_info info = MOELINK_DEVICE_INFO_INIT;
        assert_int_equal(moelink_device_describe(0, &info), MOELINK_ERR_INTERNAL);
        assert_non_null(std::strstr(moelink_last_error(), "moelink_device_describe: cuDevice"));
        assert_non_null(std::strstr(moelink_last_error(), "CUDA_ERROR_UNKNOWN"));
        assert_int_equal(info.ordinal, -1);
        fake::uninstall();
    }
}

void test_libraries(void **) {
    fake::install();
    char text[256] = "";
    assert_int_equal(moelink_device_library("cuda", text, sizeof text), MOELINK_OK);
    assert_non_null(std::strstr(text, "CUDA 13.0"));
    assert_non_null(std::strstr(text, "(a fake)"));
    char little[8] = "";
    assert_int_equal(moelink_device_library("cuda", little, sizeof little), MOELINK_ERR_TOO_SMALL);
    assert_string_equal(little, "CUDA 13");
    assert_int_equal(moelink_device_library("cobol", text, sizeof text), MOELINK_ERR_INVALID_ARGUMENT);
    assert_non_null(std::strstr(moelink_last_error(), "\"cobol\""));
    assert_int_equal(moelink_device_library(nullptr, text, sizeof text), MOELINK_ERR_INVALID_ARGUMENT);
    assert_int_equal(moelink_device_library("cuda", nullptr, 0), MOELINK_ERR_INVALID_ARGUMENT);
    fake::uninstall();
}

void test_missing_nccl_says_why(void **) {
    setenv("MOELINK_NCCL_LIBRARY", "/nowhere/libnccl.so.2", 1);
    char text[256] = "";
    assert_int_equal(moelink_device_library("nccl", text, sizeof text), MOELINK_ERR_NO_DRIVER);
    assert_non_null(std::strstr(text, "/nowhere/libnccl.so.2"));
    assert_non_null(std::strstr(moelink_last_error(), "/nowhere/libnccl.so.2"));
    unsetenv("MOELINK_NCCL_LIBRARY");
}

// Without the fake: whatever this machine has, the answers agree with each other.
void test_this_machine(void **) {
    int32_t count = -1;
    assert_int_equal(moelink_device_count(&count), MOELINK_OK);
    char text[512] = "";
    moelink_status driver = moelink_device_library("cuda", text, sizeof text);
    print_message("cuda: %s\n", text);
    if (driver == MOELINK_ERR_NO_DRIVER) {
        assert_int_equal(count, 0);
        assert_non_null(std::strstr(text, "libcuda.so.1"));
        assert_int_equal(moelink_device_count(&count), MOELINK_OK);
        assert_non_null(std::strstr(moelink_last_error(), "libcuda.so.1"));
        moelink_device_info info = MOELINK_DEVICE_INFO_INIT;
        assert_int_equal(moelink_device_describe(0, &info), MOELINK_ERR_NO_DRIVER);
        assert_int_equal(cuda_device_count_usable(), 0);
        assert_int_equal(cuda_current_ordinal(), 0);
    } else {
        assert_int_equal(driver, MOELINK_OK);
    }
    moelink_device_library("nvml", text, sizeof text);
    print_message("nvml: %s\n", text);
    assert_int_not_equal(std::strlen(text), 0);
}

}  // namespace

int main() {
    const CMUnitTest tests[] = {
        cmocka_unit_test(test_check_maps_results),
        cmocka_unit_test(test_context_guard_restores),
        cmocka_unit_test(test_context_guard_fails_clean),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_old_devices_are_not_usable),
        cmocka_unit_test(test_device_errors_come_through),
        cmocka_unit_test(test_libraries),
        cmocka_unit_test(test_missing_nccl_says_why),
        cmocka_unit_test(test_this_machine),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
