#include "moe/device_memory.hpp"

#include "driver/cuda.hpp"
#include "driver/device.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace moelink {

#if MOELINK_CUDA

namespace {

CUdeviceptr address(const void *pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }
CUstream native(moelink_stream stream) { return stream; }

}  // namespace

Device::Device(const Group &group) {
    if (group.on_cuda()) context_ = std::make_shared<PrimaryContext>(group.ordinal());
}

DeviceGuard::DeviceGuard(const Device &device) {
    if (!device.on_cuda()) return;
    CUcontext current = nullptr;
    check(cuda().ctx_current(&current), "cuCtxGetCurrent");
    if (current == device.context_->get()) return;
    check(cuda().ctx_push(device.context_->get()), "cuCtxPushCurrent");
    pushed_ = true;
}

DeviceGuard::~DeviceGuard() {
    CUcontext popped;
    if (pushed_) cuda().ctx_pop(&popped);
}

#else

// Never made: a build without CUDA refuses CUDA groups.
class PrimaryContext {};

Device::Device(const Group &group) {
    if (group.on_cuda()) fail(MOELINK_ERR_NO_DRIVER, "this library was built without CUDA");
}
DeviceGuard::DeviceGuard(const Device &) {}
DeviceGuard::~DeviceGuard() = default;

#endif

void *Device::allocate(uint64_t bytes) const {
#if MOELINK_CUDA
    if (on_cuda()) {
        DeviceGuard guard(*this);
        const Stream stream(*this);
        CUdeviceptr pointer = 0;
        check(cuda().mem_alloc(&pointer, bytes), "cuMemAlloc");
        CUresult result = cuda().memset_d8_async(pointer, 0, bytes, native(stream.get()));
        // A fill does not wait for itself, nor other streams for it.
        if (result == CUDA_SUCCESS) result = cuda().stream_synchronize(native(stream.get()));
        if (result != CUDA_SUCCESS) {
            cuda().mem_free(pointer);
            check(result, "filling device memory");
        }
        return reinterpret_cast<void *>(pointer);
    }
#endif
    void *pointer = nullptr;
    if (posix_memalign(&pointer, 128, bytes) != 0) fail(MOELINK_ERR_OUT_OF_MEMORY, "{} bytes of host memory", bytes);
    std::memset(pointer, 0, bytes);
    return pointer;
}

void Device::release(void *pointer) const noexcept {
#if MOELINK_CUDA
    if (on_cuda()) {
        try {
            DeviceGuard guard(*this);
            cuda().mem_free(address(pointer));
        } catch (const Error &) {  // the context is gone, and the memory with it
        }
        return;
    }
#endif
    std::free(pointer);
}

void *Device::allocate_pinned(uint64_t bytes, void **device_address) const {
#if MOELINK_CUDA
    if (on_cuda()) {
        DeviceGuard guard(*this);
        void *pointer = nullptr;
        check(cuda().host_alloc(&pointer, bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP), "cuMemHostAlloc");
        std::memset(pointer, 0, bytes);
        CUdeviceptr device = 0;
        if (CUresult result = cuda().host_device_pointer(&device, pointer, 0); result != CUDA_SUCCESS) {
            cuda().host_free(pointer);
            check(result, "cuMemHostGetDevicePointer");
        }
        *device_address = reinterpret_cast<void *>(device);
        return pointer;
    }
#endif
    return *device_address = allocate(bytes);
}

void Device::release_pinned(void *pointer) const noexcept {
#if MOELINK_CUDA
    if (on_cuda()) {
        try {
            DeviceGuard guard(*this);
            cuda().host_free(pointer);
        } catch (const Error &) {
        }
        return;
    }
#endif
    std::free(pointer);
}

void Device::read(void *host, const void *device, uint64_t bytes) const {
    if (bytes == 0) return;
#if MOELINK_CUDA
    if (on_cuda()) {
        DeviceGuard guard(*this);
        check(cuda().copy_to_host(host, address(device), bytes), "cuMemcpyDtoH");
        return;
    }
#endif
    std::memcpy(host, device, bytes);
}

void Device::write(void *device, const void *host, uint64_t bytes) const {
    if (bytes == 0) return;
#if MOELINK_CUDA
    if (on_cuda()) {
        DeviceGuard guard(*this);
        // A small copy from pageable memory may return before it has arrived; other streams must not overtake it.
        check(cuda().copy_to_device(address(device), host, bytes), "cuMemcpyHtoD");
        check(cuda().stream_synchronize(nullptr), "cuStreamSynchronize");
        return;
    }
#endif
    std::memcpy(device, host, bytes);
}

