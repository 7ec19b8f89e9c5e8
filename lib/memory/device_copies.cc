#include "memory/device_copies.hpp"

#include "base/log.hpp"

namespace moelink {

namespace {

// A stream that no other work can hold up: kernels of other ranks on this GPU may be waiting for this very rank.
class SideStream {
public:
    SideStream() { check(cuda().stream_create(&stream_, CU_STREAM_NON_BLOCKING), "cuStreamCreate"); }
    SideStream(const SideStream &) = delete;
    SideStream &operator=(const SideStream &) = delete;
    ~SideStream() { warn_unless_done(cuda().stream_destroy(stream_), "cuStreamDestroy"); }
    CUstream get() const { return stream_; }
    void wait() { check(cuda().stream_synchronize(stream_), "cuStreamSynchronize"); }

private:
    CUstream stream_ = nullptr;
};

}  // namespace

DeviceCopies::DeviceCopies(const Group &group, uint64_t size, uint64_t page)
    : ordinal_(group.ordinal()), rank_(static_cast<size_t>(group.rank())), context_(group.ordinal()) {
    peers.assign(static_cast<size_t>(group.size()), nullptr);
    bytes = size;
    granularity = page;
}

void DeviceCopies::fill(uint8_t value) {
    ContextGuard guard(context_);
    SideStream stream;
    check(cuda().memset_d8_async(address(rank_), value, bytes, stream.get()), "cuMemsetD8Async");
    stream.wait();
}

void DeviceCopies::read(int rank, void *to, uint64_t size) {
    ContextGuard guard(context_);
    SideStream stream;
    check(cuda().copy_to_host_async(to, address(static_cast<size_t>(rank)), size, stream.get()), "cuMemcpyDtoHAsync");
    stream.wait();
}

void warn_unless_done(CUresult result, const char *what) noexcept {
    // While the process exits the driver may be gone already, and with it what it held.
    if (result == CUDA_SUCCESS || result == CUDA_ERROR_DEINITIALIZED) return;
    log(MOELINK_LOG_WARN, "{} failed with {}", what, static_cast<int>(result));
}

void reach_device(int ordinal, int other) {
    PrimaryContext context(other);
    CUdevice device = 0;
    check(cuda().ctx_device(&device), "cuCtxGetDevice");
    int can = 0;
    check(cuda().device_can_access_peer(&can, device, context.device()), "cuDeviceCanAccessPeer");
    if (can == 0) fail(MOELINK_ERR_UNSUPPORTED, "device {} cannot reach the memory of device {}", ordinal, other);
    CUresult result = cuda().ctx_enable_peer(context.get(), 0);
    if (result != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED) check(result, "cuCtxEnablePeerAccess");
}

int device_attribute(const Group &group, CUdevice_attribute which) {
    CUdevice device = 0;
    check(cuda().device(&device, group.ordinal()), "cuDeviceGet");
    int value = 0;
    CUresult result = cuda().device_attribute(&value, which, device);
    if (result == CUDA_ERROR_INVALID_VALUE) return 0;
    check(result, "cuDeviceGetAttribute");
    return value;
}

}  // namespace moelink
