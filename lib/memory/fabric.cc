// CUDA fabric handles: 64 bytes that any process of the NVLink domain can import, also on other hosts.
#include "memory/vmm.hpp"

namespace moelink {

namespace {

std::unique_ptr<VmmCopies> make_own(const Group &group, uint64_t bytes) {
    try {
        return std::make_unique<VmmCopies>(group, bytes, fabric_granularity(group), CU_MEM_HANDLE_TYPE_FABRIC);
    } catch (const Error &error) {
        if (error.status() != MOELINK_ERR_UNSUPPORTED) throw;
        throw Error(error.status(), error.text() + "; fabric handles need an IMEX channel that this process may open");
    }
}

}  // namespace

uint64_t fabric_granularity(const Group &group) {
    return vmm_granularity(group, CU_MEM_HANDLE_TYPE_FABRIC, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, "fabric handles");
}

std::unique_ptr<Copies> map_fabric(Group &group, uint64_t bytes, const Deadline &deadline) {
    std::unique_ptr<VmmCopies> copies;
    CUmemFabricHandle mine{};
    step(group, deadline, [&] {
        copies = make_own(group, bytes);
        copies->export_own(&mine);
    });
    std::vector<CUmemFabricHandle> all = group.allgather(mine, deadline);
    step(group, deadline, [&] {
        for (int peer = 0; peer < group.size(); ++peer) {
            if (peer != group.rank()) copies->import(static_cast<size_t>(peer), &all[static_cast<size_t>(peer)]);
        }
    });
    return copies;
}

}  // namespace moelink
