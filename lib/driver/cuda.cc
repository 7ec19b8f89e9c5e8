#include "driver/cuda.hpp"

#include "base/log.hpp"
#include "driver/library.hpp"

#include <atomic>

namespace moelink {

namespace {

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

CudaDriver load_driver() {
    Library library({"libcuda.so.1"});
    CudaDriver driver;
    driver.file = library.file();
#define FIND(member, function) library.find(driver.member, TEXT(function));
    MOELINK_CUDA_FUNCTIONS(FIND)
#undef FIND
    CUresult result = driver.init(0);
    if (result != CUDA_SUCCESS) {
        const char *name = nullptr;
        const char *text = nullptr;
        driver.error_name(result, &name);
        driver.error_string(result, &text);
        fail(MOELINK_ERR_NO_DRIVER, "{}: cuInit: {} ({})", driver.file, name != nullptr ? name : "unknown error",
             text != nullptr ? text : "no text");
    }
    return driver;
}

std::atomic<const CudaDriver *> substitute{nullptr};

}  // namespace

const CudaDriver &cuda() {
    if (const CudaDriver *driver = substitute.load(std::memory_order_acquire)) return *driver;
    static const auto *loaded = new Loaded<CudaDriver>(&load_driver);
    return loaded->get();
}

void set_cuda_driver(const CudaDriver *driver) noexcept { substitute.store(driver, std::memory_order_release); }

moelink_status status_of(CUresult result) noexcept {
    switch (result) {
    case CUDA_SUCCESS:
        return MOELINK_OK;
    case CUDA_ERROR_OUT_OF_MEMORY:
        return MOELINK_ERR_OUT_OF_MEMORY;
    case CUDA_ERROR_NOT_SUPPORTED:
    case CUDA_ERROR_NOT_PERMITTED:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_PEER_ACCESS_UNSUPPORTED:
    case CUDA_ERROR_TOO_MANY_PEERS:
    case CUDA_ERROR_OPERATING_SYSTEM:
    case CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER:
    case CUDA_ERROR_SYSTEM_NOT_READY:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
    case CUDA_ERROR_STUB_LIBRARY:
        return MOELINK_ERR_UNSUPPORTED;
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
    case CUDA_ERROR_EXTERNAL_DEVICE:
        return MOELINK_ERR_DEVICE;
    default:
        return MOELINK_ERR_INTERNAL;
    }
}

std::string cuda_error_text(CUresult result, const char *what) {
    const CudaDriver &driver = cuda();
    const char *name = nullptr;
    const char *text = nullptr;
    if (driver.error_name(result, &name) != CUDA_SUCCESS || name == nullptr) name = "unknown error";
    if (driver.error_string(result, &text) != CUDA_SUCCESS || text == nullptr) text = "no text";
    return fmt::format("{}: {} ({})", what, name, text);
}

void check(CUresult result, const char *what) {
    if (result != CUDA_SUCCESS) throw Error(status_of(result), cuda_error_text(result, what));
}

PrimaryContext::PrimaryContext(int ordinal) {
    check(cuda().device(&device_, ordinal), "cuDeviceGet");
    check(cuda().primary_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
}

PrimaryContext::~PrimaryContext() { cuda().primary_release(device_); }

ContextGuard::ContextGuard(int ordinal) {
    own_.emplace(ordinal);
    check(cuda().ctx_push(own_->get()), "cuCtxPushCurrent");
}

ContextGuard::ContextGuard(const PrimaryContext &context) { check(cuda().ctx_push(context.get()), "cuCtxPushCurrent"); }

ContextGuard::~ContextGuard() {
    CUcontext popped = nullptr;
    CUresult result = cuda().ctx_pop(&popped);
    if (result != CUDA_SUCCESS) log(MOELINK_LOG_WARN, "cuCtxPopCurrent failed with {}", static_cast<int>(result));
}

}  // namespace moelink
