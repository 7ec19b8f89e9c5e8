// CUDA virtual memory exported as file descriptors, which travel over a private Unix socket.
#include "memory/fd_exchange.hpp"
#include "memory/vmm.hpp"

namespace moelink {

uint64_t posix_fd_granularity(const Group &group) {
    return vmm_granularity(group, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                           CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, "POSIX file descriptor handles");
}

std::unique_ptr<Copies> map_posix_fd(Group &group, uint64_t bytes, const Deadline &deadline) {
    std::unique_ptr<VmmCopies> copies;
    Fd mine;
    step(group, deadline, [&] {
        copies = std::make_unique<VmmCopies>(group, bytes, posix_fd_granularity(group), CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
        int fd = -1;
        copies->export_own(&fd);
        mine = Fd(fd);
    });
    exchange_fds(group, mine.get(), deadline, [&](int peer, Fd fd) {
        copies->import(static_cast<size_t>(peer), reinterpret_cast<void *>(static_cast<intptr_t>(fd.get())));
    });
    return copies;
}

}  // namespace moelink
