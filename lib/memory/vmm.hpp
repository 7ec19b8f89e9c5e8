// CUDA virtual memory management: what the fabric and posix-fd providers share.
#pragma once

#include "memory/device_copies.hpp"

#include <vector>

namespace moelink {

// One range of addresses on this rank's device with every rank's copy mapped into it, own copy included.
class VmmCopies final : public DeviceCopies {
public:
    // Reserves the addresses and creates, maps and opens this rank's own copy.
    VmmCopies(const Group &group, uint64_t size, uint64_t page, CUmemAllocationHandleType type);
    ~VmmCopies() override;

    // Writes the handle of the own copy, of the type's shape.
    void export_own(void *handle) const;
    // Maps a peer's copy by a pointer to its handle, or by the file descriptor itself cast to a pointer.
    void import(size_t peer, void *handle);

private:
    void release() noexcept;
    void map(size_t at, CUmemGenericAllocationHandle handle);

    CUmemAllocationHandleType type_;
    CUdeviceptr base_ = 0;
    CUmemGenericAllocationHandle own_ = 0;
};

// Granularity of allocations of that type on the group's device; throws UNSUPPORTED when the driver's `attribute` says no.
uint64_t vmm_granularity(const Group &group, CUmemAllocationHandleType type, CUdevice_attribute attribute, const char *what);

}  // namespace moelink
