#include "memory/vmm.hpp"

namespace moelink {

namespace {

CUmemAllocationProp properties(int ordinal, CUmemAllocationHandleType type) {
    CUmemAllocationProp prop{};
    prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    prop.location.id = ordinal;
    prop.requestedHandleTypes = type;
    return prop;
}

}  // namespace

uint64_t vmm_granularity(const Group &group, CUmemAllocationHandleType type, CUdevice_attribute attribute, const char *what) {
    if (device_attribute(group, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "the driver reports no virtual memory management for device {}", group.ordinal());
    }
    if (device_attribute(group, attribute) == 0) {
        fail(MOELINK_ERR_UNSUPPORTED, "the driver reports no {} for device {}", what, group.ordinal());
    }
    ContextGuard guard(group.ordinal());
    CUmemAllocationProp prop = properties(group.ordinal(), type);
    size_t granularity = 0;
    check(cuda().mem_granularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED), "cuMemGetAllocationGranularity");
    return granularity;
}

VmmCopies::VmmCopies(const Group &group, uint64_t size, uint64_t page, CUmemAllocationHandleType type)
    : DeviceCopies(group, size, page), type_(type) {
    ContextGuard guard(context());
    try {
        CUmemAllocationProp prop = properties(ordinal(), type);
        check(cuda().mem_create(&own_, size, &prop, 0), "cuMemCreate");
        check(cuda().mem_reserve(&base_, size * peers.size(), page, 0, 0), "cuMemAddressReserve");
        map(rank(), own_);
    } catch (...) {
        release();
        throw;
    }
}

VmmCopies::~VmmCopies() { release(); }

// None of these calls needs a context to be current.
void VmmCopies::release() noexcept {
    for (size_t peer = 0; peer < peers.size(); ++peer) {
        if (peers[peer] != nullptr) warn_unless_done(cuda().mem_unmap(address(peer), bytes), "cuMemUnmap");
        peers[peer] = nullptr;
    }
    if (own_ != 0) warn_unless_done(cuda().mem_release(own_), "cuMemRelease");
    if (base_ != 0) warn_unless_done(cuda().mem_unreserve(base_, bytes * peers.size()), "cuMemAddressFree");
    own_ = 0;
    base_ = 0;
}

void VmmCopies::map(size_t at, CUmemGenericAllocationHandle handle) {
    CUdeviceptr address = base_ + at * bytes;
    check(cuda().mem_map(address, bytes, 0, handle, 0), "cuMemMap");
    set_address(at, address);
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = ordinal();
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    check(cuda().mem_set_access(address, bytes, &access, 1), "cuMemSetAccess");
}

void VmmCopies::export_own(void *handle) const {
    ContextGuard guard(context());
    check(cuda().mem_export(handle, own_, type_, 0), "cuMemExportToShareableHandle");
}

void VmmCopies::import(size_t peer, void *handle) {
    ContextGuard guard(context());
    CUmemGenericAllocationHandle imported = 0;
    check(cuda().mem_import(&imported, handle, type_), "cuMemImportFromShareableHandle");
    try {
        map(peer, imported);
    } catch (...) {
        warn_unless_done(cuda().mem_release(imported), "cuMemRelease");
        throw;
    }
    check(cuda().mem_release(imported), "cuMemRelease");  // the mapping keeps the pages
}

}  // namespace moelink