void Device::clear(void *device, uint64_t bytes) const {
    if (bytes == 0) return;
#if MOELINK_CUDA
    if (on_cuda()) {
        DeviceGuard guard(*this);
        check(cuda().memset_d8(address(device), 0, bytes), "cuMemsetD8");
        check(cuda().stream_synchronize(nullptr), "cuStreamSynchronize");
        return;
    }
#endif
    std::memset(device, 0, bytes);
}

void Device::write_async(void *device, const void *host, uint64_t bytes, [[maybe_unused]] moelink_stream stream) const {
#if MOELINK_CUDA
    if (on_cuda()) {
        DeviceGuard guard(*this);
        check(cuda().copy_to_device_async(address(device), host, bytes, native(stream)), "cuMemcpyHtoDAsync");
        return;
    }
#endif
    std::memcpy(device, host, bytes);
}

void Device::clear_async(void *device, uint64_t bytes, [[maybe_unused]] moelink_stream stream) const {
#if MOELINK_CUDA
    if (on_cuda()) {
        DeviceGuard guard(*this);
        check(cuda().memset_d8_async(address(device), 0, bytes, native(stream)), "cuMemsetD8Async");
        return;
    }
#endif
    std::memset(device, 0, bytes);
}

void Device::copy_rows_async(void *to, uint64_t to_stride, const void *from, uint64_t from_stride, uint64_t row_bytes, uint64_t rows,
                             [[maybe_unused]] moelink_stream stream) const {
    if (to_stride == row_bytes && from_stride == row_bytes) {
        row_bytes *= rows;
        rows = 1;
    }
#if MOELINK_CUDA
    if (on_cuda()) {
        DeviceGuard guard(*this);
        constexpr uint64_t most_pitch = uint64_t{1} << 31;
        if (rows == 1 || to_stride >= most_pitch || from_stride >= most_pitch) {
            for (uint64_t row = 0; row < rows; ++row) {
                check(cuda().copy_async(address(to) + row * to_stride, address(from) + row * from_stride, row_bytes, native(stream)),
                      "cuMemcpyAsync");
            }
            return;
        }
        CUDA_MEMCPY2D copy{};
        copy.srcMemoryType = CU_MEMORYTYPE_UNIFIED;
        copy.srcDevice = address(from);
        copy.srcPitch = from_stride;
        copy.dstMemoryType = CU_MEMORYTYPE_UNIFIED;
        copy.dstDevice = address(to);
        copy.dstPitch = to_stride;
        copy.WidthInBytes = row_bytes;
        copy.Height = rows;
        check(cuda().copy_2d_async(&copy, native(stream)), "cuMemcpy2DAsync");
        return;
    }
#endif
    for (uint64_t row = 0; row < rows; ++row) {
        std::memcpy(static_cast<char *>(to) + row * to_stride, static_cast<const char *>(from) + row * from_stride, row_bytes);
    }
}

void Device::synchronize([[maybe_unused]] moelink_stream stream) const {
#if MOELINK_CUDA
    if (!on_cuda()) return;
    DeviceGuard guard(*this);
    check(cuda().stream_synchronize(native(stream)), "cuStreamSynchronize");
#endif
}

void Device::synchronize_all() const {
#if MOELINK_CUDA
    if (!on_cuda()) return;
    DeviceGuard guard(*this);
    check(cuda().ctx_synchronize(), "cuCtxSynchronize");
#endif
}

bool Device::capturing([[maybe_unused]] moelink_stream stream) const {
#if MOELINK_CUDA
    // The legacy default stream cannot be captured, and to ask it while another stream is captured would end that capture.
    if (on_cuda() && stream != nullptr) {
        DeviceGuard guard(*this);
        CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
        check(cuda().stream_is_capturing(native(stream), &status), "cuStreamIsCapturing");
        return status != CU_STREAM_CAPTURE_STATUS_NONE;
    }
#endif
    return false;
}

int Device::multiprocessors() const {
#if MOELINK_CUDA
    if (on_cuda()) {
        int count = 0;
        check(cuda().device_attribute(&count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, context_->device()), "cuDeviceGetAttribute");
        return count;
    }
#endif
    return 1;
}

int Device::number() const {
#if MOELINK_CUDA
    if (on_cuda()) return context_->device();
#endif
    return 0;
}

