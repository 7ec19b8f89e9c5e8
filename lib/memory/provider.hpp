// What a provider of symmetric memory is to memory.cc: a row in a table.
#pragma once

#include "group/agreement.hpp"
#include "memory/memory.hpp"

#include <cstdint>
#include <memory>
#include <span>

namespace moelink {

// One rank's view of all copies. Everything is host-blocking and local.
class Copies : public Memory::Mapping {
public:
    // Sets every byte of this rank's own copy.
    virtual void fill(uint8_t value) = 0;
    // Makes this rank's own fresh copy zero.
    virtual void clear() { fill(0); }
    // Reads the first bytes of a rank's copy through the mapping that kernels will use.
    virtual void read(int rank, void *to, uint64_t size) = 0;
    // Gives up the peers' copies and keeps the own one, for providers whose owner must not free first.
    virtual void detach() noexcept {}
};

struct Provider {
    int32_t id;
    int32_t device;  // MOELINK_DEVICE_* of the groups that it serves
    const char *name;
    const char *needs;
    // Local: what sizes are rounded to, a power of two; throws Error with the reason when this rank cannot use the provider.
    uint64_t (*granularity)(const Group &group);
    // Collective: allocates `bytes`, a multiple of the granularity, and maps every rank's copy. Throws Refusal alike on all
    // ranks, and then nothing stays allocated.
    std::unique_ptr<Copies> (*map)(Group &group, uint64_t bytes, const Deadline &deadline);
};

// All providers that allocate, best first. Those of a build without CUDA have no functions.
std::span<const Provider> providers();

uint64_t fabric_granularity(const Group &group);
std::unique_ptr<Copies> map_fabric(Group &group, uint64_t bytes, const Deadline &deadline);

uint64_t posix_fd_granularity(const Group &group);
std::unique_ptr<Copies> map_posix_fd(Group &group, uint64_t bytes, const Deadline &deadline);

uint64_t cuda_ipc_granularity(const Group &group);
std::unique_ptr<Copies> map_cuda_ipc(Group &group, uint64_t bytes, const Deadline &deadline);

uint64_t host_shm_granularity(const Group &group);
std::unique_ptr<Copies> map_host_shm(Group &group, uint64_t bytes, const Deadline &deadline);

// The caller's own addresses, one a rank.
std::unique_ptr<Copies> map_external(const std::vector<void *> &addresses, uint64_t bytes);

}  // namespace moelink
