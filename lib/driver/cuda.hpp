// The CUDA driver, looked up at run time.
#pragma once

#if MOELINK_CUDA

#include "base/error.hpp"

#include <cuda.h>

#include <optional>
#include <string>

// Member of the table, and the driver's function. cuda.h turns a function's name into that of the version it declares.
#define MOELINK_CUDA_FUNCTIONS(X)                                     \
    X(init, cuInit)                                                   \
    X(driver_version, cuDriverGetVersion)                             \
    X(error_name, cuGetErrorName)                                     \
    X(error_string, cuGetErrorString)                                 \
    X(device_count, cuDeviceGetCount)                                 \
    X(device, cuDeviceGet)                                            \
    X(device_name, cuDeviceGetName)                                   \
    X(device_uuid, cuDeviceGetUuid)                                   \
    X(device_attribute, cuDeviceGetAttribute)                         \
    X(device_memory, cuDeviceTotalMem)                                \
    X(device_pci_bus_id, cuDeviceGetPCIBusId)                         \
    X(device_can_access_peer, cuDeviceCanAccessPeer)                  \
    X(primary_retain, cuDevicePrimaryCtxRetain)                       \
    X(primary_release, cuDevicePrimaryCtxRelease)                     \
    X(ctx_push, cuCtxPushCurrent)                                     \
    X(ctx_pop, cuCtxPopCurrent)                                       \
    X(ctx_current, cuCtxGetCurrent)                                   \
    X(ctx_device, cuCtxGetDevice)                                     \
    X(ctx_synchronize, cuCtxSynchronize)                              \
    X(ctx_enable_peer, cuCtxEnablePeerAccess)                         \
    X(stream_create, cuStreamCreate)                                  \
    X(stream_destroy, cuStreamDestroy)                                \
    X(stream_synchronize, cuStreamSynchronize)                        \
    X(stream_wait_event, cuStreamWaitEvent)                           \
    X(stream_is_capturing, cuStreamIsCapturing)                       \
    X(mem_granularity, cuMemGetAllocationGranularity)                 \
    X(mem_create, cuMemCreate)                                        \
    X(mem_release, cuMemRelease)                                      \
    X(mem_reserve, cuMemAddressReserve)                               \
    X(mem_unreserve, cuMemAddressFree)                                \
    X(mem_map, cuMemMap)                                              \
    X(mem_unmap, cuMemUnmap)                                          \
    X(mem_set_access, cuMemSetAccess)                                 \
    X(mem_export, cuMemExportToShareableHandle)                       \
    X(mem_import, cuMemImportFromShareableHandle)                     \
    X(mem_alloc, cuMemAlloc)                                          \
    X(mem_free, cuMemFree)                                            \
    X(host_alloc, cuMemHostAlloc)                                     \
    X(host_free, cuMemFreeHost)                                       \
    X(host_device_pointer, cuMemHostGetDevicePointer)                 \
    X(memset_d8, cuMemsetD8)                                          \
    X(memset_d8_async, cuMemsetD8Async)                               \
    X(copy_to_device, cuMemcpyHtoD)                                   \
    X(copy_to_device_async, cuMemcpyHtoDAsync)                        \
    X(copy_to_host, cuMemcpyDtoH)                                     \
    X(copy_to_host_async, cuMemcpyDtoHAsync)                          \
    X(copy_async, cuMemcpyAsync)                                      \
    X(copy_2d_async, cuMemcpy2DAsync)                                 \
    X(event_create, cuEventCreate)                                    \
    X(event_destroy, cuEventDestroy)                                  \
    X(event_record, cuEventRecord)                                    \
    X(event_query, cuEventQuery)                                      \
    X(mem_address_range, cuMemGetAddressRange)                        \
    X(ipc_handle, cuIpcGetMemHandle)                                  \
    X(ipc_open, cuIpcOpenMemHandle)                                   \
    X(ipc_close, cuIpcCloseMemHandle)

namespace moelink {

struct CudaDriver {
#define MOELINK_CUDA_MEMBER(member, function) decltype(&::function) member = nullptr;
    MOELINK_CUDA_FUNCTIONS(MOELINK_CUDA_MEMBER)
#undef MOELINK_CUDA_MEMBER
    std::string file;  // where it was loaded from
};

// The initialised driver. Throws Error NO_DRIVER with the loader's or the driver's text. Any thread.
const CudaDriver &cuda();

// For unit tests: what cuda() gives from now on; NULL: the real one again. The driver must outlive every use.
void set_cuda_driver(const CudaDriver *driver) noexcept;

// Throws Error for everything but CUDA_SUCCESS: OUT_OF_MEMORY, UNSUPPORTED (the machine cannot or may not), DEVICE (the context
// is lost), else INTERNAL; the text is "what: NAME (the driver's words)".
void check(CUresult result, const char *what);
moelink_status status_of(CUresult result) noexcept;
std::string cuda_error_text(CUresult result, const char *what);

// Keeps a device's primary context, the one that the CUDA runtime uses, alive.
class PrimaryContext {
public:
    explicit PrimaryContext(int ordinal);
    PrimaryContext(const PrimaryContext &) = delete;
    PrimaryContext &operator=(const PrimaryContext &) = delete;
    ~PrimaryContext();
    CUdevice device() const { return device_; }
    CUcontext get() const { return context_; }

private:
    CUdevice device_ = 0;
    CUcontext context_ = nullptr;
};

// Makes a device's primary context current on this thread for a scope.
class ContextGuard {
public:
    explicit ContextGuard(int ordinal);
    explicit ContextGuard(const PrimaryContext &context);  // which must outlive the guard
    ContextGuard(const ContextGuard &) = delete;
    ContextGuard &operator=(const ContextGuard &) = delete;
    ~ContextGuard();

private:
    std::optional<PrimaryContext> own_;
};

}  // namespace moelink

#endif