GpuName Device::gpu_name() const {
    GpuName name{};
#if MOELINK_CUDA
    if (on_cuda()) {
        CUuuid uuid;
        check(cuda().device_uuid(&uuid, context_->device()), "cuDeviceGetUuid");
        std::memcpy(name.data(), uuid.bytes, name.size());
    }
#endif
    return name;
}

Stream::Stream(const Device &device) : device_(device) {
#if MOELINK_CUDA
    if (!device.on_cuda()) return;
    DeviceGuard guard(device_);
    CUstream stream = nullptr;
    check(cuda().stream_create(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    stream_ = stream;
#endif
}

Stream::~Stream() {
#if MOELINK_CUDA
    if (stream_ == nullptr) return;
    try {
        DeviceGuard guard(device_);
        cuda().stream_destroy(native(stream_));
    } catch (const Error &) {  // the context is gone, and the stream with it
    }
#endif
}

Mark::Mark([[maybe_unused]] const Device &device, [[maybe_unused]] moelink_stream stream) {
#if MOELINK_CUDA
    if (!device.on_cuda()) return;
    device_ = device;
    DeviceGuard guard(device_);
    CUevent event = nullptr;
    check(cuda().event_create(&event, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    event_ = event;
    if (CUresult result = cuda().event_record(event, native(stream)); result != CUDA_SUCCESS) {
        cuda().event_destroy(event);
        event_ = nullptr;
        check(result, "cuEventRecord");
    }
#endif
}

Mark::~Mark() {
#if MOELINK_CUDA
    if (event_ == nullptr) return;
    try {
        DeviceGuard guard(device_);
        cuda().event_destroy(static_cast<CUevent>(event_));
    } catch (const Error &) {  // the context is gone, and the event with it
    }
#endif
}

bool Mark::passed() const {
#if MOELINK_CUDA
    if (event_ != nullptr) {
        DeviceGuard guard(device_);
        const CUresult result = cuda().event_query(static_cast<CUevent>(event_));
        if (result == CUDA_ERROR_NOT_READY) return false;
        check(result, "cuEventQuery");
    }
#endif
    return true;
}

void Mark::hold([[maybe_unused]] moelink_stream stream) const {
#if MOELINK_CUDA
    if (event_ == nullptr) return;
    DeviceGuard guard(device_);
    check(cuda().stream_wait_event(native(stream), static_cast<CUevent>(event_), 0), "cuStreamWaitEvent");
#endif
}

moelink_status device_available(int32_t device, std::string *why) {
    if (device == MOELINK_DEVICE_HOST) return MOELINK_OK;
#if MOELINK_CUDA
    try {
        cuda();
    } catch (const Error &error) {
        *why = error.text();
        return error.status();
    }
    if (cuda_device_count_usable() > 0) return MOELINK_OK;
    *why = "no GPU of compute capability 9.0 or higher";
    return MOELINK_ERR_UNSUPPORTED;
#else
    *why = "this library was built without CUDA";
    return MOELINK_ERR_NO_DRIVER;
#endif
}

Faults::Faults(const Device &device) : device_(device), anchor_(device, sizeof(kernels::Anchor)), fault_(device, sizeof(kernels::Fault)) {
}

kernels::Fault Faults::seen() const {
    kernels::Fault fault{};
    fault.code = std::atomic_ref<uint32_t>(word().code).load(std::memory_order_acquire);
    if (fault.code == kernels::fault_none) return fault;
    fault.peer = std::atomic_ref<int32_t>(word().peer).load(std::memory_order_relaxed);
    fault.phase = std::atomic_ref<uint32_t>(word().phase).load(std::memory_order_relaxed);
    fault.needed = std::atomic_ref<int64_t>(word().needed).load(std::memory_order_relaxed);
    fault.room = std::atomic_ref<int64_t>(word().room).load(std::memory_order_relaxed);
    return fault;
}

bool Faults::take_stale() { return std::atomic_ref<uint32_t>(word().stale).exchange(0, std::memory_order_acq_rel) != 0; }

void Faults::begin(uint64_t generation) {
    const kernels::Anchor anchor{generation, 0, 0};
    device_.write(anchor_.as(), &anchor, sizeof anchor);
    std::atomic_ref<int32_t>(word().peer).store(0, std::memory_order_relaxed);
    std::atomic_ref<uint32_t>(word().phase).store(0, std::memory_order_relaxed);
    std::atomic_ref<uint32_t>(word().stale).store(0, std::memory_order_relaxed);
    std::atomic_ref<uint32_t>(word().code).store(kernels::fault_none, std::memory_order_release);
}

}  // namespace moelink
