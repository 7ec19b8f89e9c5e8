// Memory of one rank's own device, host or CUDA, behind one interface; and the words that report faults.
#pragma once

#include "group/group.hpp"
#include "kernels/launch.hpp"

#include <moelink/base.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace moelink {

class PrimaryContext;

// Tells GPUs apart, also between processes and under CUDA_VISIBLE_DEVICES.
using GpuName = std::array<char, 16>;

// What a manager does on its rank's device besides launching kernels.
class Device {
public:
    Device() = default;  // the host
    explicit Device(const Group &group);

    bool on_cuda() const { return context_ != nullptr; }

    // Zeroed memory; throws OUT_OF_MEMORY.
    void *allocate(uint64_t bytes) const;
    void release(void *pointer) const noexcept;
    // Zeroed memory that host and device see; `device_address` is the kernel's view of it.
    void *allocate_pinned(uint64_t bytes, void **device_address) const;
    void release_pinned(void *pointer) const noexcept;

    // Host-blocking copies.
    void read(void *host, const void *device, uint64_t bytes) const;
    void write(void *device, const void *host, uint64_t bytes) const;
    void clear(void *device, uint64_t bytes) const;
    // Stream-ordered. Pageable host memory is read before the call returns, pinned memory when the stream comes to it.
    void write_async(void *device, const void *host, uint64_t bytes, moelink_stream stream) const;
    void clear_async(void *device, uint64_t bytes, moelink_stream stream) const;
    // Stream-ordered copy of rows between any two places, host (pinned, or read before the call returns) or device; on the host
    // device done on return.
    void copy_rows_async(void *to, uint64_t to_stride, const void *from, uint64_t from_stride, uint64_t row_bytes, uint64_t rows,
                         moelink_stream stream) const;
    void synchronize(moelink_stream stream) const;
    void synchronize_all() const;
    bool capturing(moelink_stream stream) const;
    int multiprocessors() const;
    // The driver's number of it in this process; 0 on the host.
    int number() const;
    GpuName gpu_name() const;

private:
    friend class DeviceGuard;
    std::shared_ptr<PrimaryContext> context_;  // NULL on the host
};

// Makes the device's context the calling thread's for a scope; nothing on the host.
class DeviceGuard {
public:
    explicit DeviceGuard(const Device &device);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard &) = delete;
    DeviceGuard &operator=(const DeviceGuard &) = delete;

private:
    bool pushed_ = false;
};

// OK when the library can use this kind of device here, else why not.
moelink_status device_available(int32_t device, std::string *why);

// Owns memory of a device.
class Buffer {
public:
    Buffer() = default;
    Buffer(const Device &device, uint64_t bytes) : device_(device), pointer_(device.allocate(bytes > 0 ? bytes : 1)) {}
    Buffer(Buffer &&other) noexcept : device_(other.device_), pointer_(std::exchange(other.pointer_, nullptr)) {}
    Buffer &operator=(Buffer &&other) noexcept {
        std::swap(device_, other.device_);
        std::swap(pointer_, other.pointer_);
        return *this;
    }
    ~Buffer() {
        if (pointer_ != nullptr) device_.release(pointer_);
    }
    template <class T = unsigned char>
    T *as() const {
        return static_cast<T *>(pointer_);
    }

private:
    Device device_;
    void *pointer_ = nullptr;
};

// Owns zeroed memory that host and device see.
class PinnedBuffer {
public:
    PinnedBuffer() = default;
    PinnedBuffer(const Device &device, uint64_t bytes) : device_(device), pointer_(device.allocate_pinned(bytes, &view_)) {}
    PinnedBuffer(PinnedBuffer &&other) noexcept
        : device_(other.device_), view_(std::exchange(other.view_, nullptr)), pointer_(std::exchange(other.pointer_, nullptr)) {}
    PinnedBuffer &operator=(PinnedBuffer &&other) noexcept {
        std::swap(device_, other.device_);
        std::swap(view_, other.view_);
        std::swap(pointer_, other.pointer_);
        return *this;
    }
    ~PinnedBuffer() {
        if (pointer_ != nullptr) device_.release_pinned(pointer_);
    }
    template <class T = unsigned char>
    T *as() const {
        return static_cast<T *>(pointer_);
    }
    // Its address in kernels.
    template <class T = unsigned char>
    T *view() const {
        return static_cast<T *>(view_);
    }

private:
    Device device_;
    void *view_ = nullptr;
    void *pointer_ = nullptr;
};

// A stream that waits for no other; NULL on the host.
class Stream {
public:
    explicit Stream(const Device &device);
    ~Stream();
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;
    moelink_stream get() const { return stream_; }

private:
    Device device_;
    moelink_stream stream_ = nullptr;
};

// A point in a stream that the host can ask for. On the host device, and when empty, it has passed.
class Mark {
public:
    Mark() = default;
    Mark(const Device &device, moelink_stream stream);
    Mark(Mark &&other) noexcept : device_(other.device_), event_(std::exchange(other.event_, nullptr)) {}
    Mark &operator=(Mark &&other) noexcept {
        std::swap(device_, other.device_);
        std::swap(event_, other.event_);
        return *this;
    }
    ~Mark();
    bool passed() const;
    // What comes into `stream` from here on begins after this point.
    void hold(moelink_stream stream) const;

private:
    Device device_;
    void *event_ = nullptr;
};

// A manager's fault words. They outlive every workspace, so that a graph captured over an old one finds out in time.
class Faults {
public:
    explicit Faults(const Device &device);
    Faults(const Faults &) = delete;
    Faults &operator=(const Faults &) = delete;

    kernels::Anchor *anchor() const { return anchor_.as<kernels::Anchor>(); }
    kernels::Fault *device_view() const { return fault_.view<kernels::Fault>(); }
    // What a kernel has reported so far; any thread, no synchronisation.
    kernels::Fault seen() const;
    // True once for each report of a stale graph.
    bool take_stale();
    // Starts a generation: kernels of any other report STALE and do nothing. The device must be idle.
    void begin(uint64_t generation);

private:
    kernels::Fault &word() const { return *fault_.as<kernels::Fault>(); }

    Device device_;
    Buffer anchor_;
    PinnedBuffer fault_;
};

}  // namespace moelink
