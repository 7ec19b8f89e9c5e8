#include "memory/provider.hpp"

#include <array>

namespace moelink {

#if MOELINK_CUDA
#define CUDA_PROVIDER(name) name##_granularity, map_##name
#else
#define CUDA_PROVIDER(name) nullptr, nullptr
#endif

std::span<const Provider> providers() {
    static constexpr std::array<Provider, 4> table = {{
        {MOELINK_MEMORY_FABRIC, MOELINK_DEVICE_CUDA, "fabric", "an NVLink domain whose driver hands out fabric handles",
         CUDA_PROVIDER(fabric)},
        {MOELINK_MEMORY_POSIX_FD, MOELINK_DEVICE_CUDA, "posix-fd", "GPUs of one host that reach each other, and a Unix socket",
         CUDA_PROVIDER(posix_fd)},
        {MOELINK_MEMORY_CUDA_IPC, MOELINK_DEVICE_CUDA, "cuda-ipc", "GPUs of one host that reach each other",
         CUDA_PROVIDER(cuda_ipc)},
        {MOELINK_MEMORY_HOST_SHM, MOELINK_DEVICE_HOST, "host-shm", "ranks of one host, and a Unix socket", host_shm_granularity,
         map_host_shm},
    }};
    return table;
}

}  // namespace moelink

const char *moelink_provider_name(int32_t provider) {
    if (provider == MOELINK_MEMORY_AUTO) return "auto";
    if (provider == MOELINK_MEMORY_EXTERNAL) return "external";
    for (const moelink::Provider &row : moelink::providers()) {
        if (row.id == provider) return row.name;
    }
    return "unknown";
}
